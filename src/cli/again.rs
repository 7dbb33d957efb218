//! Asking a worker once more, where it asks to wait: for commands that ask it many things.

use std::{future::Future, time::Duration};

use crate::{client::ClientError, wire::Code};

/// How often something is asked for again.
const MAX_RETRIES: u32 = 8;
/// The longest single wait before it is.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What `ask` gives, after as many tries as may help.
pub(super) async fn again<T, A>(mut ask: impl FnMut() -> A) -> Result<T, ClientError>
where
    A: Future<Output = Result<T, ClientError>>,
{
    let mut retries = 0;
    loop {
        match ask().await {
            Err(error) if retries < MAX_RETRIES => match pause_before_retry(&error, retries) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
            answer => return answer,
        }
        retries += 1;
    }
}

/// How long to wait where waiting may help: what the worker says, else twice as long each time.
fn pause_before_retry(error: &ClientError, retries: u32) -> Option<Duration> {
    let ClientError::Problem { problem, retry_after } = error else { return None };
    let may_help = matches!(problem.code, Code::Starting | Code::VaultUnavailable | Code::TooManyRequests);
    let doubled = Duration::from_millis(250).saturating_mul(2_u32.saturating_pow(retries));
    may_help.then(|| retry_after.unwrap_or(doubled).min(MAX_PAUSE))
}

/// Whether nothing else that is asked of this worker could fare better.
pub(super) const fn ends_all(error: &ClientError) -> bool {
    matches!(error, ClientError::NotRunning { .. } | ClientError::Denied { .. } | ClientError::Untrusted { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Problem;

    fn problem(code: Code, retry_after: Option<Duration>) -> ClientError {
        let detail = "d".to_owned();
        let problem = Problem {
            renewal_url: None,
            kind: "t".into(),
            title: "t".into(),
            status: code.status(),
            detail,
            code,
            reason: None,
            since: None,
        };
        ClientError::Problem { problem: Box::new(problem), retry_after }
    }

    #[test]
    fn something_is_asked_again_only_where_waiting_may_help() {
        let pause = |code, after| pause_before_retry(&problem(code, after), 2);
        assert_eq!(pause(Code::Starting, Some(Duration::from_secs(1))), Some(Duration::from_secs(1)));
        assert_eq!(pause(Code::VaultUnavailable, None), Some(Duration::from_secs(1)));
        assert_eq!(pause(Code::TooManyRequests, Some(Duration::from_hours(1))), Some(MAX_PAUSE));
        assert_eq!(pause(Code::AlreadySpent, None), None);
        assert_eq!(pause(Code::Refused, None), None);
    }

    #[test]
    fn only_a_worker_that_is_gone_ends_all() {
        assert!(ends_all(&ClientError::NotRunning { path: "/s".into() }));
        assert!(!ends_all(&problem(Code::Forbidden, None)));
        assert!(!ends_all(&ClientError::Protocol("x".into())));
    }
}
