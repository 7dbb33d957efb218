use std::{fmt, io, path::Path, process::ExitCode};

use crate::{client::ClientError, config::ConfigError, vault::VaultError, wire::Code};

/// How a process ends; scripts rely on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It did not work.
    Failed = 1,
    /// Arguments that make no sense.
    Usage = 2,
    /// Nobody enrolled that organization.
    UnknownOrganization = 3,
    /// The consent is lost, in doubt or paused.
    Consent = 4,
    /// The provider or the worker cannot be had now.
    Unavailable = 5,
    /// Not allowed.
    NotAllowed = 6,
    /// The configuration is bad (`EX_CONFIG` of sysexits).
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Code> for Exit {
    fn from(code: Code) -> Self {
        match code {
            Code::UnknownOrganization => Self::UnknownOrganization,
            Code::ConsentLost | Code::InDoubt | Code::Paused => Self::Consent,
            Code::ProviderUnavailable | Code::Starting | Code::VaultUnavailable | Code::TooManyRequests => {
                Self::Unavailable
            }
            Code::Forbidden => Self::NotAllowed,
            Code::BadRequest | Code::MinTtlTooLong => Self::Usage,
            Code::NotFound
            | Code::MethodNotAllowed
            | Code::AlreadySpent
            | Code::RotationUnderWay
            | Code::TooLarge
            | Code::Refused
            | Code::WrongOrganization
            | Code::Internal => Self::Failed,
        }
    }
}

/// Why a command did not do what it was asked: one line of what is wrong, and at most one of what to do.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    /// `None`: there is nobody left to tell, or all has been told.
    what: Option<String>,
    hint: Option<String>,
}

impl Failure {
    /// A failure that is told in one line.
    pub(super) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: Some(what.into()), hint: None }
    }

    /// A failure of the plain kind.
    pub(super) fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    /// What is wrong with the vault in `path`, which not every error names.
    pub(super) fn of_vault(error: &VaultError, path: &Path) -> Self {
        let (what, place) = (error.to_string(), path.display().to_string());
        let speaks_of_files = matches!(error, VaultError::Identity { .. } | VaultError::Recipient { .. });
        Self::failed(if what.contains(&place) || speaks_of_files { what } else { format!("{place}: {what}") })
    }

    /// Adds what to do about it, where nothing says so yet.
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// How the process ends.
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// What is to be told on standard error.
    pub(super) fn lines(&self) -> Option<(&str, Option<&str>)> {
        Some((self.what.as_deref()?, self.hint.as_deref()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what.as_deref().unwrap_or("nobody reads what is printed"))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NotRunning { .. } | ClientError::Timeout { .. } => Exit::Unavailable,
            ClientError::Denied { .. } | ClientError::Untrusted { .. } => Exit::NotAllowed,
            ClientError::Problem { problem, .. } => problem.code.into(),
            ClientError::Recipient => Exit::Usage,
            ClientError::Protocol(_) => Exit::Failed,
        };
        let failure = Self::new(exit, error.to_string());
        match error {
            ClientError::Problem { retry_after: Some(after), .. } => {
                failure.with_hint(format!("try again in {} s", after.as_secs()))
            }
            _ => failure,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Configuration, error.to_string())
    }
}

/// Standard output can no longer be written. A reader that has seen enough (`| head`) is no error.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self { exit: Exit::Done, what: None, hint: None }
        } else {
            Self::failed(format!("cannot write to standard output: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Problem;

    fn exit_of(code: Code) -> u8 {
        let problem = Problem {
            renewal_url: None,
            kind: "t".into(),
            title: "t".into(),
            status: code.status(),
            detail: "d".into(),
            code,
            reason: None,
            since: None,
        };
        Failure::from(ClientError::Problem { problem: Box::new(problem), retry_after: None }).exit() as u8
    }

    #[test]
    fn every_code_of_the_api_has_its_exit_code() {
        for code in Code::ALL {
            let expected = match code.word() {
                "unknown_organization" => 3,
                "consent_lost" | "in_doubt" | "paused" => 4,
                "provider_unavailable" | "starting" | "vault_unavailable" | "too_many_requests" => 5,
                "forbidden" => 6,
                "bad_request" | "min_ttl_too_long" => 2,
                _ => 1,
            };
            assert_eq!(exit_of(code), expected, "{}", code.word());
        }
    }

    #[test]
    fn a_worker_that_cannot_be_had_is_5_and_one_that_must_not_be_asked_is_6() {
        let path = std::path::PathBuf::from("/s");
        let exit = |error: ClientError| Failure::from(error).exit();
        assert_eq!(exit(ClientError::NotRunning { path: path.clone() }), Exit::Unavailable);
        assert_eq!(exit(ClientError::Timeout { path: path.clone(), seconds: 1 }), Exit::Unavailable);
        assert_eq!(exit(ClientError::Denied { path: path.clone() }), Exit::NotAllowed);
        assert_eq!(exit(ClientError::Untrusted { path, uid: 9 }), Exit::NotAllowed);
    }

    #[test]
    fn a_reader_who_went_away_is_not_told_about_it() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit(), failure.lines()), (Exit::Done, None));
    }
}
