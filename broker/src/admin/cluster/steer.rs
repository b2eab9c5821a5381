//! The routes that change the cluster.
//!
//! Never: answers before the metadata has judged; decides where replicas are or who leads.
//! Invariant: what changes something takes a JSON body, if only `{}`: no page of a browser can send
//! that to another site without being asked.

use super::orders::{MoveOrder, Who, problem_of};
use crate::admin::problem::Problem;
use crate::admin::{AdminView, Answer, Shown};
use crate::replication::metadata::{Change, ChangeError, Command, LossReason};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Duration;
use weir_protocol::error_code::ErrorCode;

/// How long a removal waits for the group of the metadata to forget the broker's copy.
const GONE_WITHIN: Duration = Duration::from_secs(5);

type Body<T> = Result<Json<T>, JsonRejection>;

/// `{}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct Nothing {}

/// How to balance.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct BalanceOrder {
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
}

fn read<T>(body: Body<T>) -> Result<T, Problem> {
    let Json(read) = body.map_err(|error| {
        let text = error.body_text();
        let detail = format!("{text}; send a JSON object with content-type: application/json");
        Problem::new(error.status(), ErrorCode::BadRequest, detail)
    })?;
    Ok(read)
}

async fn propose(view: &AdminView, command: Command) -> Result<Change, Problem> {
    view.cluster.metadata.propose(command).await.map_err(|error| problem_of(&error))
}

/// Changes what a broker may be used for, or removes it; `now` is what it is then.
async fn settle(
    view: &AdminView,
    broker: String,
    order: fn(&super::Look, &Who) -> Result<Command, Problem>,
    now: &str,
) -> Answer {
    let (look, who) = (view.cluster.look(), Who::Name(broker));
    let command = order(&look, &who)?;
    let card = look.broker(&who)?;
    propose(view, command).await?;
    Ok(Json(json!({ "broker": look.name_of(card.id), "id": card.id.0, "standing": now })))
}

/// The broker hands over all that it holds.
pub(in crate::admin) async fn drain(
    State(view): Shown,
    Path(broker): Path<String>,
    body: Body<Nothing>,
) -> Answer {
    read(body)?;
    settle(&view, broker, super::Look::draining, "draining").await
}

/// The broker may hold and lead again.
pub(in crate::admin) async fn add(
    State(view): Shown,
    Path(broker): Path<String>,
    body: Body<Nothing>,
) -> Answer {
    read(body)?;
    settle(&view, broker, super::Look::addition, "active").await
}

/// The broker is forgotten, and its copy of the metadata before.
pub(in crate::admin) async fn remove(State(view): Shown, Path(broker): Path<String>) -> Answer {
    if let Some(replica) = view.cluster.look().last_copy(&Who::Name(broker.clone()))? {
        propose(&view, Command::LoseReplica { replica, reason: LossReason::GivenUp }).await?;
        let mut catalogs = view.cluster.metadata.watch();
        let gone = catalogs.wait_for(|now| now.metadata.iter().all(|copy| copy.replica != replica));
        // What is still there then is told by the refusal.
        let _ = tokio::time::timeout(GONE_WITHIN, gone).await;
    }
    settle(&view, broker, super::Look::removal, "removed").await
}

/// A replica goes elsewhere.
pub(in crate::admin) async fn move_replica(State(view): Shown, body: Body<MoveOrder>) -> Answer {
    let order = read(body)?;
    let look = view.cluster.look();
    let command = look.moving(&order)?;
    let mut row = look.change_json(&command);
    if let Change::Placed(placed) = propose(&view, command).await? {
        row["replica"] = json!(placed.replica.0);
    }
    Ok(Json(row))
}

/// What is uneven becomes even now, as far as it can at once.
pub(in crate::admin) async fn balance(State(view): Shown, body: Body<BalanceOrder>) -> Answer {
    let BalanceOrder { dry_run } = read(body)?;
    let look = view.cluster.look();
    let plan = look.balance()?;
    let mut changes = Vec::<Value>::with_capacity(plan.commands.len());
    for command in plan.commands {
        let mut row = look.change_json(&command);
        if !dry_run {
            row["refused"] = match view.cluster.metadata.propose(command).await {
                Ok(_) => Value::Null,
                // Whoever leads the metadata may have wished for the same meanwhile.
                Err(ChangeError::Refused(refusal)) => json!(refusal.to_string()),
                Err(error) => return Err(problem_of(&error)),
            };
        }
        changes.push(row);
    }
    let moves = look.catalog.moves.len();
    Ok(Json(json!({
        "dry_run": dry_run,
        "changes": changes,
        "more": plan.more,
        "moves_under_way": moves,
    })))
}
