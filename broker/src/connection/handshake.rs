//! HELLO and authentication.
//!
//! Owns: what is said before anything else may be.
//! Never: lets a frame through that is not part of it.

use super::{Connection, Phase};
use crate::reply;
use tokio::time::Duration;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::{Auth, FEATURE_SHARING, Frame, Hello, Refusal, Welcome};
use weir_protocol::limits::{
    HEARTBEAT_MS, MESSAGE_COST_MIN, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN,
};

/// The one authentication method so far.
const ANONYMOUS: &str = "anonymous";
/// A client may ask for heartbeats at most this often.
const HEARTBEAT_MS_MIN: u32 = 1_000;

impl Connection {
    /// A frame before the handshake is through.
    pub(super) fn on_handshake(&mut self, frame: Frame) -> Result<(), Refusal> {
        match (&self.phase, frame) {
            (Phase::Hello, Frame::Hello(hello)) => self.on_hello(hello),
            (Phase::Auth, Frame::Auth(auth)) => self.on_auth(&auth),
            (Phase::Hello, _) => {
                Err(reply::connection(ErrorCode::BadState, "the first frame must be HELLO"))
            }
            _ => Err(reply::connection(ErrorCode::BadState, "behind HELLO there must be AUTH")),
        }
    }

    fn on_hello(&mut self, hello: Hello) -> Result<(), Refusal> {
        let version = hello.version_max.min(PROTOCOL_VERSION_MAX);
        if version < hello.version_min.max(PROTOCOL_VERSION_MIN) {
            let text = format!(
                "this broker speaks versions {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}, \
                 the client {} to {}; upgrade the older of the two",
                hello.version_min, hello.version_max
            );
            return Err(reply::connection(ErrorCode::UnsupportedVersion, text));
        }
        let heartbeat_ms = hello.limits.heartbeat_ms.clamp(HEARTBEAT_MS_MIN, HEARTBEAT_MS);
        self.heartbeat = Duration::from_millis(u64::from(heartbeat_ms));
        self.card.name(hello.client_name);
        let identity = &self.services.identity;
        let welcome = Welcome {
            version,
            features: hello.features & FEATURE_SHARING,
            limits: self.services.limits,
            message_cost_min: MESSAGE_COST_MIN as u32,
            cluster_id: identity.cluster_id,
            broker_id: identity.broker_id,
            broker_name: identity.broker_name.clone(),
            auth_methods: ANONYMOUS.to_owned(),
        };
        self.phase = Phase::Auth;
        self.send(&Frame::Welcome(welcome));
        Ok(())
    }

    fn on_auth(&mut self, auth: &Auth) -> Result<(), Refusal> {
        if auth.method != ANONYMOUS {
            let text = format!("authentication by {:?} is not known; use anonymous", auth.method);
            return Err(reply::connection(ErrorCode::Unauthenticated, text));
        }
        self.reader.set_limit(self.services.limits.frame_bytes_max as usize);
        self.phase = Phase::Open;
        self.send(&Frame::Ready);
        Ok(())
    }
}
