//! Asks the admin HTTP server of a broker.
//!
//! Owns: one GET over plain HTTP/1.1.
//! Never: follows a redirect, keeps a connection, or reads more than [`ANSWER_BYTES_MAX`].

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

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
    let asked = tokio::time::timeout(limit, exchange(address, path)).await;
    let bytes = asked
        .map_err(|_| AdminError::Silent { address: address.to_owned(), limit })?
        .map_err(|source| AdminError::Unreachable { address: address.to_owned(), source })?;
    parse(&bytes).ok_or_else(|| AdminError::NotHttp { address: address.to_owned() })
}

async fn exchange(address: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_status_and_body() {
        let answer = parse(b"HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nnot yet").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "not yet"));
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_none());
        assert!(parse(b"").is_none());
    }
}
