//! Owns: the order of pulling, sending and answering in one stream of appends.
//! Invariants: what is pulled is sent before the next is pulled, so that the engine never reads
//! ahead of what the follower has room for, but for what it is known to have: that is answered here,
//! while nothing else is owed (a new leader searches its whole log for where that of a follower ends,
//! half of it at a time); answers go first, and the stream ends behind the first
//! that is none; who owes an answer and is silent is given up, because a trim waits for it.

use super::{Answer, Follower, answer_of, lost};
use crate::replication::engine::{self, Types};
use crate::replication::peers::{AppendStream, PeerLost};
use crate::replication::receive;
use futures_util::{Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::{Duration, Instant, Sleep};
use weir_protocol::peer::{Append, AppendResult, LogPlace};
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
    follower: Follower,
    pulled: Option<Pulled>,
    /// The end of what was pulled and is there already.
    known: Option<LogPlace>,
    /// Where the log ends that is sent; an answer for it stands for everything.
    sent_to: Index,
    /// Counts while an answer is owed.
    patience: Pin<Box<Sleep>>,
    owed: bool,
    state: State,
}

/// A request that was not sent yet.
struct Pulled {
    append: Append,
    /// Where the follower's log ends once it has this.
    end: Index,
    /// It helps a follower catch up, and waits until that may go on; nobody owes an answer for it.
    turn: Option<Pin<Box<Sleep>>>,
}

#[derive(PartialEq, Eq)]
enum State {
    /// Nothing was pulled yet: nothing may fail.
    Fresh,
    /// Everything so far was answered here: the carrier has begun nothing that it could end.
    Here,
    Open,
    /// The engine has no more to send.
    Closed,
    Ended,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Appends<S> {
    pub(super) fn new(input: S, stream: Box<dyn AppendStream>, follower: Follower) -> Self {
        let patience = Box::pin(tokio::time::sleep(ANSWER_WITHIN));
        let (pulled, known, sent_to) = (None, None, Index(0));
        let (owed, state) = (false, State::Fresh);
        Self { input, stream, follower, pulled, known, sent_to, patience, owed, state }
    }

    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        loop {
            if let Some(place) = self.known.take() {
                let answer = Some(Ok(AppendResult::Flushed(place)));
                self.note(answer.as_ref());
                return Poll::Ready(answer.map(answer_of));
            }
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
                State::Fresh | State::Here | State::Open => {}
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
            let waits_for_credit = self.pulled.as_ref().is_some_and(|it| it.turn.is_none());
            self.owed = waits_for_credit || place.index < self.sent_to;
            self.follower.flushed(place.index);
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
                let is_here = self.state == State::Here;
                self.state = if is_here { State::Ended } else { State::Closed };
                return Poll::Ready(Ok(()));
            };
            self.pull(&request);
            let is_here = self.known.is_some();
            self.state = match self.state {
                State::Fresh | State::Here if is_here => State::Here,
                _ => State::Open,
            };
            if is_here {
                return Poll::Ready(Ok(()));
            }
        }
        ready!(self.poll_turn(context));
        ready!(self.stream.poll_ready(context))?;
        if let Some(pulled) = self.pulled.take() {
            self.stream.send(pulled.append);
        }
        Poll::Ready(Ok(()))
    }

    fn pull(&mut self, request: &AppendEntriesRequest<Types>) {
        let (term, end) = (engine::vote_from(&request.vote).term, end_of(request));
        // One without records says how much is committed.
        if !self.owed && !request.entries.is_empty() && self.follower.has(term, end) {
            self.known = Some(end);
            return;
        }
        let append = append_of(request);
        let catches_up = self.follower.catches_up(append.prev.index);
        let at = catches_up.map(|presses| self.stream.catch_up(append.cost(), presses));
        let later = at.filter(|at| *at > Instant::now());
        let turn = later.map(|at| Box::pin(tokio::time::sleep_until(at)));
        let is_held = turn.is_some();
        self.pulled = Some(Pulled { append, end: end.index, turn });
        if !is_held {
            self.owe();
        }
    }

    /// Ready when what was pulled may go on.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(pulled) = &mut self.pulled else { return Poll::Ready(()) };
        if let Some(turn) = &mut pulled.turn {
            ready!(turn.as_mut().poll(context));
            pulled.turn = None;
            self.owe();
        }
        Poll::Ready(())
    }

    /// From now on an answer is owed for what was pulled.
    fn owe(&mut self) {
        self.sent_to = self.pulled.as_ref().map_or(self.sent_to, |pulled| pulled.end);
        if !std::mem::replace(&mut self.owed, true) {
            self.be_patient();
        }
    }
}

/// Where the follower's log ends, or is known to, once it has this.
fn end_of(request: &AppendEntriesRequest<Types>) -> LogPlace {
    let last = request.entries.last().map(|record| record.log_id);
    engine::place_from(last.or(request.prev_log_id).as_ref())
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
    use super::super::catch_up::tests::followers;
    use super::*;
    use crate::replication::engine::EngineEntry;
    use crate::replication::payload::{Batches, Record};
    use crate::replication::peers::NoPeers;
    use futures_util::stream;
    use openraft::errors::RPCError;
    use weir_protocol::peer::Vote;
    use weir_protocol::types::{ReplicaId, Term};

    /// Takes everything, and answers as far as it is told, every eight seconds.
    struct Slow {
        answers: Vec<u64>,
        next: Pin<Box<Sleep>>,
        /// What is catch-up goes so long after it was asked for.
        turn: Duration,
        sent: u64,
    }

    const PAUSE: Duration = Duration::from_secs(8);

    impl AppendStream for Slow {
        fn catch_up(&mut self, _cost: u64, presses: bool) -> Instant {
            assert!(presses, "no other follower is known");
            Instant::now() + self.turn
        }

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
            Poll::Ready(Ok(()))
        }

        fn send(&mut self, _append: Append) {
            self.sent += 1;
        }

        fn close(&mut self) {}

        fn poll_answer(
            &mut self,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<AppendResult, PeerLost>>> {
            if self.answers.first().is_none_or(|index| *index > self.sent) {
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
        answers_behind(3, Duration::ZERO, answers).await
    }

    /// The same, to a follower of a log with so many indexes of 1 MiB.
    async fn answers_behind(
        last: u64,
        turn: Duration,
        answers: Vec<u64>,
    ) -> (Vec<Answer>, Option<Duration>) {
        let start = Instant::now();
        let slow = Slow { answers, next: Box::pin(tokio::time::sleep(PAUSE)), turn, sent: 0 };
        let mut appends = Appends::new(requests(3), Box::new(slow), follower_of(last));
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

    /// A carrier that waits for what it was never given.
    struct Idle;

    impl AppendStream for Idle {
        fn catch_up(&mut self, _cost: u64, _presses: bool) -> Instant {
            unreachable!("nothing is to be sent")
        }

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
            Poll::Pending
        }

        fn send(&mut self, _append: Append) {
            unreachable!("nothing is to be sent")
        }

        fn close(&mut self) {}

        fn poll_answer(
            &mut self,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<AppendResult, PeerLost>>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_for_the_end_of_a_voters_log_is_answered_without_it() {
        let record = |index| EngineEntry {
            log_id: engine::log_id(1, Index(index)).unwrap(),
            payload: Record { batches: Batches::Stored(Vec::new()), membership: None, held: None },
        };
        let request = |last: u64, records: u64| AppendEntriesRequest {
            vote: engine::vote_of(Vote { term: Term(2), replica: ReplicaId(1), committed: true }),
            prev_log_id: engine::log_id(1, Index(last - records)),
            entries: (last - records + 1..=last).map(record).collect(),
            leader_commit: None,
        };
        let followers = followers(100, &[&[1, 2]]);
        let follower = || Follower { all: followers.clone(), replica: ReplicaId(2) };
        let place = |index| LogPlace { term: Term(1), index: Index(index) };
        followers.granted(ReplicaId(2), Term(2), place(90));
        // A search is one request; its carrier is never asked for a stream, and could not end one.
        let mut search = Appends::new(stream::iter([request(60, 8)]), Box::new(Idle), follower());
        let answers = stream::poll_fn(|context| search.poll_answer(context));
        assert_eq!(answers.count().await, 1);

        let input = stream::iter([request(60, 8), request(90, 8), request(98, 8), request(98, 0)]);
        let slow = Slow {
            answers: vec![1, 2],
            next: Box::pin(tokio::time::sleep(PAUSE)),
            turn: Duration::ZERO,
            sent: 0,
        };
        let start = Instant::now();
        let mut appends = Appends::new(input.chain(stream::pending()), Box::new(slow), follower());
        let mut seen = Vec::new();
        for _ in 0..4 {
            let answer = stream::poll_fn(|context| appends.poll_answer(context)).next().await;
            let place = engine::place_from(answer.unwrap().unwrap().unwrap().as_ref());
            seen.push((place.index.0, start.elapsed().as_secs()));
        }
        // What it may lack is sent, and so is what has no records: it says how much is committed.
        assert_eq!(seen, [(60, 0), (90, 0), (1, 8), (2, 16)]);
    }

    fn follower_of(last: u64) -> Follower {
        Follower { all: followers(last, &[&[1, 2]]), replica: ReplicaId(2) }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_far_behind_owes_nothing_for_what_waits_for_its_turn() {
        let turn = Duration::from_secs(30);
        let (answers, last) = answers_behind(1_000, turn, vec![1, 2, 3]).await;
        assert!(answers.is_empty(), "{answers:?}");
        assert_eq!(last.unwrap().as_secs(), 90, "each of three waits for its turn");
        let (answers, ended) = answers_behind(1_000, turn, vec![1]).await;
        assert_eq!(answers.len(), 2);
        assert!(matches!(answers.last(), Some(Err(RPCError::Unreachable(_)))));
        assert_eq!(ended.unwrap().as_secs(), 70, "once it was sent, an answer is owed");
        let (_, last) = answers_behind(66, turn, vec![1, 2, 3]).await;
        assert_eq!(last.unwrap().as_secs(), 46, "one is far enough behind, and two are not");
    }

    #[tokio::test]
    async fn a_stream_of_appends_pulls_before_it_fails() {
        let mut pulls = 0;
        let input = stream::poll_fn(|_| {
            pulls += 1;
            Poll::Ready(None)
        });
        let mut appends = Appends::new(input, Box::new(NoPeers), follower_of(3));
        let answers = stream::poll_fn(|context| appends.poll_answer(context));
        let answers: Vec<_> = answers.collect().await;
        assert!(matches!(answers[..], [Err(RPCError::Unreachable(_))]));
        assert_eq!(pulls, 1);
    }
}
