//! The handshake of two brokers, as a pure state machine for either side.
//!
//! Owns: the order HELLO, CHALLENGE, PROOF, READY; versions, features and identities that fit; the
//! check of proofs.
//! Never: reads, writes, waits or makes a nonce: frames come in, a step comes out.
//! Invariants: the dialer proves first, so a stranger that dials gets no proof to work on; a
//! handshake that is over, well or not, refuses every further frame.
//!
//! ```text
//! dialer   ── HELLO ──►  ◄── CHALLENGE ──  ── PROOF ──►  ◄── READY ──  open
//! acceptor             checks             checks       open
//! ```

use super::codec::{decode_whole, encode_to_vec};
use super::limits::{PEER_VERSION_MAX, PEER_VERSION_MIN};
use super::proof::Transcript;
use super::{
    Challenge, Hello, Lane, Mac, Node, Nonce, PeerFrame, PeerGoAway, PeerRefusal, Secret, Side,
};
use crate::codec::DecodeError;
use crate::types::BrokerId;
use bytes::Bytes;

/// Feature bits that this build understands.
const FEATURES: u64 = 0;

/// Why the other end may be believed.
#[derive(Debug, Clone)]
pub enum Trust {
    /// It knows the secret.
    Secret(Secret),
    /// There is no secret; allowed only when both ends have loopback addresses, which the shell
    /// makes sure of.
    Loopback,
}

impl Trust {
    fn prove(&self, transcript: &Transcript, side: Side) -> Mac {
        match self {
            Self::Secret(secret) => transcript.prove(secret, side),
            Self::Loopback => Mac::NONE,
        }
    }

    fn check(&self, transcript: &Transcript, side: Side, mac: &Mac) -> Result<(), PeerRefusal> {
        let proved = match self {
            Self::Secret(secret) => transcript.is_proved(secret, side, mac),
            Self::Loopback => *mac == Mac::NONE,
        };
        if proved { Ok(()) } else { Err(PeerRefusal::Unauthenticated) }
    }
}

/// A connection that is open, as the other end described it under its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPeer {
    /// Who is there.
    pub node: Node,
    /// What the connection is for.
    pub lane: Lane,
    /// The version that it speaks.
    pub version: u16,
    /// Feature bits that both understand.
    pub features: u64,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// We refuse.
    #[error("{0}")]
    Refused(PeerRefusal),
    /// The other end refuses, or says so: nothing is proved yet.
    #[error("the peer refuses: {refusal} ({text})")]
    RefusedByPeer {
        /// Why.
        refusal: PeerRefusal,
        /// For people.
        text: String,
    },
    /// What arrived is no frame.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

impl From<PeerRefusal> for HandshakeError {
    fn from(refusal: PeerRefusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Send this and wait for the answer.
    Send(PeerFrame),
    /// Send this, if anything: the connection is open.
    Open(OpenPeer, Option<PeerFrame>),
    /// Send this, if anything, and close.
    Close(HandshakeError, Option<PeerFrame>),
}

/// One side of a handshake.
#[derive(Debug)]
pub struct Handshake {
    node: Node,
    trust: Trust,
    state: State,
}

/// What is waited for.
#[derive(Debug)]
enum State {
    Hello { nonce: Nonce },
    Challenge { hello: Bytes, lane: Lane, expected: Option<BrokerId> },
    Proof { transcript: Transcript, peer: OpenPeer },
    Ready { transcript: Transcript, peer: OpenPeer },
    Over,
}

impl Handshake {
    /// The side that dials, and its first frame. `expected` is who should answer: none when an
    /// address of the configuration is dialed.
    pub fn dial(
        node: Node,
        trust: Trust,
        nonce: Nonce,
        (lane, expected): (Lane, Option<BrokerId>),
    ) -> (Self, PeerFrame) {
        let frame = PeerFrame::Hello(Hello {
            version_min: PEER_VERSION_MIN,
            version_max: PEER_VERSION_MAX,
            features: FEATURES,
            lane,
            nonce,
            node: node.clone(),
        });
        let state = State::Challenge { hello: encode_to_vec(&frame).into(), lane, expected };
        (Self { node, trust, state }, frame)
    }

    /// The side that accepts.
    pub fn accept(node: Node, trust: Trust, nonce: Nonce) -> Self {
        Self { node, trust, state: State::Hello { nonce } }
    }

    /// Takes the next frame, whole as it came off the wire: proofs cover bytes, not their meaning.
    pub fn handle(&mut self, frame: Bytes) -> Step {
        let state = std::mem::replace(&mut self.state, State::Over);
        self.advance(state, frame).unwrap_or_else(|error| {
            let refusal = match &error {
                HandshakeError::Refused(refusal) => *refusal,
                HandshakeError::Malformed(_) => PeerRefusal::Malformed,
                HandshakeError::RefusedByPeer { .. } => return Step::Close(error, None),
            };
            let text = error.to_string();
            let go_away = PeerGoAway { refusal, deadline_ms: 0, text };
            Step::Close(error, Some(PeerFrame::GoAway(go_away)))
        })
    }

    fn advance(&mut self, state: State, frame: Bytes) -> Result<Step, HandshakeError> {
        match (state, decode_whole(frame.clone())?) {
            (_, PeerFrame::GoAway(PeerGoAway { refusal, text, .. })) => {
                Err(HandshakeError::RefusedByPeer { refusal, text })
            }
            (State::Hello { nonce }, PeerFrame::Hello(hello)) => {
                Ok(self.challenge(frame, hello, nonce)?)
            }
            (State::Challenge { hello, lane, expected }, PeerFrame::Challenge(challenge)) => {
                self.check_challenge(&challenge, expected)?;
                let Challenge { version, features, node, .. } = challenge;
                let transcript = Transcript { hello, challenge: frame };
                let proof = self.trust.prove(&transcript, Side::Dialer);
                let peer = OpenPeer { node, lane, version, features };
                self.state = State::Ready { transcript, peer };
                Ok(Step::Send(PeerFrame::Proof(proof)))
            }
            (State::Proof { transcript, peer }, PeerFrame::Proof(mac)) => {
                self.trust.check(&transcript, Side::Dialer, &mac)?;
                let ready = self.trust.prove(&transcript, Side::Acceptor);
                Ok(Step::Open(peer, Some(PeerFrame::Ready(ready))))
            }
            (State::Ready { transcript, peer }, PeerFrame::Ready(mac)) => {
                self.trust.check(&transcript, Side::Acceptor, &mac)?;
                Ok(Step::Open(peer, None))
            }
            _ => Err(PeerRefusal::Malformed.into()),
        }
    }

    /// Answers HELLO.
    fn challenge(&mut self, frame: Bytes, hello: Hello, nonce: Nonce) -> Result<Step, PeerRefusal> {
        let version = hello.version_max.min(PEER_VERSION_MAX);
        if version < hello.version_min.max(PEER_VERSION_MIN) {
            return Err(PeerRefusal::Version);
        }
        self.check_node(&hello.node)?;
        let features = hello.features & FEATURES;
        let challenge = PeerFrame::Challenge(Challenge {
            version,
            features,
            secret: matches!(self.trust, Trust::Secret(_)),
            nonce,
            node: self.node.clone(),
        });
        self.state = State::Proof {
            transcript: Transcript { hello: frame, challenge: encode_to_vec(&challenge).into() },
            peer: OpenPeer { node: hello.node, lane: hello.lane, version, features },
        };
        Ok(Step::Send(challenge))
    }

    fn check_challenge(
        &self,
        challenge: &Challenge,
        expected: Option<BrokerId>,
    ) -> Result<(), PeerRefusal> {
        if !(PEER_VERSION_MIN..=PEER_VERSION_MAX).contains(&challenge.version) {
            return Err(PeerRefusal::Version);
        }
        if challenge.features & !FEATURES != 0 {
            return Err(PeerRefusal::Malformed);
        }
        // Whoever has a secret talks to nobody who has none.
        if challenge.secret != matches!(self.trust, Trust::Secret(_)) {
            return Err(PeerRefusal::Unauthenticated);
        }
        self.check_node(&challenge.node)?;
        match expected {
            Some(expected) if expected != challenge.node.broker => Err(PeerRefusal::WrongBroker),
            _ => Ok(()),
        }
    }

    fn check_node(&self, other: &Node) -> Result<(), PeerRefusal> {
        let Node { cluster, broker, instance, .. } = self.node;
        if other.instance == instance {
            return Err(PeerRefusal::Itself);
        }
        if other.cluster != cluster && other.cluster != 0 && cluster != 0 {
            return Err(PeerRefusal::WrongCluster);
        }
        // A folder was copied, or two processes serve one.
        if other.broker == broker && broker != BrokerId(0) {
            return Err(PeerRefusal::WrongBroker);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
