//! Replicas and brokers that come and go, because somebody wants them to.
//!
//! Owns: the orders, and how long one is insisted on.
//! Never: judges an order: the cluster refuses what it cannot do.

use super::super::order::order;
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
            if self.give("POST", "/v1/cluster/move", &body, random).await {
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
        if !self.give("POST", &format!("{path}/drain"), "{}", random).await {
            return;
        }
        let until = Instant::now() + EMPTY_WITHIN;
        while !self.give("DELETE", &path, "", random).await {
            if Instant::now() > until {
                self.give("POST", &format!("{path}/add"), "{}", random).await;
                return;
            }
            sleep(ASK_AGAIN).await;
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

    /// Whether some broker obeys.
    async fn give(&self, method: &str, path: &str, body: &str, random: &mut fastrand::Rng) -> bool {
        let to = random.u8(1..=self.cluster.brokers());
        match order(&self.cluster, to, (method, path), body).await {
            Ok(obeyed) => obeyed,
            Err(error) => {
                tracing::info!(to, method, path, %error, "an order was not answered");
                false
            }
        }
    }
}
