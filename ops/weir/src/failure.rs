//! Why a command did not do all that it was asked to.
//!
//! Owns: the exit status: 1 something was not done, 2 the input was wrong, 3 data on disk is
//! damaged.
//! Never: hides a cause: what a person reads names what, where and what to do.

use std::io;
use std::process::ExitCode;

/// A command's failure, as it is printed on stderr.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line or the configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// Something was not done.
    #[error("{0}")]
    NotDone(String),
    /// Data on disk is damaged, and nobody has accepted that.
    #[error("{0}")]
    Damaged(String),
    /// The client gave up.
    #[error("{0}")]
    Client(#[from] weir_client::Error),
    /// The admin server did not answer.
    #[error("{0}")]
    Admin(#[from] crate::admin::AdminError),
    /// Reading or writing locally failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Damaged(_) => ExitCode::from(3),
            Self::NotDone(_) | Self::Client(_) | Self::Admin(_) | Self::Io(_) => ExitCode::FAILURE,
        }
    }

    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}
