//! Owns: check 13: chained checksums at committed indexes, and who led which term.
//! Never: an index that may still be truncated; the recorder gives committed ones.

use super::finding::{Check, Report};
use std::collections::BTreeMap;

/// What replicas said of themselves.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    /// By (partition, index): the first chain that was seen, and whose.
    chains: BTreeMap<(u16, u64), (u32, u8)>,
    /// By (partition, term).
    leaders: BTreeMap<(u16, u32), u8>,
}

impl Replicas {
    pub(super) fn on_chain(
        &mut self,
        at_ns: u64,
        replica: u8,
        place: (u16, u64),
        chain: u32,
        r: &mut Report,
    ) {
        let (first, whose) = *self.chains.entry(place).or_insert((chain, replica));
        if first != chain {
            let (partition, index) = place;
            let text = format_args!(
                "index {index} of partition {partition} has chain {first:08x} on replica {whose} \
                 and {chain:08x} on replica {replica}"
            );
            r.add(Check::Replicas, at_ns, text);
        }
    }

    pub(super) fn on_leader(
        &mut self,
        at_ns: u64,
        replica: u8,
        partition: u16,
        term: u32,
        r: &mut Report,
    ) {
        let first = *self.leaders.entry((partition, term)).or_insert(replica);
        if first != replica {
            let text = format_args!(
                "partition {partition} has two leaders in term {term}: replicas {first} and \
                 {replica}"
            );
            r.add(Check::Replicas, at_ns, text);
        }
    }
}
