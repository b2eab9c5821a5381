//! Asks the admin HTTP server of a broker.
//!
//! Owns: one request over plain HTTP, and what a refusal says to a person.
//! Never: follows a redirect, keeps a connection, or reads more than [`ANSWER_BYTES_MAX`].

use crate::failure::Failure;
use serde_json::Value;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// Longer than a broker looks for whoever leads the metadata.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("{address}: {source}; does a broker run there? --admin names another address")]
    Unreachable { address: String, source: io::Error },
    #[error("{address} did not answer within {limit:?}")]
    Silent { address: String, limit: Duration },
    #[error("{address} does not answer as HTTP/1.1")]
    NotHttp { address: String },
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask<'a> {
    /// To see something.
    Get,
    /// To change something.
    Post(&'a Value),
    /// To remove something.
    Delete,
}

/// Status and body of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// GETs `path` from `address` (HOST:PORT), all within `limit`.
pub(crate) async fn fetch(
    address: &str,
    path: &str,
    limit: Duration,
) -> Result<Answer, AdminError> {
    send(address, Ask::Get, path, limit).await
}

/// Asks `address` for the JSON that `path` answers with; a refusal is told as the broker words it.
pub(crate) async fn ask(address: &str, what: Ask<'_>, path: &str) -> Result<Value, Failure> {
    let answer = send(address, what, path, ASK_LIMIT).await?;
    read(&answer, &format!("{address}{path}")).map_err(Failure::NotDone)
}

async fn send(
    address: &str,
    what: Ask<'_>,
    path: &str,
    limit: Duration,
) -> Result<Answer, AdminError> {
    let asked = tokio::time::timeout(limit, exchange(address, &request(address, what, path))).await;
    let bytes = asked
        .map_err(|_| AdminError::Silent { address: address.to_owned(), limit })?
        .map_err(|source| AdminError::Unreachable { address: address.to_owned(), source })?;
    parse(&bytes).ok_or_else(|| AdminError::NotHttp { address: address.to_owned() })
}

fn request(address: &str, what: Ask<'_>, path: &str) -> String {
    let head = format!("{path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n");
    match what {
        Ask::Get => format!("GET {head}\r\n"),
        Ask::Delete => format!("DELETE {head}\r\n"),
        Ask::Post(body) => {
            let body = body.to_string();
            let length = body.len();
            format!(
                "POST {head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        }
    }
}

async fn exchange(address: &str, request: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

/// The JSON of an answer, or what a person is told instead: the `detail` of a problem document, or
/// who (`from`) answered something else.
fn read(answer: &Answer, from: &str) -> Result<Value, String> {
    let done = (200..300).contains(&answer.status);
    match serde_json::from_str::<Value>(&answer.body) {
        Ok(body) if done => Ok(body),
        Err(error) if done => Err(format!("{from}: {error}")),
        Ok(Value::Object(problem)) if problem.get("detail").is_some_and(Value::is_string) => {
            Err(problem["detail"].as_str().unwrap_or_default().to_owned())
        }
        Ok(_) | Err(_) => Err(format!("{from} answers {}: {}", answer.status, answer.body.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_is_status_and_body() {
        let answer = parse(b"HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nnot yet").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "not yet"));
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_none());
        assert!(parse(b"").is_none());
    }

    #[test]
    fn a_refusal_is_told_as_the_broker_words_it() {
        let read = |status, body: &str| read(&Answer { status, body: body.to_owned() }, "h:1/v1");
        assert_eq!(read(200, "{\"a\": 1}"), Ok(json!({ "a": 1 })));
        assert_eq!(read(409, "{\"detail\": \"it drains\"}"), Err("it drains".to_owned()));
        assert_eq!(read(502, "bad gateway\n"), Err("h:1/v1 answers 502: bad gateway".to_owned()));
        assert!(read(200, "<html>").is_err());
    }

    #[test]
    fn a_change_carries_its_body() {
        let body = json!({ "to": "n2" });
        let sent = request("h:1", Ask::Post(&body), "/v1/x");
        let (head, content) = sent.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/x HTTP/1.0\r\n"), "{head}");
        assert!(head.ends_with(&format!("Content-Length: {}", content.len())), "{head}");
        assert!(request("h:1", Ask::Delete, "/v1/x").ends_with("close\r\n\r\n"));
    }
}
