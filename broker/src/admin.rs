//! The admin HTTP server: metrics, health, and what the broker knows of itself.
//!
//! Owns: its listener, its routes, the bound on its connections and on what they send.
//! Never: waits for a partition; answers without a bound on what is listed.

mod cluster;
mod front;
mod listener;
mod problem;
mod views;

use crate::catalog::Catalog;
use crate::connection::Services;
use crate::flow::Flow;
use crate::metrics::Metrics;
use crate::seams::{Network, WallClock};
use crate::server::{ListenError, Server};
use crate::task::{self, TaskKind};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use listener::SeamListener;
use problem::Problem;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use weir_storage::Device;

pub(crate) use cluster::ClusterAccess;
pub(crate) use front::Front;

/// The longest body of a request: names and numbers.
const BODY_BYTES_MAX: usize = 16 << 10;

type Shown = State<Arc<AdminView>>;
type Answer = Result<Json<Value>, Problem>;

/// What the routes read.
pub(crate) struct AdminView {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) flow: Arc<Flow>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) server: Server,
    pub(crate) device: Arc<Device>,
    pub(crate) services: Arc<Services>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) cluster: ClusterAccess,
}

/// The running server.
pub(crate) struct AdminServer {
    address: SocketAddr,
    /// The HTTP server has a task of its own that waits for this.
    closed: DropGuard,
    task: JoinHandle<()>,
}

impl AdminServer {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends at once: what is asked now can be asked again elsewhere.
    pub(crate) async fn stop(self) {
        drop(self.closed);
        self.task.abort();
        // An aborted task ends with an error that says no more than that.
        let _ = self.task.await;
    }
}

/// Listens and serves what the front has to show.
pub(crate) async fn start(
    network: &dyn Network,
    listen: SocketAddr,
    front: Front,
    wall: Arc<dyn WallClock>,
) -> Result<AdminServer, ListenError> {
    let failed = |error| ListenError::Io { address: listen, error };
    let listener = network.listen(listen).await.map_err(failed)?;
    let address = listener.local_address().map_err(failed)?;
    let routes = Router::new()
        .route("/livez", get(views::live))
        .route("/readyz", get(views::ready))
        .route("/metrics", get(views::metrics))
        .route("/v1/topics", get(views::topics))
        .route("/v1/topics/{topic}", get(views::topic))
        .route("/v1/subscriptions", get(views::subscriptions))
        .route("/v1/connections", get(views::connections))
        .route("/v1/flow", get(views::flow))
        .route("/v1/cluster", get(cluster::show))
        .route("/v1/cluster/brokers/{broker}", delete(cluster::remove))
        .route("/v1/cluster/brokers/{broker}/add", post(cluster::add))
        .route("/v1/cluster/brokers/{broker}/drain", post(cluster::drain))
        .route("/v1/cluster/move", post(cluster::move_replica))
        .route("/v1/cluster/balance", post(cluster::balance))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(from_fn_with_state(front.clone(), front::guard))
        .layer(map_response(move |answer| std::future::ready(dated(answer, wall.now_ms()))))
        .with_state(front);
    let closed = CancellationToken::new();
    let stop = closed.clone().cancelled_owned();
    let serving = async move {
        let listener = SeamListener::new(listener, address);
        let served = axum::serve(listener, routes).with_graceful_shutdown(stop).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin server ended");
        }
    };
    let task = task::spawn("admin", TaskKind::Connection, serving);
    Ok(AdminServer { address, closed: closed.drop_guard(), task })
}

/// With the time of day of the broker's own clock: the server below would ask the operating system.
fn dated(mut answer: Response, now_ms: u64) -> Response {
    let now = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(now_ms));
    let value = HeaderValue::from_str(&now).expect("a date is plain text");
    answer.headers_mut().insert(header::DATE, value);
    answer
}
