//! A peer that the test plays, frame by frame.

use super::net::Net;
use super::rig::{address_of, node, secret};
use super::*;
use crate::seams::{Listener, Stream};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_protocol::peer::limits::PEER_FRAME_BYTES_MAX;
use weir_protocol::peer::{Handshake, Nonce, PeerDecoder, PeerGoAway, Step, Trust, encode_to_vec};

/// One end of a connection.
pub(super) struct Script {
    pub(super) socket: Box<dyn Stream>,
    input: BytesMut,
}

pub(super) fn trust() -> Trust {
    Trust::Secret(secret(7).unwrap())
}

impl Script {
    fn new(socket: Box<dyn Stream>) -> Self {
        Self { socket, input: BytesMut::new() }
    }

    /// Dials a room from `ip`, and has not said anything yet.
    pub(super) async fn connect(net: &Arc<Net>, ip: [u8; 4], to: u64) -> Self {
        let address = address_of(to).to_string();
        Self::new(net.at(ip).connect(&address).await.unwrap().0)
    }

    /// Dials a room as broker 9, and goes through the handshake.
    pub(super) async fn dial(net: &Arc<Net>, to: u64, lane: Lane) -> Self {
        let mut script = Self::connect(net, [127, 0, 0, 1], to).await;
        let me = node(super::rig::CLUSTER, 9);
        let (handshake, hello) = Handshake::dial(me, trust(), Nonce([9; 32]), (lane, None));
        script.say(&hello).await;
        script.shake(handshake).await;
        script
    }

    /// Accepts as this broker, and goes through the handshake. Says which lane it is.
    pub(super) async fn accept(listener: &mut dyn Listener, broker: u64) -> (Self, Lane) {
        let mut script = Self::new(listener.accept().await.unwrap().0);
        let me = node(super::rig::CLUSTER, broker);
        let lane = script.shake(Handshake::accept(me, trust(), Nonce([8; 32]))).await;
        (script, lane)
    }

    async fn shake(&mut self, mut handshake: Handshake) -> Lane {
        loop {
            let frame = self.cut().await.expect("a frame of the handshake");
            match handshake.handle(frame) {
                Step::Send(frame) => self.say(&frame).await,
                Step::Open(peer, frame) => {
                    if let Some(frame) = frame {
                        self.say(&frame).await;
                    }
                    return peer.lane;
                }
                Step::Close(error, _) => panic!("{error}"),
            }
        }
    }

    pub(super) async fn say(&mut self, frame: &PeerFrame) {
        self.socket.write_all(&encode_to_vec(frame)).await.unwrap();
    }

    /// The next frame, whole; none when the peer has closed.
    pub(super) async fn cut(&mut self) -> Option<Bytes> {
        let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
        loop {
            if let Some(frame) = decoder.cut(&mut self.input).unwrap() {
                return Some(frame);
            }
            match self.socket.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame that is no heartbeat.
    pub(super) async fn hear(&mut self) -> Option<PeerFrame> {
        let decoder = PeerDecoder::new(PEER_FRAME_BYTES_MAX);
        loop {
            let frame = decoder.decode(&mut BytesMut::from(&self.cut().await?[..])).unwrap();
            match frame {
                Some(PeerFrame::Heartbeat) | None => {}
                Some(frame) => return Some(frame),
            }
        }
    }

    /// Waits for the end, and says why the peer ended it.
    pub(super) async fn end(&mut self) -> Option<PeerRefusal> {
        let mut why = None;
        while let Some(frame) = self.hear().await {
            if let PeerFrame::GoAway(PeerGoAway { refusal, deadline_ms: 0, .. }) = frame {
                why = Some(refusal);
            }
        }
        why
    }
}
