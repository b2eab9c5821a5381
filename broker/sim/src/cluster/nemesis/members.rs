//! Replicas and brokers that come and go, because somebody wants them to.
//!
//! Owns: the orders, and how long one is insisted on.
//! Never: judges an order: the cluster refuses what it cannot do.

use super::super::order::{Told, order};
use super::super::rot;
use super::Nemesis;
use tokio::time::{Duration, Instant, sleep};

/// Moves that are asked for until one is taken: most name a broker that has no replica to give, or
/// has one already.
const MOVES_TRIED: usize = 8;
/// How long a broker is given to hand over what it holds.
const EMPTY_WITHIN: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(500);

impl Nemesis {
    /// Lets a replica of the topic that is judged go elsewhere.
    pub(super) async fn move_replica(&self, topic: &str, random: &mut fastrand::Rng) {
        for _ in 0..MOVES_TRIED {
            let from = random.u8(1..=self.cluster.brokers());
            let to = self.other_than(from, random);
            let partition = random.u16(..self.partitions);
            let body = format!(
                "{{\"topic\":\"{topic}\",\"partition\":{partition},\"from\":\"broker-{from}\",\
                 \"to\":\"broker-{to}\"}}"
            );
            if self.give("POST", "/v1/cluster/move", &body, random).await == Told::Obeyed {
                return;
            }
        }
    }

    pub(super) async fn balance(&self, random: &mut fastrand::Rng) {
        self.give("POST", "/v1/cluster/balance", "{}", random).await;
    }

    /// Takes a broker out of the cluster. What it held is elsewhere then, and it starts again from
    /// nothing, as another.
    pub(super) async fn retire(&self, one: u8, random: &mut fastrand::Rng) {
        if std::mem::replace(&mut self.state().is_leaving, true) {
            return;
        }
        self.retire_alone(one, random).await;
        self.state().is_leaving = false;
    }

    async fn retire_alone(&self, one: u8, random: &mut fastrand::Rng) {
        self.state().renewed.remove(&one);
        let path = format!("/v1/cluster/brokers/broker-{one}");
        match self.give("POST", &format!("{path}/drain"), "{}", random).await {
            // Unknown it may drain from now on, and is not left so.
            Told::Obeyed | Told::Unknown => {}
            Told::Refused | Told::Absent => return,
        }
        if !self.remove(&path, random).await {
            return;
        }
        while !self.take(one) {
            sleep(ASK_AGAIN).await;
        }
        if self.state().renewed.contains(&one) {
            // It went down and up meanwhile, and is another by now.
            self.state().down.remove(&one);
            return;
        }
        let machine = self.cluster.machine(one);
        machine.kill().await;
        rot::wipe(machine.disk());
        self.start(one).await;
    }

    /// Removes a broker that drains; returns whether it is gone. One that does not become empty in
    /// time is made active again.
    async fn remove(&self, path: &str, random: &mut fastrand::Rng) -> bool {
        let until = Instant::now() + EMPTY_WITHIN;
        // Once an answer is lost, a broker that is not there any more may be gone by that order.
        let mut in_doubt = false;
        loop {
            let told = match Instant::now() < until {
                true => self.give("DELETE", path, "", random).await,
                false => match self.give("POST", &format!("{path}/add"), "{}", random).await {
                    Told::Obeyed | Told::Refused => return false,
                    told => told,
                },
            };
            match told {
                Told::Obeyed => return true,
                Told::Absent if in_doubt => return true,
                Told::Unknown => in_doubt = true,
                Told::Absent | Told::Refused => {}
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Tells some broker.
    async fn give(&self, method: &str, path: &str, body: &str, random: &mut fastrand::Rng) -> Told {
        let to = random.u8(1..=self.cluster.brokers());
        match order(&self.cluster, to, (method, path), body).await {
            Ok(told) => told,
            Err(error) => {
                tracing::info!(to, method, path, %error, "an order was not answered");
                Told::Unknown
            }
        }
    }
}
