//! The control lane as its acceptor speaks it: answers, each as it comes.
//!
//! Owns: what was asked and is not answered yet.
//! Never: lets one question wait for another: a replica whose log is slow holds nobody up.
//! Invariants: a newer beat of an address takes the place of an older one that waits, and so does
//! its answer; at most [`ANSWERS_MAX`] other questions wait.

use super::ask::Answers;
use super::beats::{BEATS_GATHER, BEATS_WAITING_MAX};
use super::calls::CALLS_MAX;
use super::link::{Failure, Talk, malformed};
use super::reader::{Admission, admit_content};
use super::replicas::Replicas;
use crate::budget::{Account, Draft};
use crate::seams::BoxFuture;
use futures_util::future::{AbortHandle, abortable};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::{Duration, Instant};
use weir_protocol::peer::limits::{BEATS_MAX, CONTENT_BYTES_MAX};
use weir_protocol::peer::{
    Beaten, Beats, Form, Formed, Forward, Forwarded, GroupAddress, PeerFrame, PeerHead,
    PeerRefusal, Probed, Transferred, Voted,
};
use weir_protocol::types::BrokerId;

/// Questions of one link that wait for their answers: who asks gives up before an answer is late,
/// so that there may be more than it waits for.
const ANSWERS_MAX: usize = 2 * CALLS_MAX;
/// No answer is waited for longer.
const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(60);

/// What became of a question. None: it is answered no more.
enum Said {
    Beaten(Option<Beaten>),
    Answer(Option<PeerFrame>),
}

/// The acceptor of one control lane.
pub(super) struct Answerer {
    from: BrokerId,
    replicas: Arc<dyn Replicas>,
    answers: Arc<dyn Answers>,
    memory: Arc<Account>,
    running: FuturesUnordered<BoxFuture<'static, Said>>,
    /// Beats that wait, with their rounds.
    beats: BTreeMap<GroupAddress, (u32, AbortHandle)>,
    beaten: BTreeMap<GroupAddress, Beaten>,
    /// From when on answers to beats may leave.
    beaten_from: Instant,
    frames: VecDeque<PeerFrame>,
    /// Questions that wait, or whose answers wait to be written.
    asked: usize,
}

impl Answerer {
    pub(super) fn new(
        from: BrokerId,
        replicas: Arc<dyn Replicas>,
        answers: Arc<dyn Answers>,
        memory: Arc<Account>,
    ) -> Self {
        Self {
            from,
            replicas,
            answers,
            memory,
            running: FuturesUnordered::new(),
            beats: BTreeMap::new(),
            beaten: BTreeMap::new(),
            beaten_from: Instant::now(),
            frames: VecDeque::new(),
            asked: 0,
        }
    }

    fn on_beats(&mut self, Beats { round, beats }: Beats) -> Result<(), Failure> {
        for beat in beats {
            let address = beat.address;
            if self.beats.len() >= BEATS_WAITING_MAX && !self.beats.contains_key(&address) {
                return Err(PeerRefusal::Overloaded.into());
            }
            // The replica is told of every beat at once: only the answer may have to wait.
            let (answer, abort) = abortable(self.replicas.beat(beat));
            if let Some((_, older)) = self.beats.insert(address, (round, abort)) {
                older.abort();
            }
            let said = answer.map(move |result| {
                Said::Beaten(result.ok().map(|result| Beaten { round, address, result }))
            });
            self.running.push(said.boxed());
        }
        Ok(())
    }

    /// Waits for an answer beside all others, on account of `draft`.
    fn answer(
        &mut self,
        draft: Option<Draft>,
        answer: impl Future<Output = PeerFrame> + Send + 'static,
    ) -> Result<(), Failure> {
        if self.asked >= ANSWERS_MAX {
            return Err(PeerRefusal::Overloaded.into());
        }
        self.asked += 1;
        let answered = async move {
            let answer = tokio::time::timeout(ANSWER_WITHIN_MAX, answer).await;
            drop(draft);
            Said::Answer(answer.ok())
        };
        self.running.push(answered.boxed());
        Ok(())
    }

    fn on_forward(&mut self, forward: Forward, draft: Option<Draft>) -> Result<(), Failure> {
        let Forward { request, deadline_ms, question } = forward;
        let within = match deadline_ms {
            0 => ANSWER_WITHIN_MAX,
            _ => Duration::from_millis(u64::from(deadline_ms)).min(ANSWER_WITHIN_MAX),
        };
        let answer = self.answers.forward(question, within);
        self.answer(draft, async move {
            PeerFrame::Forwarded(Forwarded { request, answer: answer.await })
        })
    }

    fn on_form(&mut self, form: Form) -> Result<(), Failure> {
        let request = form.request;
        let answer = self.answers.form(form);
        self.answer(
            None,
            async move { PeerFrame::Formed(Formed { request, answer: answer.await }) },
        )
    }

    /// Takes in what has come of questions.
    fn poll_running(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(said)) = self.running.poll_next_unpin(cx) {
            match said {
                Said::Beaten(None) => {}
                Said::Beaten(Some(beaten)) => {
                    let Beaten { round, address, .. } = beaten;
                    if self.beats.get(&address).is_some_and(|(newest, _)| *newest == round) {
                        self.beats.remove(&address);
                    }
                    self.beaten.insert(address, beaten);
                }
                Said::Answer(None) => self.asked -= 1,
                Said::Answer(Some(frame)) => self.frames.push_back(frame),
            }
        }
    }

    fn beaten_due(&self) -> Option<Instant> {
        (!self.beaten.is_empty()).then_some(self.beaten_from)
    }

    fn next_beaten(&mut self, now: Instant) -> Option<PeerFrame> {
        self.beaten_due().filter(|due| *due <= now)?;
        let mut all = Vec::new();
        while all.len() < BEATS_MAX
            && let Some((_, beaten)) = self.beaten.pop_first()
        {
            all.push(beaten);
        }
        if self.beaten.is_empty() {
            self.beaten_from = now + BEATS_GATHER;
        }
        Some(PeerFrame::Beaten(all))
    }
}

impl Talk for Answerer {
    fn admit(&mut self, head: &PeerHead) -> Result<Admission, Failure> {
        admit_content(&self.memory, head, CONTENT_BYTES_MAX)
    }

    fn on_frame(
        &mut self,
        frame: PeerFrame,
        draft: Option<Draft>,
        _now: Instant,
    ) -> Result<(), Failure> {
        match frame {
            PeerFrame::Beats(beats) => self.on_beats(beats),
            PeerFrame::Vote(ask) => {
                let (request, answer) = (ask.request, self.replicas.vote(ask));
                self.answer(None, async move {
                    PeerFrame::Voted(Voted { request, answer: answer.await })
                })
            }
            PeerFrame::Transfer(transfer) => {
                let (request, answer) = (transfer.request, self.replicas.transfer(transfer));
                self.answer(None, async move {
                    PeerFrame::Transferred(Transferred { request, answer: answer.await })
                })
            }
            PeerFrame::News(news) => {
                self.answers.news(self.from, news);
                Ok(())
            }
            PeerFrame::Forward(forward) => self.on_forward(forward, draft),
            PeerFrame::Probe(request) => {
                let probed = Probed { request, ..self.answers.probed() };
                self.answer(None, std::future::ready(PeerFrame::Probed(probed)))
            }
            PeerFrame::Form(form) => self.on_form(form),
            _ => Err(malformed("the frame is no question of the control lane")),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<PeerFrame> {
        self.poll_running(cx);
        if let Some(beaten) = self.next_beaten(now) {
            return Poll::Ready(beaten);
        }
        let Some(frame) = self.frames.pop_front() else { return Poll::Pending };
        self.asked -= 1;
        Poll::Ready(frame)
    }

    fn deadline(&self) -> Option<Instant> {
        self.beaten_due()
    }

    fn is_quiet(&self) -> bool {
        self.asked == 0
    }
}
