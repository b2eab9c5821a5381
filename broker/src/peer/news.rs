//! What this broker tells every other.
//!
//! Owns: the newest news, and which of its rows are newer than what a link has told.
//! Never: keeps what it said before.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use weir_protocol::peer::limits::NEWS_MAX;
use weir_protocol::peer::{Led, News};
use weir_protocol::types::ReplicaId;

/// The newest news of this broker.
#[derive(Default)]
pub(super) struct NewsBoard(Mutex<Board>);

#[derive(Default)]
struct Board {
    /// Counts announcements: 0 = there was none.
    version: u64,
    /// Without rows.
    head: Option<News>,
    /// Each with the announcement that changed it last.
    led: BTreeMap<ReplicaId, (Led, u64)>,
}

impl NewsBoard {
    /// Replaces what was announced before.
    pub(super) fn announce(&self, mut news: News) {
        let mut board = self.board();
        board.version += 1;
        let mut before = std::mem::take(&mut board.led);
        for led in std::mem::take(&mut news.led) {
            let same = before.remove(&led.replica).filter(|(row, _)| *row == led);
            let version = same.map_or(board.version, |(_, version)| version);
            board.led.insert(led.replica, (led, version));
        }
        board.head = Some(news);
    }

    /// What was announced behind version `told` (0: all there is), in frames, and the version that
    /// has been told then.
    pub(super) fn since(&self, told: u64) -> (u64, Vec<News>) {
        let board = self.board();
        let Some(head) = board.head.as_ref().filter(|_| board.version > told) else {
            return (board.version, Vec::new());
        };
        let newer = board.led.values().filter(|(_, version)| *version > told);
        let rows: Vec<Led> = newer.map(|(led, _)| *led).collect();
        let mut frames: Vec<_> =
            rows.chunks(NEWS_MAX).map(|led| News { led: led.to_vec(), ..head.clone() }).collect();
        if frames.is_empty() {
            frames.push(head.clone());
        }
        (board.version, frames)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocol::types::{Offset, Term};

    fn news(rows: impl IntoIterator<Item = (u64, u64)>) -> News {
        let led = rows.into_iter().map(|(replica, bytes)| Led {
            replica: ReplicaId(replica),
            term: Term(1),
            log_start: Offset(0),
            high_watermark: Offset(9),
            bytes,
        });
        News { free_bytes: 5, draining: false, gate: 1, led: led.collect() }
    }

    #[test]
    fn only_rows_that_changed_are_told_again() {
        let board = NewsBoard::default();
        assert_eq!(board.since(0), (0, vec![]));
        board.announce(news([(1, 10), (2, 20)]));
        assert_eq!(board.since(0), (1, vec![news([(1, 10), (2, 20)])]));
        assert_eq!(board.since(1), (1, vec![]));
        board.announce(news([(2, 21), (3, 30)]));
        assert_eq!(board.since(1), (2, vec![news([(2, 21), (3, 30)])]));
        board.announce(News { draining: true, ..news([(2, 21), (3, 30)]) });
        assert_eq!(board.since(2), (3, vec![News { draining: true, ..news([]) }]));
        assert_eq!(board.since(0).1, [News { draining: true, ..news([(2, 21), (3, 30)]) }]);
    }

    #[test]
    fn many_rows_become_several_frames() {
        let board = NewsBoard::default();
        board.announce(news((0..NEWS_MAX as u64 + 1).map(|n| (n, 0))));
        let rows: Vec<_> = board.since(0).1.iter().map(|news| news.led.len()).collect();
        assert_eq!(rows, [NEWS_MAX, 1]);
    }
}
