//! Owns: the order of pulling, sending and answering in one stream of appends.
//! Invariants: what is pulled is sent before the next is pulled, so that the engine never reads
//! ahead of what the follower has room for; answers go first, and the stream ends behind the first
//! that is none.

use super::{Answer, answer_of, lost};
use crate::replication::engine::{self, Types};
use crate::replication::peers::{AppendStream, PeerLost};
use crate::replication::receive;
use futures_util::{Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use std::task::{Context, Poll, ready};
use weir_protocol::peer::Append;
use weir_protocol::types::StreamId;

/// A stream that the carrier has not numbered yet.
const UNNUMBERED: StreamId = StreamId(0);

/// One stream of the engine on its way to a follower.
pub(super) struct Appends<S> {
    input: S,
    stream: Box<dyn AppendStream>,
    pulled: Option<Append>,
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
        Self { input, stream, pulled: None, state: State::Fresh }
    }

    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        loop {
            if matches!(self.state, State::Open | State::Closed)
                && let Poll::Ready(answer) = self.stream.poll_answer(context)
            {
                let answer = answer.map(answer_of);
                if !matches!(answer, Some(Ok(Ok(_)))) {
                    self.state = State::Ended;
                }
                return Poll::Ready(answer);
            }
            match self.state {
                State::Ended => return Poll::Ready(None),
                State::Closed => return Poll::Pending,
                State::Fresh | State::Open => {}
            }
            if let Err(error) = ready!(self.poll_send(context)) {
                self.state = State::Ended;
                return Poll::Ready(Some(Err(lost(error))));
            }
        }
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
            self.pulled = Some(append_of(&request));
        }
        ready!(self.stream.poll_ready(context))?;
        if let Some(append) = self.pulled.take() {
            self.stream.send(append);
        }
        Poll::Ready(Ok(()))
    }
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
