//! How records leave the model but by a settle: they expire, are trimmed, and some come back.

use super::{Model, Place, STREAM};
use weir_sim::history::{Exit, What};

impl Model {
    pub(super) fn expire(&mut self, partition: u16) {
        let subscription = self.random.u16(1..=2);
        let now_ready = |(place, _): &(Place, u16)| *place == Place::Ready;
        let of = &mut self.partitions[usize::from(partition)];
        let Some(queue) = of.queues.get_mut(&subscription) else { return };
        if let Some(offset) = queue.places.iter().position(now_ready) {
            queue.places[offset].0 = Place::Out { parked_ns: Some(self.now_ns) };
            let exit = if self.random.bool() { Exit::Expired } else { Exit::DeadLettered };
            self.note(What::Exit { subscription, partition, offset: offset as u32, exit });
        }
    }

    pub(super) fn redrive(&mut self, partition: u16) {
        let subscription = self.random.u16(1..=2);
        let now_ns = self.now_ns;
        let log_start = self.partitions[usize::from(partition)].log_start as usize;
        let of = &mut self.partitions[usize::from(partition)];
        let Some(queue) = of.queues.get_mut(&subscription) else { return };
        // The operator reads the list of parked records after those who parked were answered.
        let is_old = |(place, _): &(Place, u16)| matches!(place, Place::Out { parked_ns: Some(at) } if at + 20_000_000 < now_ns);
        let found = queue.places.iter().position(is_old).filter(|offset| *offset >= log_start);
        if let Some(offset) = found {
            queue.places[offset].0 = Place::Ready;
            self.note(What::Redriven { subscription, partition, offset: offset as u32 });
        }
    }

    /// Trims what every subscription has settled; where the policy is `expire`, what none holds.
    pub(super) fn trim(&mut self, partition: u16) {
        let expires = self.random.u32(..3) == 0;
        let of = &mut self.partitions[usize::from(partition)];
        let is_left = |place: &Place| match place {
            Place::Leased { .. } => true,
            Place::Ready => !expires,
            Place::Settled | Place::Out { .. } => false,
        };
        let floors = of.queues.values().map(|queue| {
            let first = queue.places.iter().position(|(place, _)| is_left(place));
            first.unwrap_or(queue.places.len()) as u32
        });
        let stream = if expires { of.log.len() as u32 } else { of.cursor };
        let log_start = floors.min().unwrap_or(0).min(stream).max(of.log_start);
        if log_start == of.log_start {
            return;
        }
        let mut exits = Vec::new();
        for offset in of.cursor..log_start {
            exits.push((STREAM, offset));
        }
        for (subscription, queue) in &mut of.queues {
            for (offset, (place, _)) in (0..log_start).zip(&mut queue.places) {
                if *place == Place::Ready {
                    *place = Place::Out { parked_ns: None };
                    exits.push((*subscription, offset));
                }
            }
        }
        of.cursor = of.cursor.max(log_start);
        of.log_start = log_start;
        self.note(What::Trim { partition, log_start });
        for (subscription, offset) in exits {
            self.note(What::Exit { subscription, partition, offset, exit: Exit::Expired });
        }
    }
}
