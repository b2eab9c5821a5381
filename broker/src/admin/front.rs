//! What is answered before the broker serves.
//!
//! Owns: that the admin server listens from the first moment of a start, and that nobody reaches a
//! route before what it shows is there.
//! Never: says that the broker is ready.

use super::AdminView;
use super::problem::Problem;
use crate::cluster::Cluster;
use crate::cluster::waiting::{SeedSeen, Silence, Waiting};
use axum::Json;
use axum::extract::{FromRef, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::time::Instant;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::peer::MemberState;

/// What the admin server has to show, as it comes to it. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Front(Arc<Shown>);

#[derive(Default)]
struct Shown {
    view: OnceLock<Arc<AdminView>>,
    /// While this broker is on its way into a cluster.
    cluster: Mutex<Option<Arc<Cluster>>>,
}

impl Front {
    /// The broker looks for its cluster.
    pub(crate) fn forms(&self, cluster: &Arc<Cluster>) {
        *self.0.cluster.lock().unwrap_or_else(PoisonError::into_inner) = Some(cluster.clone());
    }

    /// The broker serves, or has given up the start: nothing of it is kept any more.
    pub(crate) fn settles(&self, view: Option<AdminView>) {
        if let Some(view) = view {
            // A broker starts once.
            let _ = self.0.view.set(Arc::new(view));
        }
        let cluster = self.0.cluster.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(cluster);
    }

    fn waiting(&self) -> Waiting {
        let cluster = self.0.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = cluster.as_ref().map(|cluster| cluster.waiting());
        waiting.unwrap_or_else(|| Waiting { is_member: true, ..Waiting::default() })
    }
}

impl FromRef<Front> for Arc<AdminView> {
    fn from_ref(front: &Front) -> Self {
        let view = front.0.view.get();
        view.expect("nobody passes before the broker serves").clone()
    }
}

/// Answers instead of the routes until the broker serves.
pub(super) async fn guard(State(front): State<Front>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if front.0.view.get().is_some() || path == "/livez" {
        return next.run(request).await;
    }
    let waiting = front.waiting();
    match path {
        "/readyz" => {
            let verbose = request.uri().query() == Some("verbose");
            (StatusCode::SERVICE_UNAVAILABLE, ready_text(&waiting, verbose)).into_response()
        }
        "/v1/cluster" => Json(waiting_json(&waiting, Instant::now())).into_response(),
        _ => {
            let text = match waiting.is_member {
                true => "the broker opens what it holds; try again",
                false => {
                    "the broker does not belong to a cluster yet; /v1/cluster says what it waits for"
                }
            };
            let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Recovering);
            Problem::new(status, code, text).into_response()
        }
    }
}

fn word(waiting: &Waiting) -> &'static str {
    if waiting.is_member { "opening" } else { "forming" }
}

fn ready_text(waiting: &Waiting, verbose: bool) -> String {
    let mut text = String::new();
    if let Some(concern) = &waiting.concern {
        let _ = writeln!(text, "[-] cluster: {concern}");
    }
    for seed in waiting.seeds.iter().filter(|_| verbose) {
        let mark = if seed.is_here || seed.said.is_ok() { "[+]" } else { "[-]" };
        let _ = writeln!(text, "{mark} {}: {}", seed.address, said_text(seed));
    }
    text + word(waiting) + "\n"
}

/// What a seed said, or why it did not.
fn said_text(seed: &SeedSeen) -> String {
    match seed.said {
        _ if seed.is_here => "this broker".to_owned(),
        Ok((state, _)) => state_word(state).to_owned(),
        Err(Silence::NotAsked) => "not asked yet".to_owned(),
        Err(Silence::Unreachable) => "does not answer".to_owned(),
        Err(Silence::Refused(refusal)) => refusal.sentence().to_owned(),
    }
}

fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::Empty => "empty",
        MemberState::Forming => "forming",
        MemberState::Member => "member",
    }
}

fn waiting_json(waiting: &Waiting, now: Instant) -> Value {
    let seed = |seed: &SeedSeen| {
        let asked = seed.asked.map(|asked| now.saturating_duration_since(asked).as_millis() as u64);
        json!({
            "address": seed.address,
            "here": seed.is_here,
            "answers": seed.is_here || seed.said.is_ok(),
            "said": said_text(seed),
            "asked_ms": asked,
        })
    };
    json!({
        "state": word(waiting),
        "concern": waiting.concern,
        "seeds": waiting.seeds.iter().map(seed).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Duration;
    use weir_protocol::peer::PeerRefusal;

    fn waiting(now: Instant) -> Waiting {
        let seed = |address: &str, is_here, said| SeedSeen {
            address: address.to_owned(),
            is_here,
            said,
            asked: Some(now - Duration::from_millis(40)),
        };
        Waiting {
            is_member: false,
            concern: Some("waiting for c:1".to_owned()),
            seeds: vec![
                SeedSeen { asked: None, ..seed("a:1", true, Err(Silence::NotAsked)) },
                seed("b:1", false, Ok((MemberState::Empty, 0))),
                seed("c:1", false, Err(Silence::Unreachable)),
                seed("d:1", false, Err(Silence::Refused(PeerRefusal::Unauthenticated))),
            ],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_says_for_whom() {
        let now = Instant::now() + Duration::from_secs(1);
        let waiting = waiting(now);
        assert_eq!(ready_text(&waiting, false), "[-] cluster: waiting for c:1\nforming\n");
        let text = ready_text(&waiting, true);
        for line in ["[+] a:1: this broker", "[+] b:1: empty", "[-] c:1: does not answer"] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let page: Value = serde_json::from_str(include_str!("cluster/tests/forming.json")).unwrap();
        assert_eq!(waiting_json(&waiting, now), page);
        let opens = Waiting { is_member: true, ..Waiting::default() };
        assert_eq!(ready_text(&opens, true), "opening\n");
    }
}
