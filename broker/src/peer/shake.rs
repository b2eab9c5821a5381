//! The handshake over a socket: the shell around the pure one of the protocol.
//!
//! Owns: fresh nonces, the time that a handshake may take, and whether a peer without a secret may
//! be believed.
//! Never: carries a frame behind READY.
//! Invariant: without a secret only loopback addresses are spoken to.

use crate::planted::{Bug, is_planted};
use crate::replication::PeerLost;
use crate::seams::{Entropy, Network, Stream};
use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Duration;
use weir_protocol::codec::DecodeError;
use weir_protocol::limits::{HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_MS_MAX};
use weir_protocol::peer::{
    Handshake, HandshakeError, Lane, Node, Nonce, OpenPeer, PeerDecoder, PeerFrame, PeerGoAway,
    PeerRefusal, Secret, Step, Trust, encode_to_vec,
};
use weir_protocol::types::BrokerId;

const HANDSHAKE_MAX: Duration = Duration::from_millis(HANDSHAKE_MS_MAX as u64);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShakeError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("the peer closed the connection during the handshake")]
    Closed,
    #[error("the handshake took longer than {HANDSHAKE_MS_MAX} ms")]
    Late,
    #[error("{0} is no loopback address, and the cluster has no secret; give all brokers one")]
    NoSecret(SocketAddr),
    #[error(transparent)]
    Refused(#[from] HandshakeError),
}

impl From<DecodeError> for ShakeError {
    fn from(error: DecodeError) -> Self {
        Self::Refused(error.into())
    }
}

impl ShakeError {
    /// Who refused, this side or the other, does not matter.
    pub(super) fn refusal(&self) -> Option<PeerRefusal> {
        match self {
            Self::Socket(_) | Self::Closed | Self::Late => None,
            Self::NoSecret(_) => Some(PeerRefusal::Unauthenticated),
            Self::Refused(HandshakeError::Malformed(_)) => Some(PeerRefusal::Malformed),
            Self::Refused(
                HandshakeError::Refused(refusal) | HandshakeError::RefusedByPeer { refusal, .. },
            ) => Some(*refusal),
        }
    }

    pub(super) fn lost(&self) -> PeerLost {
        self.refusal().map_or(PeerLost::Unreachable, PeerLost::Refused)
    }
}

/// A socket whose handshake is through.
pub(super) struct Shaken {
    pub(super) socket: Box<dyn Stream>,
    /// What came behind the handshake.
    pub(super) rest: BytesMut,
    pub(super) peer: OpenPeer,
}

/// What handshakes are made with.
pub(super) struct Shaker {
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) secret: Option<Secret>,
    pub(super) me: watch::Receiver<Node>,
}

impl Shaker {
    /// Connects to `address` (`HOST:PORT`) and dials.
    pub(super) async fn dial(
        &self,
        network: &dyn Network,
        address: &str,
        (lane, expected): (Lane, Option<BrokerId>),
    ) -> Result<Shaken, ShakeError> {
        let dialed = async {
            let (socket, remote) = network.connect(address).await?;
            let me = self.me.borrow().clone();
            let trust = self.trust(remote)?;
            let (handshake, hello) = Handshake::dial(me, trust, self.nonce(), (lane, expected));
            shake(socket, handshake, Some(hello)).await
        };
        tokio::time::timeout(HANDSHAKE_MAX, dialed).await.unwrap_or(Err(ShakeError::Late))
    }

    /// Answers whoever dialed.
    pub(super) async fn accept(
        &self,
        mut socket: Box<dyn Stream>,
        remote: SocketAddr,
    ) -> Result<Shaken, ShakeError> {
        let accepted = async {
            let trust = match self.trust(remote) {
                Ok(trust) => trust,
                Err(error) => {
                    let words = go_away(PeerRefusal::Unauthenticated, error.to_string());
                    say_last(&mut *socket, &words).await;
                    return Err(error);
                }
            };
            let me = self.me.borrow().clone();
            shake(socket, Handshake::accept(me, trust, self.nonce()), None).await
        };
        tokio::time::timeout(HANDSHAKE_MAX, accepted).await.unwrap_or(Err(ShakeError::Late))
    }

    /// A connection from or to a loopback address has two of them.
    fn trust(&self, remote: SocketAddr) -> Result<Trust, ShakeError> {
        match &self.secret {
            Some(secret) => Ok(Trust::Secret(secret.clone())),
            None if is_planted(Bug::NoSecretNeeded) => Ok(Trust::Loopback),
            None if remote.ip().to_canonical().is_loopback() => Ok(Trust::Loopback),
            None => Err(ShakeError::NoSecret(remote)),
        }
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = Nonce([0; 32]);
        self.entropy.fill(&mut nonce.0);
        nonce
    }
}

/// Goes through the handshake over `socket`.
async fn shake(
    mut socket: Box<dyn Stream>,
    mut handshake: Handshake,
    hello: Option<PeerFrame>,
) -> Result<Shaken, ShakeError> {
    if let Some(hello) = hello {
        say(&mut *socket, &hello).await?;
    }
    let mut input = BytesMut::new();
    loop {
        let step = match hear(&mut *socket, &mut input).await {
            Ok(frame) => handshake.handle(frame),
            Err(ShakeError::Refused(error)) => {
                let words = go_away(PeerRefusal::Malformed, error.to_string());
                Step::Close(error, Some(words))
            }
            Err(error) => return Err(error),
        };
        match step {
            Step::Send(frame) => say(&mut *socket, &frame).await?,
            Step::Open(peer, frame) => {
                if let Some(frame) = frame {
                    say(&mut *socket, &frame).await?;
                }
                return Ok(Shaken { socket, rest: input, peer });
            }
            Step::Close(error, words) => {
                if let Some(words) = words {
                    say_last(&mut *socket, &words).await;
                }
                return Err(error.into());
            }
        }
    }
}

/// The next frame, whole.
async fn hear(socket: &mut dyn Stream, input: &mut BytesMut) -> Result<Bytes, ShakeError> {
    let decoder = PeerDecoder::new(HANDSHAKE_FRAME_BYTES_MAX);
    loop {
        if let Some(frame) = decoder.cut(input)? {
            return Ok(frame);
        }
        let mut room = (&mut *input).limit(HANDSHAKE_FRAME_BYTES_MAX);
        if socket.read_buf(&mut room).await? == 0 {
            return Err(ShakeError::Closed);
        }
    }
}

async fn say(socket: &mut dyn Stream, frame: &PeerFrame) -> io::Result<()> {
    socket.write_all(&encode_to_vec(frame)).await?;
    socket.flush().await
}

/// Why it ended is known already, whether the other side hears it or not.
pub(super) async fn say_last(socket: &mut dyn Stream, words: &PeerFrame) {
    if say(socket, words).await.is_ok() {
        let _ = socket.shutdown().await;
    }
}

/// The last words of a connection that is not wanted.
pub(super) fn go_away(refusal: PeerRefusal, text: String) -> PeerFrame {
    PeerFrame::GoAway(PeerGoAway { refusal, deadline_ms: 0, text })
}
