//! Brokers that go while every partition is published to: killed, or stopped in order.
//!
//! Owns: the order of events, and which gap belongs to which.
//! Never: takes the next broker before the last is back and its replicas vote again.

use super::brokers::Brokers;
use super::gaps::percentiles;
use super::paced::{Pace, Paced, Published};
use super::{
    BROKERS, Bound, Goal, Place, REPLICAS, goal_lines, is_whole, leaders, make_topic, other, row,
};
use crate::audit::Verdict;
use crate::clock;
use crate::load;
use crate::measure::Percentiles;
use crate::scratch::in_scratch_folder;
use serde::Serialize;
use std::fmt::Write;
use std::io;
use std::time::Duration;
use tokio::runtime::Runtime;
use weir_client::Client;

const TOPIC: &str = "bench";
/// Between events nothing happens for so long: what was disturbed is seen in the gaps of the event
/// that did it.
const SETTLE: Duration = Duration::from_secs(2);
/// Most partitions for which a leader has to be replaced within [`GAP_FEW_S`].
const FEW: u32 = 100;
const GAP_FEW_S: f64 = 2.0;
const GAP_MANY_S: f64 = 5.0;
const GAP_PLANNED_S: f64 = 0.05;

/// How brokers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Going {
    /// `kill -9`.
    Killed,
    /// SIGTERM: it hands over what it leads before it ends.
    Stopped,
}

/// What is done.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    /// How brokers go.
    pub going: Going,
    /// How many, one after another; each comes back.
    pub times: u32,
    /// The load meanwhile.
    pub pace: Pace,
}

/// A broker went and came back.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Which one.
    pub broker: String,
    /// Partitions that it led.
    pub led: usize,
    /// By partition, the longest time without an acknowledgement while nothing happened, for as long
    /// as is settled after events.
    pub calm: Percentiles,
    /// By partition that it led, the longest time without an acknowledgement.
    #[serde(skip)]
    gaps: Vec<Duration>,
    /// Of them.
    pub gap: Percentiles,
    /// The same of the partitions that others led.
    pub others: Percentiles,
    /// The same of all partitions, from its start until it was whole again and for a while after.
    pub return_gap: Percentiles,
    /// From its start until every replica was heard of.
    pub return_seconds: f64,
}

/// What was reached.
#[derive(Debug, Clone, Serialize)]
pub struct FailoverReport {
    /// What was done.
    pub plan: Plan,
    /// One after another.
    pub events: Vec<Event>,
    /// Over all partitions that lost their leader.
    pub gap: Percentiles,
    /// What became of what was sent.
    pub published: Published,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// What is stored in the end, read from start to end.
    pub stored: Verdict,
    /// What a consumer saw meanwhile.
    pub consumed: Verdict,
    /// What it shall be.
    pub goals: Vec<Goal>,
}

/// Runs it with a cluster of its own.
pub fn measure(runtime: &Runtime, place: &Place, plan: Plan) -> io::Result<FailoverReport> {
    in_scratch_folder(&place.dir, |scratch| {
        runtime.block_on(async {
            let mut brokers = Brokers::start(place, scratch, BROKERS).await?;
            let client = load::connect(&brokers.endpoints()).await.map_err(other)?;
            let shape = (plan.pace.partitions, REPLICAS);
            make_topic(&brokers, &client, TOPIC, shape).await?;
            run(&mut brokers, &client, plan).await
        })
    })
}

async fn run(brokers: &mut Brokers, client: &Client, plan: Plan) -> io::Result<FailoverReport> {
    let load = Paced::start(client, TOPIC, plan.pace).await?;
    let mut events = Vec::new();
    for _ in 0..plan.times {
        events.push(take_one(brokers, client, &load, plan.going).await?);
    }
    let (published, consumed) = load.finish().await?;
    let read = load::drain(&brokers.endpoints(), TOPIC, Some(&published.acknowledged), None).await;
    let stored = read.map_err(other)?.audit.expect("it was asked for");
    let gap = percentiles(events.iter().flat_map(|event| event.gaps.iter().copied()));
    let acknowledged = published.acknowledged.values().sum();
    let goals = goals(plan, gap, &published, stored, consumed);
    Ok(FailoverReport { plan, events, gap, published, acknowledged, stored, consumed, goals })
}

/// Takes the broker that leads most away, and waits until it is back.
async fn take_one(
    brokers: &mut Brokers,
    client: &Client,
    load: &Paced,
    going: Going,
) -> io::Result<Event> {
    let led = leaders(brokers, client, TOPIC).await?;
    let count = |number: usize| led.iter().filter(|leader| **leader == number).count();
    let victim = (0..BROKERS).max_by_key(|number| count(*number)).expect("there are some");
    load.gaps.begin();
    tokio::time::sleep(SETTLE).await;
    let calm = percentiles(load.gaps.longest());

    load.gaps.begin();
    match going {
        Going::Killed => brokers.kill(victim)?,
        Going::Stopped => brokers.stop(victim).await?,
    }
    load.answered_since(clock::now()).await?;
    tokio::time::sleep(SETTLE).await;
    let longest = load.gaps.longest();
    let of = |lost: bool| {
        let gaps = longest.iter().zip(&led).filter(move |(_, leader)| (**leader == victim) == lost);
        gaps.map(|(gap, _)| *gap)
    };
    let (gaps, others) = (of(true).collect::<Vec<_>>(), percentiles(of(false)));

    load.gaps.begin();
    let returns = clock::now();
    brokers.restart(victim).await?;
    is_whole(brokers).await?;
    let return_seconds = returns.elapsed().as_secs_f64();
    tokio::time::sleep(SETTLE).await;
    load.answered_since(returns).await?;
    Ok(Event {
        broker: brokers.name(victim).to_owned(),
        led: gaps.len(),
        calm,
        gap: percentiles(gaps.iter().copied()),
        gaps,
        others,
        return_gap: percentiles(load.gaps.longest()),
        return_seconds,
    })
}

fn goals(
    plan: Plan,
    gap: Percentiles,
    published: &Published,
    stored: Verdict,
    consumed: Verdict,
) -> Vec<Goal> {
    let seconds = |us: u64| us as f64 / 1e6;
    let none = |what: &str, count: u64| Goal::new(what, count as f64, Bound::AtMost(0.0));
    let mut goals = vec![match plan.going {
        Going::Killed => {
            let most = if plan.pace.partitions <= FEW { GAP_FEW_S } else { GAP_MANY_S };
            Goal::new("p99 of the publish gap, s", seconds(gap.p99_us), Bound::AtMost(most))
        }
        Going::Stopped => {
            let most = Bound::AtMost(GAP_PLANNED_S);
            Goal::new("the longest publish gap, s", seconds(gap.max_us), most)
        }
    }];
    goals.push(none("acknowledged and not stored", stored.lost));
    goals.push(none("stored twice", stored.duplicated));
    goals.push(none("errors of publishers", published.errors.values().sum()));
    goals.push(none("not seen by the consumer", consumed.lost));
    if plan.going == Going::Stopped {
        goals.push(none("seen twice by the consumer", consumed.duplicated));
    }
    goals
}

impl FailoverReport {
    /// Whether no promise was broken, whatever the figures are.
    pub fn is_sound(&self) -> bool {
        let is_clean = |verdict: Verdict| {
            verdict.lost + verdict.duplicated + verdict.foreign + verdict.reordered == 0
        };
        let consumed = match self.plan.going {
            Going::Killed => self.consumed.lost == 0,
            Going::Stopped => is_clean(self.consumed),
        };
        is_clean(self.stored) && consumed && self.published.errors.is_empty()
    }

    /// For people.
    pub fn table(&self) -> String {
        let Pace { partitions, rate } = self.plan.pace;
        let mut text = format!(
            "{partitions} partitions x {REPLICAS}, {rate} messages/s each; gaps in ms, of {:?} \
             brokers\n",
            self.plan.going
        );
        let ms = |us: u64| format!("{:.1}", us as f64 / 1e3);
        let headings =
            ["led", "calm max", "p50", "p99", "max", "others max", "return max", "return s"];
        text += &row("broker", headings.map(str::to_owned));
        for event in &self.events {
            let Event { calm, gap, others, return_gap, .. } = event;
            text += &row(
                &event.broker,
                [
                    event.led.to_string(),
                    ms(calm.max_us),
                    ms(gap.p50_us),
                    ms(gap.p99_us),
                    ms(gap.max_us),
                    ms(others.max_us),
                    ms(return_gap.max_us),
                    format!("{:.2}", event.return_seconds),
                ],
            );
        }
        let Percentiles { count, p50_us, p99_us, max_us, .. } = self.gap;
        let cells = [count.to_string(), String::new(), ms(p50_us), ms(p99_us), ms(max_us)];
        text += &row("all", cells);
        let (stored, consumed) = (self.stored, self.consumed);
        let _ = writeln!(text, "acknowledged {}  stored {stored:?}", self.acknowledged);
        let _ = writeln!(text, "consumed {consumed:?}");
        for (name, count) in &self.published.errors {
            let _ = writeln!(text, "error {name} {count}");
        }
        text + &goal_lines(&self.goals)
    }
}
