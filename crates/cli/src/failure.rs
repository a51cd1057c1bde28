//! How a command fails: what happened, what to do, and the exit code.

use hallmark_client::ClientError;

/// A refusal, or a check that failed.
pub(crate) const REFUSED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// Nobody answers.
pub(crate) const UNREACHABLE: u8 = 3;

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    /// One word for programs.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: Option<String>,
}

impl Failure {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { exit: REFUSED, code: "refused", message: message.into(), remedy: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: USAGE, code: "usage", message: message.into(), remedy: None }
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { exit: UNREACHABLE, code: "unreachable", message: message.into(), remedy: None }
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        // The client's messages end with what to do.
        let text = error.to_string();
        if error.is_unreachable() { Self::unreachable(text) } else { Self::refused(text) }
    }
}
