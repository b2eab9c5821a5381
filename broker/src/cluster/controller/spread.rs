//! Replicas that would better be elsewhere.
//!
//! Owns: choosing moves that spread partitions over racks, then replicas over brokers.
//! Never: makes a partition share a rack more than before.
//! Invariants: every move lowers either what shares a rack or the unevenness of what brokers hold,
//! and never raises the first: so moves end.

use super::place::Seats;
use super::replace::{Plan, homes_beside};
use crate::replication::metadata::Partition;
use weir_protocol::types::{BrokerId, ReplicaId};

/// Moves of one round: what is uneven does no harm, what moves takes bandwidth.
const SPREAD_MAX: usize = 16;

/// Plans moves out of racks that are shared, then from where much is held to where little is.
pub(super) fn spread(plan: &mut Plan<'_>) {
    let mut left = SPREAD_MAX;
    for gain in [rack_gain, load_gain] {
        for (topic, partition) in plan.idle() {
            if left == 0 {
                return;
            }
            let Some((from, to)) = best_of(plan, partition, gain) else { continue };
            plan.join(topic, partition, Some(from), to);
            left -= 1;
        }
    }
}

/// What a move from one broker to another brings beside others; 0 = it is not to be made.
type Gain = fn(&Seats<'_>, &[BrokerId], BrokerId, BrokerId) -> usize;

fn best_of(plan: &Plan<'_>, partition: &Partition, gain: Gain) -> Option<(ReplicaId, BrokerId)> {
    let (mut best, mut most) = (None, 0);
    for from in partition.voters().filter(|voter| plan.seats.has(voter.broker)) {
        let others = homes_beside(partition, Some(from.replica));
        let free = |to: &BrokerId| *to != from.broker && !others.contains(to);
        for to in plan.seats.brokers().filter(free) {
            let gain = gain(&plan.seats, &others, from.broker, to);
            if gain > most && plan.may_move(from.broker, to) {
                (best, most) = (Some((from.replica, to)), gain);
            }
        }
    }
    best
}

fn rack_gain(seats: &Seats<'_>, others: &[BrokerId], from: BrokerId, to: BrokerId) -> usize {
    seats.shared(others, from).saturating_sub(seats.shared(others, to))
}

fn load_gain(seats: &Seats<'_>, others: &[BrokerId], from: BrokerId, to: BrokerId) -> usize {
    let gap = seats.load(from).replicas.saturating_sub(seats.load(to).replicas);
    let harmless = || seats.shared(others, to) <= seats.shared(others, from);
    if gap >= 2 && harmless() { gap } else { 0 }
}
