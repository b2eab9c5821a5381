//! Owns: the one error of this crate and the words for overload.
//! Never: text that a caller would have to match on; everything is a number or an enum.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use weir_protocol::error_code::{Action, ErrorCode, Outcome, reason_bits};
use weir_protocol::frame::Refusal;

/// What this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// How many causes a deadline error lists.
pub(crate) const CAUSES_MAX: usize = 4;

/// What kind of failure it is; see [`Error::code`] for the exact one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nobody may send more just now: see [`Error::overload`] and [`Error::retry_after`].
    Overloaded,
    /// The deadline passed; the text lists the last causes.
    Deadline,
    /// The broker, the partition or the connection is not available just now.
    Unavailable,
    /// The broker refuses this for good.
    Rejected,
    /// The producer was opened again elsewhere: this publisher is over.
    Fenced,
    /// The client, publisher or consumer was closed.
    Closed,
    /// An argument of the caller is wrong.
    InvalidInput,
    /// Peers misunderstood each other, or bytes arrived damaged.
    Protocol,
}

/// Why no more may be sent just now. The same words stand in metrics, logs and documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// This publisher's own window is full.
    ClientWindow,
    /// The broker's memory budget is shared out.
    Memory,
    /// The topic holds as many bytes as it may.
    Backlog,
    /// The broker's disk has no room.
    Disk,
    /// The broker is shutting down.
    Draining,
    /// Too many requests wait for an answer.
    Requests,
    /// The broker's table of producers or consumers is full.
    Sessions,
    /// The partition is being opened.
    Recovering,
    /// The replica does not hold what was asked for yet.
    Behind,
    /// The broker has as many connections as it may.
    Connections,
    /// Too large a share of what this client sends are retries.
    RetryBudget,
    /// A reason of a newer broker.
    Other,
}

impl Reason {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientWindow => "client_window",
            Self::Memory => "memory",
            Self::Backlog => "backlog",
            Self::Disk => "disk",
            Self::Draining => "draining",
            Self::Requests => "requests",
            Self::Sessions => "sessions",
            Self::Recovering => "recovering",
            Self::Behind => "behind",
            Self::Connections => "connections",
            Self::RetryBudget => "retry_budget",
            Self::Other => "other",
        }
    }

    /// The most specific reason of a grant; `None` = the grant is held back by nothing.
    pub(crate) const fn from_bits(bits: u32) -> Option<Self> {
        if bits & reason_bits::DISK != 0 {
            Some(Self::Disk)
        } else if bits & reason_bits::BACKLOG != 0 {
            Some(Self::Backlog)
        } else if bits & reason_bits::DRAINING != 0 {
            Some(Self::Draining)
        } else if bits & reason_bits::POOL != 0 {
            Some(Self::Memory)
        } else if bits != 0 {
            Some(Self::Other)
        } else {
            None
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        let known = match ErrorCode::from_u16(code) {
            Some(ErrorCode::OverloadedMemory) => Self::Memory,
            Some(ErrorCode::OverloadedRequest) => Self::Requests,
            Some(ErrorCode::ProducerLimit | ErrorCode::ConsumerLimit) => Self::Sessions,
            Some(ErrorCode::Recovering) => Self::Recovering,
            Some(ErrorCode::Behind) => Self::Behind,
            Some(ErrorCode::BacklogFull) => Self::Backlog,
            Some(ErrorCode::StorageLow) => Self::Disk,
            Some(ErrorCode::Draining) => Self::Draining,
            Some(ErrorCode::OverloadedConnect) => Self::Connections,
            Some(ErrorCode::RetryBudgetEmpty) => Self::RetryBudget,
            _ => match Action::of(code) {
                Action::Wait | Action::StopTopic => Self::Other,
                _ => return None,
            },
        };
        Some(known)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why something was not done. Cheap to clone: all messages of a batch share one.
#[derive(Clone)]
pub struct Error(Arc<Content>);

#[derive(Debug, Clone)]
struct Content {
    kind: ErrorKind,
    code: Option<u16>,
    outcome: Outcome,
    retry_after: Option<Duration>,
    overload: Option<Reason>,
    partition: Option<u32>,
    damaged_end: Option<u64>,
    text: String,
    causes: Vec<String>,
}

impl Error {
    fn build(kind: ErrorKind, code: Option<u16>, outcome: Outcome, text: String) -> Self {
        Self(Arc::new(Content {
            kind,
            code,
            outcome,
            retry_after: None,
            overload: code.and_then(Reason::from_code),
            partition: None,
            damaged_end: None,
            text,
            causes: Vec::new(),
        }))
    }

    /// A failure that the client itself found; nothing was stored.
    pub(crate) fn local(code: ErrorCode, text: impl Into<String>) -> Self {
        Self::build(kind_of(code.number()), Some(code.number()), Outcome::NotStored, text.into())
    }

    /// An argument of the caller is wrong.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::build(ErrorKind::InvalidInput, None, Outcome::NotStored, text.into())
    }

    /// What the peer sent cannot be read.
    pub(crate) fn protocol(code: ErrorCode, text: impl Into<String>) -> Self {
        Self::build(ErrorKind::Protocol, Some(code.number()), Outcome::Unknown, text.into())
    }

    /// This publisher's window, or the credit of the broker, is used up.
    pub(crate) fn would_block(reason: Reason, retry_after: Duration) -> Self {
        let text = format!("sending now would mean waiting for {reason}");
        let mut error = Self::local(ErrorCode::WouldBlock, text);
        let content = error.content_mut();
        content.overload = Some(reason);
        content.retry_after = Some(retry_after);
        error
    }

    /// What the broker refused.
    pub(crate) fn refused(refusal: &Refusal) -> Self {
        let kind = kind_of(refusal.code);
        let mut error =
            Self::build(kind, Some(refusal.code), refusal.outcome, refusal.text.clone());
        let content = error.content_mut();
        if refusal.retry_after_ms > 0 {
            content.retry_after = Some(Duration::from_millis(u64::from(refusal.retry_after_ms)));
        }
        if let Some(reason) = Reason::from_bits(refusal.reason_bits) {
            content.overload = content.overload.or(Some(reason));
        }
        if refusal.code == ErrorCode::DamagedRange.number() && refusal.limit > 0 {
            content.damaged_end = Some(refusal.limit);
        }
        error
    }

    /// The deadline passed, and these were the last reasons to wait.
    pub(crate) fn deadline(
        outcome: Outcome,
        causes: Vec<String>,
        overload: Option<Reason>,
    ) -> Self {
        let sentence = ErrorCode::DeadlineLocal.sentence().to_owned();
        let mut error = Self::local(ErrorCode::DeadlineLocal, sentence);
        let content = error.content_mut();
        content.outcome = outcome;
        content.causes = causes;
        content.overload = overload;
        error
    }

    pub(crate) fn with_outcome(mut self, outcome: Outcome) -> Self {
        if self.0.outcome != outcome {
            self.content_mut().outcome = outcome;
        }
        self
    }

    pub(crate) fn with_partition(mut self, partition: u32) -> Self {
        self.content_mut().partition = Some(partition);
        self
    }

    fn content_mut(&mut self) -> &mut Content {
        Arc::make_mut(&mut self.0)
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The number of the catalogue (ERRORS.md), also one that this version does not know.
    pub fn code(&self) -> Option<u16> {
        self.0.code
    }

    /// The code, if this version knows it.
    pub fn error_code(&self) -> Option<ErrorCode> {
        self.0.code.and_then(ErrorCode::from_u16)
    }

    /// What became of the message: `NotStored` is certain, `Unknown` means that it may be in the
    /// log. Sending an unknown one again as a new message may store it twice.
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// When to try again, if the broker or the window can say.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the same may succeed later.
    pub fn is_retryable(&self) -> bool {
        let Some(code) = self.0.code else { return false };
        match Action::of(code) {
            Action::Wait | Action::StopTopic | Action::Reconnect | Action::Unknown => true,
            Action::Resync => true,
            Action::Local => code != ErrorCode::Closed.number(),
            Action::Never | Action::Fatal | Action::GiveUp | Action::Settle => false,
        }
    }

    /// Why no more may be sent, if that is what this error says.
    pub fn overload(&self) -> Option<Reason> {
        self.0.overload
    }

    /// The partition whose refusal, or whose bytes, ended a consumer.
    pub fn partition(&self) -> Option<u32> {
        self.0.partition
    }

    /// The first offset behind a damaged range (`DAMAGED_RANGE`) that a consumer met. Everything in
    /// front of the range was handed over. An application that can do without what is lost opens
    /// another [reader](crate::Client::reader) of [`Error::partition`] from here; a durable
    /// subscription stays where it is until the range is restored or given up. `None`: the error
    /// is another, or nothing can be passed over.
    pub fn damaged_end(&self) -> Option<u64> {
        self.0.damaged_end
    }

    /// The last reasons to wait, of a deadline error; the newest last.
    pub fn causes(&self) -> &[String] {
        &self.0.causes
    }
}

fn kind_of(code: u16) -> ErrorKind {
    match ErrorCode::from_u16(code) {
        Some(ErrorCode::ProducerFenced) => return ErrorKind::Fenced,
        Some(ErrorCode::DeadlineLocal) => return ErrorKind::Deadline,
        Some(ErrorCode::Closed) => return ErrorKind::Closed,
        Some(ErrorCode::Unreachable) => return ErrorKind::Unavailable,
        _ => {}
    }
    match Action::of(code) {
        Action::Wait | Action::StopTopic | Action::Local => ErrorKind::Overloaded,
        Action::Reconnect | Action::Unknown => ErrorKind::Unavailable,
        Action::Fatal | Action::Resync => ErrorKind::Protocol,
        Action::GiveUp => ErrorKind::Deadline,
        Action::Never | Action::Settle => ErrorKind::Rejected,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = &self.0;
        match (content.code, self.error_code()) {
            (_, Some(code)) => {
                write!(f, "{} (WEIR-{:04X})", code.name(), code.number())?;
                let text = if content.text.is_empty() { code.sentence() } else { &content.text };
                write!(f, ": {text}")?;
            }
            (Some(code), None) => write!(f, "WEIR-{code:04X}: {}", content.text)?,
            (None, None) => f.write_str(&content.text)?,
        }
        if content.outcome == Outcome::Unknown {
            f.write_str("; the outcome is unknown")?;
        }
        if !content.causes.is_empty() {
            write!(f, "; last causes: {}", content.causes.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_says_what_to_do_and_keeps_its_numbers() {
        for code in ErrorCode::ALL {
            let mut refusal = Refusal::new(*code, "because");
            refusal.retry_after_ms = 7;
            let error = Error::refused(&refusal);
            assert_eq!(error.error_code(), Some(*code));
            assert_eq!(error.retry_after(), Some(Duration::from_millis(7)));
            assert!(error.to_string().contains(code.name()), "{error}");
            if code.action() == Action::Never {
                assert!(!error.is_retryable(), "{error}");
                assert_eq!(error.overload(), None);
            }
            if matches!(code.action(), Action::Wait | Action::StopTopic) {
                assert!(error.is_retryable() && error.overload().is_some(), "{error}");
            }
        }
    }

    #[test]
    fn a_code_of_a_newer_broker_is_handled_by_its_high_byte() {
        let mut refusal = Refusal::new(ErrorCode::BacklogFull, "new");
        refusal.code = 0x01ee;
        let error = Error::refused(&refusal);
        assert_eq!((error.code(), error.error_code()), (Some(0x01ee), None));
        assert_eq!(error.overload(), Some(Reason::Other));
        assert!(error.is_retryable());
    }

    #[test]
    fn only_a_damaged_range_has_an_end_to_go_on_from() {
        for code in ErrorCode::ALL {
            let mut refusal = Refusal::new(*code, "because");
            assert_eq!(
                Error::refused(&refusal).damaged_end(),
                None,
                "a partition that is read-only"
            );
            refusal.limit = 46;
            let error = Error::refused(&refusal).with_partition(3);
            let end = (*code == ErrorCode::DamagedRange).then_some(46);
            assert_eq!((error.partition(), error.damaged_end()), (Some(3), end));
        }
    }

    #[test]
    fn a_deadline_names_its_last_causes() {
        let causes = vec!["no credit: backlog".to_owned(), "connection refused".to_owned()];
        let error = Error::deadline(Outcome::Unknown, causes, Some(Reason::Backlog));
        assert_eq!(error.kind(), ErrorKind::Deadline);
        assert!(error.to_string().contains("no credit: backlog, connection refused"), "{error}");
        assert!(error.to_string().contains("unknown"));
        assert_eq!(error.overload(), Some(Reason::Backlog));
    }
}
