//! Orders to the cluster, as its operators' tool gives them: over HTTP, to one broker.
//!
//! Never: waits for what an order brings about.

use super::Cluster;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, timeout};

/// The host from which orders come.
const HOST: u8 = 19;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// What is read of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What was answered to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It is done, or begins.
    Obeyed,
    /// It cannot be as things are.
    Refused,
    /// What it names is not there.
    Absent,
    /// It may be done or not.
    Unknown,
}

/// Gives an order to the broker of machine `to`: a method, a path and a JSON body. An error is no
/// answer.
pub(super) async fn order(
    cluster: &Cluster,
    to: u8,
    (method, path): (&str, &str),
    body: &str,
) -> io::Result<Told> {
    let asked = ask(cluster, to, (method, path), body);
    let answer = timeout(ANSWER_WITHIN, asked).await??;
    let status = answer.lines().next().unwrap_or_default();
    tracing::info!(to, method, path, body, answer, "an order");
    Ok(match status.split(' ').nth(1).unwrap_or_default() {
        code if code.starts_with('2') => Told::Obeyed,
        "404" => Told::Absent,
        code if code.starts_with('4') || code == "503" => Told::Refused,
        _ => Told::Unknown,
    })
}

async fn ask(
    cluster: &Cluster,
    to: u8,
    (method, path): (&str, &str),
    body: &str,
) -> io::Result<String> {
    let admin = cluster.machine(to).admin();
    let mut stream = cluster.network().host(HOST).connect(admin).await?;
    let len = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\n\
         content-length: {len}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
