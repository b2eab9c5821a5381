//! Owns: the order of pulling, sending and answering in one stream of appends.
//! Invariants: what is pulled is sent before the next is pulled, so that the engine never reads
//! ahead of what the follower has room for; answers go first, and the stream ends behind the first
//! that is none; who owes an answer and is silent is given up, because a trim waits for it.

use super::{Answer, answer_of, lost};
use crate::replication::engine::{self, Types};
use crate::replication::peers::{AppendStream, PeerLost};
use crate::replication::receive;
use futures_util::{Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::{Duration, Instant, Sleep};
use weir_protocol::peer::{Append, AppendResult};
use weir_protocol::types::{Index, StreamId};

/// A stream that the carrier has not numbered yet.
const UNNUMBERED: StreamId = StreamId(0);

/// A follower that owes an answer may take so long for the next one. Far more than a flush takes, and
/// not the engine's limit, which is that of a beat.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// One stream of the engine on its way to a follower.
pub(super) struct Appends<S> {
    input: S,
    stream: Box<dyn AppendStream>,
    pulled: Option<Append>,
    /// Where the log ends that is sent; an answer for it stands for everything.
    sent_to: Index,
    /// Counts while an answer is owed.
    patience: Pin<Box<Sleep>>,
    owed: bool,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    /// Nothing was pulled yet: nothing may fail.
    Fresh,
    Open,
    /// The engine has no more to send.
    Closed,
    Ended,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Appends<S> {
    pub(super) fn new(input: S, stream: Box<dyn AppendStream>) -> Self {
        let patience = Box::pin(tokio::time::sleep(ANSWER_WITHIN));
        let (pulled, sent_to) = (None, Index(0));
        Self { input, stream, pulled, sent_to, patience, owed: false, state: State::Fresh }
    }

    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        loop {
            if matches!(self.state, State::Open | State::Closed)
                && let Poll::Ready(answer) = self.stream.poll_answer(context)
            {
                self.note(answer.as_ref());
                let answer = answer.map(answer_of);
                if !matches!(answer, Some(Ok(Ok(_)))) {
                    self.state = State::Ended;
                }
                return Poll::Ready(answer);
            }
            match self.state {
                State::Ended => return Poll::Ready(None),
                State::Closed => return self.poll_patience(context),
                State::Fresh | State::Open => {}
            }
            match self.poll_send(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return self.give_up(error),
                Poll::Pending => return self.poll_patience(context),
            }
        }
    }

    /// Nothing can be done but wait: ends the stream if that takes too long.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        if self.owed && self.patience.as_mut().poll(context).is_ready() {
            return self.give_up(PeerLost::Unreachable);
        }
        Poll::Pending
    }

    fn give_up(&mut self, error: PeerLost) -> Poll<Option<Answer>> {
        self.state = State::Ended;
        Poll::Ready(Some(Err(lost(error))))
    }

    /// An answer came; others may still be owed.
    fn note(&mut self, answer: Option<&Result<AppendResult, PeerLost>>) {
        if let Some(Ok(AppendResult::Flushed(place))) = answer {
            self.owed = self.pulled.is_some() || place.index < self.sent_to;
            self.be_patient();
        }
    }

    fn be_patient(&mut self) {
        self.patience.as_mut().reset(Instant::now() + ANSWER_WITHIN);
    }

    /// Pulls one request and sends it.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
        if self.pulled.is_none() {
            let Some(request) = ready!(self.input.poll_next_unpin(context)) else {
                self.stream.close();
                self.state = State::Closed;
                return Poll::Ready(Ok(()));
            };
            self.state = State::Open;
            self.sent_to = end_of(&request);
            self.pulled = Some(append_of(&request));
            if !std::mem::replace(&mut self.owed, true) {
                self.be_patient();
            }
        }
        ready!(self.stream.poll_ready(context))?;
        if let Some(append) = self.pulled.take() {
            self.stream.send(append);
        }
        Poll::Ready(Ok(()))
    }
}

/// Where the follower's log ends, or is known to, once it has this.
fn end_of(request: &AppendEntriesRequest<Types>) -> Index {
    let last = request.entries.last().map(|record| record.log_id);
    engine::place_from(last.or(request.prev_log_id).as_ref()).index
}

fn append_of(request: &AppendEntriesRequest<Types>) -> Append {
    Append {
        stream: UNNUMBERED,
        number: 0,
        vote: engine::vote_from(&request.vote),
        prev: engine::place_from(request.prev_log_id.as_ref()),
        commit: engine::place_from(request.leader_commit.as_ref()),
        parts: receive::parts_of(&request.entries),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::peers::NoPeers;
    use futures_util::stream;
    use openraft::errors::RPCError;
    use weir_protocol::peer::LogPlace;
    use weir_protocol::types::Term;

    /// Takes everything, and answers as far as it is told, every eight seconds.
    struct Slow {
        answers: Vec<u64>,
        next: Pin<Box<Sleep>>,
    }

    const PAUSE: Duration = Duration::from_secs(8);

    impl AppendStream for Slow {
        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
            Poll::Ready(Ok(()))
        }

        fn send(&mut self, _append: Append) {}

        fn close(&mut self) {}

        fn poll_answer(
            &mut self,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<AppendResult, PeerLost>>> {
            if self.answers.is_empty() {
                return Poll::Pending;
            }
            ready!(self.next.as_mut().poll(context));
            self.next.as_mut().reset(Instant::now() + PAUSE);
            let index = Index(self.answers.remove(0));
            Poll::Ready(Some(Ok(AppendResult::Flushed(LogPlace { term: Term(1), index }))))
        }
    }

    /// Requests without records, each behind the next index.
    fn requests(count: u64) -> impl Stream<Item = AppendEntriesRequest<Types>> + Unpin {
        let request = |index| AppendEntriesRequest {
            vote: engine::vote_of(weir_protocol::peer::Vote::default()),
            prev_log_id: engine::log_id(1, Index(index)),
            entries: Vec::new(),
            leader_commit: None,
        };
        stream::iter((1..=count).map(request)).chain(stream::pending())
    }

    /// The answers of a stream of three requests, and when the stream ended.
    async fn answers_of(answers: Vec<u64>) -> (Vec<Answer>, Option<Duration>) {
        let start = Instant::now();
        let slow = Slow { answers, next: Box::pin(tokio::time::sleep(PAUSE)) };
        let mut appends = Appends::new(requests(3), Box::new(slow));
        let answers = stream::poll_fn(|context| appends.poll_answer(context));
        let ended = std::cell::Cell::new(None);
        let all = answers.inspect(|_| ended.set(Some(start.elapsed()))).collect();
        let seen = tokio::time::timeout(Duration::from_secs(3600), all).await;
        (seen.unwrap_or_default(), ended.get())
    }

    #[tokio::test(start_paused = true)]
    async fn who_owes_an_answer_and_is_silent_is_given_up() {
        for (answered, seconds) in [(vec![], 10), (vec![1], 18), (vec![1, 2], 26)] {
            let (answers, ended) = answers_of(answered.clone()).await;
            assert_eq!(answers.len(), answered.len() + 1, "{answered:?}");
            assert!(matches!(answers.last(), Some(Err(RPCError::Unreachable(_)))));
            assert_eq!(ended.unwrap().as_secs(), seconds, "{answered:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_answered_for_everything_may_be_silent() {
        for answered in [vec![1, 2, 3], vec![3]] {
            let (answers, last) = answers_of(answered).await;
            assert!(answers.is_empty(), "the stream still goes on after an hour");
            assert!(last.unwrap().as_secs() <= 24, "nothing came since the last answer");
        }
    }

    #[tokio::test]
    async fn a_stream_of_appends_pulls_before_it_fails() {
        let mut pulls = 0;
        let input = stream::poll_fn(|_| {
            pulls += 1;
            Poll::Ready(None)
        });
        let mut appends = Appends::new(input, Box::new(NoPeers));
        let answers = stream::poll_fn(|context| appends.poll_answer(context));
        let answers: Vec<_> = answers.collect().await;
        assert!(matches!(answers[..], [Err(RPCError::Unreachable(_))]));
        assert_eq!(pulls, 1);
    }
}
