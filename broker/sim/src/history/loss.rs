//! Owns: check 1: what the final drains lack, and where in the log it was.
//! Never: takes a delivery to a consumer for proof that a record is still there.

use super::consumer::Reading;
use super::event::Message;
use super::finding::{Check, Loss, Report, Time};
use super::log::{NEVER, PartitionLog, Published, Stage};
use std::ops::Range;

/// Judges one replica's drain, at the end of the history.
pub(super) fn judge_drain(
    end_ns: u64,
    partition: u16,
    reading: &Reading,
    log: &PartitionLog,
    r: &mut Report,
) {
    let Some((replica, end)) = reading.ended else { return };
    let lost = lost_offsets(partition, reading, end, log);
    let nowhere: Vec<Message> = without_offset(partition, reading, log).collect();
    if lost.is_empty() && nowhere.is_empty() {
        return;
    }
    let loss = classify(partition, replica, (reading, log), &lost, nowhere.len() as u32);
    let first = First { message: nowhere.first().copied(), offset: lost.first().copied() };
    let text = format_args!(
        "partition {partition} on replica {replica} lost {} records, {} survived: {} before, {} \
         between, {} behind them, {} of unknown offset; the first is {}",
        loss.total(),
        loss.survived,
        loss.prefix,
        loss.middle,
        loss.postfix,
        loss.nowhere,
        first.describe(partition, log)
    );
    r.add(Check::NoLoss, end_ns, text);
    r.losses.push(loss);
}

/// Offsets that should have been in the drain, rising.
fn lost_offsets(partition: u16, reading: &Reading, end: u32, log: &PartitionLog) -> Vec<u32> {
    let log_start = log.log_start_at(reading.began_ns);
    let head = log_start..reading.from;
    let tail = reading.next..end;
    // The drain may have ended before what was stored while it ran.
    let beyond = (end.max(reading.next)..log.known_end).filter(|offset| {
        log.at(partition, *offset).is_some_and(|(_, one)| one.known_ns < reading.began_ns)
    });
    let holes = reading.missing.iter().cloned();
    std::iter::once(head)
        .chain(holes)
        .chain(std::iter::once(tail))
        .flat_map(Range::into_iter)
        .chain(beyond)
        .filter(|offset| *offset >= log_start && !log.is_damaged(*offset))
        .collect()
}

/// Acknowledged messages that were never seen at any offset, and that no trim can have taken: their
/// producer's messages around them bound where they were.
fn without_offset<'a>(
    partition: u16,
    reading: &'a Reading,
    log: &'a PartitionLog,
) -> impl Iterator<Item = Message> + 'a {
    let log_start = log.log_start();
    log.by_producer().enumerate().flat_map(move |(producer, all)| {
        let mut above = 0;
        all.iter().enumerate().filter_map(move |(sequence, one)| {
            if let Some(offset) = one.offset {
                above = offset + 1;
            }
            let producer = producer as u16;
            let message = Message { producer, partition, sequence: sequence as u32 };
            (is_owed(one, reading) && above >= log_start).then_some(message)
        })
    })
}

fn is_owed(one: &Published, reading: &Reading) -> bool {
    one.stage == Stage::Stored && one.offset.is_none() && one.acknowledged_ns < reading.began_ns
}

fn classify(
    partition: u16,
    replica: u8,
    (reading, log): (&Reading, &PartitionLog),
    lost: &[u32],
    nowhere: u32,
) -> Loss {
    let survived = reading.survived;
    let is_lost = |offset: &u32| lost.binary_search(offset).is_ok() || log.is_damaged(*offset);
    let first = (reading.from..reading.next).find(|offset| !is_lost(offset));
    let last = reading.next.checked_sub(1);
    let mut loss = Loss { partition, replica, survived, prefix: 0, middle: 0, postfix: 0, nowhere };
    for offset in lost {
        let place = match (first, last) {
            (Some(first), _) if *offset < first => &mut loss.prefix,
            (Some(_), Some(last)) if *offset < last => &mut loss.middle,
            _ => &mut loss.postfix,
        };
        *place += 1;
    }
    loss
}

/// What a report names first.
struct First {
    message: Option<Message>,
    offset: Option<u32>,
}

impl First {
    fn describe(&self, partition: u16, log: &PartitionLog) -> String {
        let at_offset = self.offset.map(|offset| (offset, log.at(partition, offset)));
        match (at_offset, self.message) {
            (Some((offset, Some((message, one)))), _) => {
                format!("offset {offset}, {message}, {}", since(one))
            }
            (Some((offset, None)), _) => format!("offset {offset}, which nobody ever read"),
            (None, Some(message)) => match log.find(message) {
                Some(one) => format!("{message}, {}", since(one)),
                None => message.to_string(),
            },
            (None, None) => String::new(),
        }
    }
}

fn since(one: &Published) -> String {
    match (one.acknowledged_ns, one.known_ns) {
        (NEVER, NEVER) => "never known".to_owned(),
        (NEVER, known_ns) => format!("first delivered at {}", Time(known_ns)),
        (acknowledged_ns, _) => format!("acknowledged at {}", Time(acknowledged_ns)),
    }
}
