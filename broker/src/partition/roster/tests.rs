//! The spread against what is best, and the rosters against what they promise.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn name() -> Name {
    Name::new("billing").unwrap()
}

fn join(member: u64, partitions: u32) -> Command {
    Command::Join { subscription: name(), member: MemberId(member), partitions }
}

fn leave(member: u64) -> Command {
    Command::Leave { subscription: name(), member: MemberId(member) }
}

fn release(member: u64, epoch: u64) -> Command {
    Command::Release { subscription: name(), member: MemberId(member), epoch }
}

fn reads(rosters: &Rosters, member: u64) -> Vec<u32> {
    let roster = rosters.find(&name()).expect("there is a roster");
    roster.read_by(MemberId(member)).into_iter().map(|partition| partition.0).collect()
}

/// The most partitions that could have stayed, over all choices of who gets one more.
fn kept_at_best(members: &[MemberId], before: &[Option<MemberId>]) -> usize {
    let (each, extra) = (before.len() / members.len(), before.len() % members.len());
    let had = members.iter().map(|m| before.iter().filter(|b| **b == Some(*m)).count());
    let had: Vec<usize> = had.collect();
    let choices = (0u32..1 << members.len()).filter(|bits| bits.count_ones() as usize == extra);
    let kept = choices.map(|bits| {
        let quota = |place: usize| each + (bits >> place & 1) as usize;
        had.iter().enumerate().map(|(place, had)| (*had).min(quota(place))).sum()
    });
    kept.max().unwrap_or(0)
}

proptest! {
    #[test]
    fn the_spread_is_even_and_moves_as_little_as_can_be(
        members in 1usize..7,
        before in proptest::collection::vec(proptest::option::of(0u64..9), 0..20),
    ) {
        // Members 7 and 8 have left.
        let members: Vec<_> = (0..members as u64).map(MemberId).collect();
        let before: Vec<_> = before.into_iter().map(|member| member.map(MemberId)).collect();
        let after = spread(&members, &before);
        prop_assert_eq!(after.len(), before.len());
        let has = |member: &MemberId| after.iter().filter(|m| *m == member).count();
        let counts: Vec<usize> = members.iter().map(has).collect();
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        let kept = after.iter().zip(&before).filter(|(now, then)| Some(**now) == **then).count();
        prop_assert_eq!(kept, kept_at_best(&members, &before));
    }
}

#[test]
fn a_partition_passes_on_when_its_holder_gave_it_up_and_not_before() {
    let mut rosters = Rosters::default();
    assert!(rosters.apply(&join(1, 4)));
    assert_eq!(reads(&rosters, 1), [0, 1, 2, 3]);
    assert!(rosters.apply(&join(2, 4)));
    assert_eq!((reads(&rosters, 1), reads(&rosters, 2)), (vec![0, 1], vec![]));
    let roster = rosters.find(&name()).unwrap();
    assert_eq!((roster.owed_by(MemberId(1)), roster.owed_by(MemberId(2))), (Some(2), None));
    // It has obeyed an older assignment only.
    assert!(!rosters.apply(&release(1, 1)));
    assert!(!rosters.apply(&release(2, 9)), "nobody gives up what another one holds");
    assert!(reads(&rosters, 2).is_empty());
    assert!(rosters.apply(&release(1, 2)));
    assert_eq!(reads(&rosters, 2), [2, 3]);
    // Whoever leaves is asked nothing.
    assert!(rosters.apply(&leave(1)));
    assert_eq!(reads(&rosters, 2), [0, 1, 2, 3]);
    assert!(!rosters.apply(&leave(1)));
    assert_eq!(rosters.epoch(), 4);
    // Epochs go on behind the last member.
    assert!(rosters.apply(&leave(2)));
    assert!(rosters.find(&name()).is_none());
    rosters.apply(&join(3, 4));
    assert_eq!(rosters.epoch(), 6);
}

#[test]
fn what_came_back_and_goes_again_is_given_up_anew() {
    let mut rosters = Rosters::default();
    rosters.apply(&join(1, 2));
    rosters.apply(&join(2, 2));
    rosters.apply(&leave(2));
    assert_eq!(reads(&rosters, 1), [0, 1], "nobody has read it in between");
    rosters.apply(&join(3, 2));
    assert!(!rosters.apply(&release(1, 2)), "that was said of the first time");
    assert!(rosters.apply(&release(1, 4)));
    assert_eq!(reads(&rosters, 3), [1]);
}

#[test]
fn added_partitions_are_spread_like_the_others() {
    let mut rosters = Rosters::default();
    rosters.apply(&join(1, 1));
    rosters.apply(&join(2, 1));
    assert_eq!((reads(&rosters, 1), reads(&rosters, 2)), (vec![0], vec![]));
    assert!(!rosters.apply(&join(2, 1)), "it is a member already");
    assert!(rosters.apply(&join(1, 4)));
    assert_eq!((reads(&rosters, 1), reads(&rosters, 2)), (vec![0, 1], vec![2, 3]));
    assert!(!rosters.apply(&join(1, 3)), "partitions are never taken away");
}

#[derive(Debug, Clone)]
enum Act {
    Join(u64, u32),
    Leave(u64),
    /// Told all that was told up to so many epochs ago.
    Comply(u64, u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0u64..6, 1u32..12).prop_map(|(member, partitions)| Act::Join(member, partitions)),
        (0u64..6).prop_map(Act::Leave),
        (0u64..6, 0u64..3).prop_map(|(member, ago)| Act::Comply(member, ago)),
        (0u64..6, 0u64..1).prop_map(|(member, ago)| Act::Comply(member, ago)),
    ];
    proptest::collection::vec(act, 0..60)
}

/// What a member reads, and what it was told in which epoch.
type Reading = (BTreeSet<u32>, Vec<(u64, BTreeSet<u32>)>);

/// Readers that believe the newest assignment they heard of, and give up only what they say.
#[derive(Default)]
struct Readers {
    /// By member.
    reading: BTreeMap<u64, Reading>,
}

impl Readers {
    /// The member obeys what it was told up to `epoch`, and says so.
    fn comply(&mut self, member: u64, epoch: u64) -> u64 {
        let Some((reads, told)) = self.reading.get_mut(&member) else { return 0 };
        let Some((at, partitions)) = told.iter().rev().find(|(at, _)| *at <= epoch) else {
            return 0;
        };
        reads.retain(|partition| partitions.contains(partition));
        *at
    }

    fn tell(&mut self, rosters: &Rosters) {
        let members = rosters.find(&name()).map_or(&[][..], |roster| roster.members());
        self.reading.retain(|member, _| members.contains(&MemberId(*member)));
        for member in members {
            let partitions: BTreeSet<u32> = reads(rosters, member.0).into_iter().collect();
            let (reading, told) = self.reading.entry(member.0).or_default();
            // It begins at once, and gives up when it comes to it.
            reading.extend(&partitions);
            told.push((rosters.epoch(), partitions));
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: nobody reads what another one reads, also while members
    /// are late to give up; and when all have obeyed, everything is read, evenly.
    #[test]
    fn a_partition_has_one_reader_and_in_the_end_each_has_one(acts in acts()) {
        let mut rosters = Rosters::default();
        let mut readers = Readers::default();
        for act in acts {
            let before = rosters.epoch();
            let command = match act {
                Act::Join(member, partitions) => join(member, partitions),
                Act::Leave(member) => leave(member),
                Act::Comply(member, ago) => {
                    let epoch = rosters.epoch().saturating_sub(ago);
                    release(member, readers.comply(member, epoch))
                }
            };
            let changed = rosters.apply(&command);
            prop_assert_eq!(rosters.epoch() - before, u64::from(changed));
            readers.tell(&rosters);
            let mut seen = BTreeSet::new();
            for (reading, _) in readers.reading.values() {
                prop_assert!(reading.iter().all(|partition| seen.insert(*partition)));
            }
            let mut bytes = Vec::new();
            rosters.encode(&mut bytes);
            let mut fields = Fields(&bytes);
            let read = Rosters::decode(&mut fields);
            prop_assert_eq!(read.as_ref(), Ok(&rosters));
            prop_assert_eq!(fields.end(), Ok(()));
        }
        let Some(roster) = rosters.find(&name()).cloned() else { return Ok(()) };
        for member in roster.members() {
            let complied = readers.comply(member.0, rosters.epoch());
            rosters.apply(&release(member.0, complied));
            readers.tell(&rosters);
        }
        let counts: Vec<usize> = readers.reading.values().map(|(reads, _)| reads.len()).collect();
        prop_assert_eq!(counts.iter().sum::<usize>(), roster.partitions());
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
    }
}
