//! How a command ends: the exit codes of docs/kubectl-fledged.md.

use std::process::ExitCode;

use kube::core::Status as ApiStatus;
use tonic::{Code, Status};

/// The result of a command that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything is as it should be: 0.
    Good,
    /// Something is not ready, or failed: 1.
    NotReady,
    /// It would not fit on some node: 3.
    NoRoom,
}

impl Exit {
    /// [`Exit::Good`] if `good`.
    pub fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::NotReady }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Good => 0,
            Exit::NotReady => 1,
            Exit::NoRoom => 3,
        })
    }
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command cannot be carried out as it is written: 2.
    #[error("{0}")]
    Usage(String),
    /// The cluster does not answer, or the user lacks a right: 4.
    #[error("{0}")]
    NoAccess(String),
    /// Anything else: 1.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// The process's exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NoAccess(_) => 4,
        })
    }

    /// An error of the Kubernetes client; `what` names what was tried.
    pub fn of_kube(what: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_api(what, status),
            error => Self::NoAccess(format!("{what}: {}", chain(error))),
        }
    }

    fn of_api(what: &str, status: &ApiStatus) -> Self {
        let text = format!("{what}: {}", status.message);
        match status.code {
            401 | 403 => Self::NoAccess(text),
            _ => Self::Failed(text),
        }
    }

    /// An answer of the debug service; `what` names what was asked.
    pub fn of_status(what: &str, status: &Status) -> Self {
        let text = format!("{what}: {}", status.message());
        match status.code() {
            Code::InvalidArgument => Self::Usage(text),
            Code::NotFound => Self::Failed(status.message().to_owned()),
            Code::Unimplemented => Self::Failed(format!(
                "{what}: the controller is older than this plugin and cannot answer"
            )),
            Code::Unavailable => Self::NoAccess(text),
            _ => Self::Failed(text),
        }
    }
}

/// An error with its sources, because the outermost often says little.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16) -> Failure {
        let status = ApiStatus {
            code,
            message: "no".to_owned(),
            ..ApiStatus::default()
        };
        Failure::of_kube("list", &kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn a_missing_right_is_no_access_and_a_missing_object_is_a_failure() {
        assert!(matches!(refused(403), Failure::NoAccess(text) if text == "list: no"));
        assert!(matches!(refused(401), Failure::NoAccess(_)));
        assert!(matches!(refused(404), Failure::Failed(_)));
    }

    #[test]
    fn an_older_controller_is_named_as_the_cause() {
        let failure = Failure::of_status("matrix", &Status::unimplemented("unknown method"));
        assert!(failure.to_string().contains("older than this plugin"));
    }
}
