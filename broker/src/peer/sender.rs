//! The bulk lane as its dialer speaks it: streams of appends, snapshots, and fetches.
//!
//! Owns: when streams without an answer are looked for.
//! Never: sends what credit does not cover; repeats anything.

use super::bulk::Bulk;
use super::link::{Failure, Talk, malformed};
use super::reader::{Admission, admit_content};
use crate::budget::{Account, Draft};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::{Duration, Instant};
use weir_protocol::peer::limits::APPEND_BYTES_MAX;
use weir_protocol::peer::{Fetched, PeerFrame, PeerHead};

/// How often streams without an answer are looked for.
const IDLE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// The dialer of one bulk lane.
pub(super) struct Sender {
    bulk: Arc<Bulk>,
    memory: Arc<Account>,
    /// When to look, while anything may be under way.
    check: Option<Instant>,
}

impl Sender {
    pub(super) fn new(bulk: Arc<Bulk>, memory: Arc<Account>) -> Self {
        bulk.open();
        Self { bulk, memory, check: None }
    }
}

impl Talk for Sender {
    fn admit(&mut self, head: &PeerHead) -> Result<Admission, Failure> {
        admit_content(&self.memory, head, APPEND_BYTES_MAX)
    }

    fn on_frame(
        &mut self,
        frame: PeerFrame,
        _draft: Option<Draft>,
        now: Instant,
    ) -> Result<(), Failure> {
        match frame {
            PeerFrame::Fetched(Fetched { request, .. }) => self.bulk.calls.answer(request, frame),
            PeerFrame::Grant(stream, grant) => self.bulk.on_grant(stream, &grant, now),
            PeerFrame::Appended(appended) => self.bulk.on_appended(&appended, now)?,
            PeerFrame::SnapshotDone(stream, answer) => self.bulk.on_snapshot_done(stream, answer),
            _ => return Err(malformed("the frame is no answer of the bulk lane")),
        }
        Ok(())
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<PeerFrame> {
        if self.check.is_some_and(|check| check <= now) {
            self.check = self.bulk.check_idle(now).then_some(now + IDLE_CHECK_EVERY);
        }
        let Some(frame) = self.bulk.next(cx, now) else { return Poll::Pending };
        self.check.get_or_insert(now + IDLE_CHECK_EVERY);
        Poll::Ready(frame)
    }

    fn deadline(&self) -> Option<Instant> {
        self.check
    }

    fn leave(&mut self) {
        self.bulk.leave();
    }

    fn is_quiet(&self) -> bool {
        self.bulk.is_quiet()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.bulk.close();
    }
}
