//! Consumers that share a subscription: who is told what, over deaths and changes of the leader.

use super::*;
use crate::partition::limits::{HAND_OVER_MAX, MEMBER_RETURN_MAX, MEMBER_SILENCE_MAX, TICK};
use weir_protocol::types::BrokerId;

const PARTITIONS: u32 = 4;

fn sharing_world() -> World {
    let mut world = world_of(Overflow::Backpressure);
    world.core.config.partitions = PARTITIONS;
    world.lead();
    world
}

fn stream(serial: u32) -> ConsumerId {
    ConsumerId { connection: 1, serial }
}

impl World {
    fn join(&mut self, serial: u32, member: u64) -> ConsumerId {
        let (id, subscription) = (stream(serial), Name::new("billing").unwrap());
        self.tell(Event::Join { id, subscription, member: MemberId(member) });
        self.commit_all();
        id
    }

    fn present(&mut self, id: ConsumerId, epoch: u64) {
        self.tell(Event::Present { id, epoch });
        self.commit_all();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.tell(Event::Tick);
        self.commit_all();
    }

    /// What a stream was told last: the epoch, and what it reads.
    fn told(&self, id: ConsumerId) -> Option<(u64, Vec<u32>)> {
        self.other.iter().rev().find_map(|effect| match effect {
            Effect::Assigned(to, assignment) if *to == id => {
                let partitions = assignment.partitions.iter().map(|p| p.0).collect();
                Some((assignment.epoch, partitions))
            }
            _ => None,
        })
    }

    fn reads(&self, id: ConsumerId) -> Vec<u32> {
        self.told(id).expect("it was told").1
    }

    fn joined(&self, id: ConsumerId) -> Option<&Result<(), SubscribeRefusal>> {
        self.other.iter().rev().find_map(|effect| match effect {
            Effect::Joined(to, result) if *to == id => Some(result),
            _ => None,
        })
    }

    fn ended(&self, id: ConsumerId) -> Option<&SubscribeRefusal> {
        self.other.iter().rev().find_map(|effect| match effect {
            Effect::Close(to, why) if *to == id => Some(why),
            _ => None,
        })
    }

    /// Another replica takes over, from a checkpoint and the log behind it.
    fn fail_over(&mut self, at: usize) {
        let mut state = State::new();
        let (before, behind) = self.log.split_at(at);
        for (header, commands) in before {
            state.apply(header, commands);
        }
        let mut state = State::decode(state.applied, &state.encode()).unwrap();
        for (header, commands) in behind {
            state.apply(header, commands);
        }
        assert_eq!(state.rosters, self.core.state.rosters);
        self.core = Core::new(self.core.config, state);
        self.term = Term(self.term.0 + 1);
        self.turn = (0, Some(0));
        self.lead();
        self.commit_all();
    }
}

#[test]
fn a_partition_is_handed_over_when_its_reader_has_given_it_up() {
    let mut world = sharing_world();
    let first = world.join(1, 1);
    assert_eq!(world.joined(first), Some(&Ok(())));
    assert_eq!(world.reads(first), [0, 1, 2, 3]);
    let second = world.join(2, 2);
    let (epoch, partitions) = world.told(first).unwrap();
    assert_eq!(partitions, [0, 1]);
    assert!(world.reads(second).is_empty());
    // That it is there says nothing of what it gave up.
    world.present(first, epoch - 1);
    assert!(world.reads(second).is_empty());
    world.present(first, epoch);
    assert_eq!(world.reads(second), [2, 3]);
    // Whoever leaves is waited for by nobody.
    world.tell(Event::Leave(first));
    world.commit_all();
    assert_eq!(world.reads(second), [0, 1, 2, 3]);
    assert!(world.other.iter().any(|effect| matches!(effect, Effect::Left(id) if *id == first)));
}

#[test]
fn nobody_is_told_what_is_not_committed() {
    let mut world = sharing_world();
    let id = stream(1);
    let subscription = Name::new("billing").unwrap();
    world.tell(Event::Join { id, subscription, member: MemberId(1) });
    assert_eq!((world.joined(id), world.told(id)), (None, None));
    // Lost on its way: it is proposed again, after a rest.
    world.refuse(false);
    assert_eq!((world.joined(id), world.told(id)), (None, None));
    world.pass(TICK);
    world.commit_all();
    assert_eq!(world.reads(id), [0, 1, 2, 3]);
}

#[test]
fn who_is_silent_for_too_long_is_replaced_and_who_beats_is_not() {
    let mut world = sharing_world();
    let (first, second) = (world.join(1, 1), world.join(2, 2));
    let (epoch, _) = world.told(first).unwrap();
    world.present(first, epoch);
    // The connection of the first one ends; its member might come back.
    world.tell(Event::Closed(first));
    for _ in 0..3 {
        world.pass(MEMBER_RETURN_MAX / 4);
        world.present(second, 0);
        assert_eq!(world.reads(second), [2, 3]);
    }
    world.pass(MEMBER_RETURN_MAX / 4);
    assert_eq!(world.reads(second), [0, 1, 2, 3], "3 s behind its end");
    // It does come back, as another member among those that are there.
    let back = world.join(3, 1);
    assert!(world.reads(back).is_empty());
    let (epoch, partitions) = world.told(second).unwrap();
    assert_eq!(partitions.len(), 2);
    world.present(second, epoch);
    assert_eq!(world.reads(back).len(), 2);
}

#[test]
fn a_member_that_comes_back_in_time_goes_on_as_it_was() {
    let mut world = sharing_world();
    let (first, _) = (world.join(1, 1), world.join(2, 2));
    let (epoch, _) = world.told(first).unwrap();
    world.present(first, epoch);
    world.tell(Event::Closed(first));
    world.pass(MEMBER_RETURN_MAX / 2);
    let (commands, back) = (world.log.len(), world.join(3, 1));
    assert_eq!(world.reads(back), [0, 1]);
    assert_eq!(world.log.len(), commands, "nothing changed");
    // A newer stream of the same member takes the place of the older one.
    let newer = world.join(4, 1);
    assert_eq!(world.ended(back), Some(&SubscribeRefusal::TakenOver));
    assert_eq!(world.reads(newer), [0, 1]);
}

#[test]
fn a_silent_stream_is_ended_and_who_holds_on_is_overruled() {
    let mut world = sharing_world();
    let (first, second) = (world.join(1, 1), world.join(2, 2));
    // The first one beats, and gives nothing up.
    let quarter = HAND_OVER_MAX / 4;
    for _ in 0..3 {
        world.pass(quarter);
        world.present(first, 0);
        world.present(second, 0);
        assert!(world.reads(second).is_empty());
    }
    world.pass(quarter);
    assert_eq!(world.reads(second), [2, 3]);
    for _ in 0..4 {
        world.pass(MEMBER_SILENCE_MAX / 4);
        world.present(first, 0);
    }
    assert_eq!(world.ended(second), Some(&SubscribeRefusal::Silent));
    assert_eq!(world.reads(first), [0, 1, 2, 3]);
}

#[test]
fn the_roster_survives_its_leader_and_so_does_a_hand_over() {
    for at in 0..2 {
        let mut world = sharing_world();
        let first = world.join(1, 1);
        world.join(2, 2);
        let (epoch, _) = world.told(first).unwrap();
        world.fail_over(at);
        // The new leader knows that the first one holds all, until that says otherwise.
        let again = world.join(4, 2);
        assert!(world.reads(again).is_empty());
        let again_first = world.join(3, 1);
        assert_eq!(world.reads(again_first), [0, 1]);
        world.present(again_first, epoch);
        assert_eq!(world.reads(again), [2, 3]);
    }
}

#[test]
fn a_new_leader_waits_for_members_as_long_as_any() {
    let mut world = sharing_world();
    world.join(1, 1);
    world.join(2, 2);
    world.fail_over(1);
    let second = world.join(3, 2);
    world.pass(MEMBER_SILENCE_MAX - Duration::from_millis(1));
    world.present(second, 0);
    assert!(world.reads(second).is_empty());
    world.pass(Duration::from_millis(1));
    assert_eq!(world.reads(second), [0, 1, 2, 3]);
}

#[test]
fn a_deposed_leader_sends_members_to_the_new_one() {
    let mut world = sharing_world();
    world.sole_voter = false;
    let first = world.join(1, 1);
    let hint = Some((BrokerId(7), Term(2)));
    let mut seen = world.seen(Role::Follower { leader: None }, None);
    seen.leader = Some(hint);
    world.tell(Event::Replica(seen));
    assert_eq!(world.ended(first), Some(&SubscribeRefusal::NotLeader(hint)));
    let late = stream(9);
    let subscription = Name::new("billing").unwrap();
    world.tell(Event::Join { id: late, subscription, member: MemberId(5) });
    assert_eq!(world.joined(late), Some(&Err(SubscribeRefusal::NotLeader(hint))));
    assert_eq!(world.core.members(), 0);
}

#[test]
fn added_partitions_are_read_without_anybody_asking() {
    let mut world = sharing_world();
    let first = world.join(1, 1);
    let config = TopicConfig { partitions: 6, ..world.core.config };
    world.tell(Event::Configure(config));
    world.commit_all();
    assert_eq!(world.reads(first), [0, 1, 2, 3, 4, 5]);
}

impl World {
    fn subscribe_under(&mut self, serial: u32, epoch: u64) -> ConsumerId {
        let id = stream(serial);
        let registers = Registers { limit_bytes: 1 << 20, limit_messages: 100, lane_free: true };
        self.registers.insert(id, registers);
        let subscription = Some(Name::new("billing").unwrap());
        let (start, needs) = (Start::Earliest, Needs { epoch, ..Needs::default() });
        self.tell(Event::Subscribe(Arriving { id, subscription, start, needs, registers }));
        self.commit_all();
        id
    }
}

#[test]
fn an_older_assignment_reads_nothing_beside_a_newer_one() {
    let mut world = sharing_world();
    let older = world.subscribe_under(1, 5);
    let newer = world.subscribe_under(2, 7);
    assert_eq!(world.ended(older), Some(&SubscribeRefusal::Generation));
    let refused = world.subscribe_under(3, 6);
    assert_eq!(world.subscribed(refused), Err(SubscribeRefusal::Generation));
    assert_eq!(world.ended(newer), None);
    // Its own next stream is no older one.
    let again = world.subscribe_under(4, 7);
    assert!(world.subscribed(again).is_ok());
    // Who shares with nobody takes over, and is told so when it is replaced.
    let alone = world.subscribe_under(5, 0);
    assert_eq!(world.ended(again), Some(&SubscribeRefusal::TakenOver));
    world.subscribe_under(6, 7);
    assert_eq!(world.ended(alone), Some(&SubscribeRefusal::TakenOver));
}
