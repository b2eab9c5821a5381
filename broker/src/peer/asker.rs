//! The control lane as its dialer speaks it: questions, beats and news.
//!
//! Owns: the order in which what waits leaves: beats first, for leases hang on them.
//! Never: decides what is asked.

use super::beats::BeatsOut;
use super::calls::Calls;
use super::link::{Failure, Talk, malformed};
use super::news::NewsBoard;
use super::reader::{Admission, admit_content};
use crate::budget::{Account, Draft};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::{Duration, Instant};
use weir_protocol::peer::limits::CONTENT_BYTES_MAX;
use weir_protocol::peer::{Formed, Forwarded, PeerFrame, PeerHead, Probed, Transferred, Voted};

/// All news are told again this often, so that nothing lost stays lost.
const ALL_NEWS_EVERY: Duration = Duration::from_secs(10);

/// What waits for a link to one broker's control lane.
#[derive(Default)]
pub(super) struct Control {
    pub(super) calls: Calls,
    pub(super) beats: BeatsOut,
}

/// The dialer of one control lane.
pub(super) struct Asker {
    control: Arc<Control>,
    news: Arc<NewsBoard>,
    memory: Arc<Account>,
    /// The announcement up to which everything was told.
    told: u64,
    all_news: Instant,
    frames: VecDeque<PeerFrame>,
}

impl Asker {
    pub(super) fn new(control: Arc<Control>, news: Arc<NewsBoard>, memory: Arc<Account>) -> Self {
        control.calls.open();
        control.beats.open();
        let all_news = Instant::now() + ALL_NEWS_EVERY;
        Self { control, news, memory, told: 0, all_news, frames: VecDeque::new() }
    }

    fn gather_news(&mut self, now: Instant) {
        if now >= self.all_news {
            self.told = 0;
            self.all_news = now + ALL_NEWS_EVERY;
        }
        let (told, news) = self.news.since(self.told);
        self.told = told;
        self.frames.extend(news.into_iter().map(PeerFrame::News));
    }
}

impl Talk for Asker {
    fn admit(&mut self, head: &PeerHead) -> Result<Admission, Failure> {
        admit_content(&self.memory, head, CONTENT_BYTES_MAX)
    }

    fn on_frame(
        &mut self,
        frame: PeerFrame,
        _draft: Option<Draft>,
        _now: Instant,
    ) -> Result<(), Failure> {
        let request = match &frame {
            PeerFrame::Beaten(all) => {
                all.iter().for_each(|beaten| self.control.beats.beaten(beaten));
                return Ok(());
            }
            PeerFrame::Voted(Voted { request, .. })
            | PeerFrame::Transferred(Transferred { request, .. })
            | PeerFrame::Forwarded(Forwarded { request, .. })
            | PeerFrame::Probed(Probed { request, .. })
            | PeerFrame::Formed(Formed { request, .. }) => *request,
            _ => return Err(malformed("the frame is no answer of the control lane")),
        };
        self.control.calls.answer(request, frame);
        Ok(())
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<PeerFrame> {
        if let Some(beats) = self.control.beats.next(cx, now) {
            return Poll::Ready(PeerFrame::Beats(beats));
        }
        if let Some(question) = self.control.calls.next(cx) {
            return Poll::Ready(question);
        }
        if self.frames.is_empty() {
            self.gather_news(now);
        }
        self.frames.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn deadline(&self) -> Option<Instant> {
        let due = self.control.beats.due();
        Some(due.map_or(self.all_news, |due| due.min(self.all_news)))
    }

    fn leave(&mut self) {
        self.control.calls.leave();
        self.control.beats.leave();
    }

    fn is_quiet(&self) -> bool {
        self.control.calls.is_quiet()
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.control.calls.close();
        self.control.beats.close();
    }
}
