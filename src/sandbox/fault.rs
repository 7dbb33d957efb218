use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What `Retry-After` says where a fault does not set it.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long a slow answer takes where a fault does not set it.
const DEFAULT_DELAY: Duration = Duration::from_secs(3);

/// What goes wrong on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// 503 with `Retry-After`; nothing is exchanged.
    Outage,
    /// 500.
    #[serde(rename = "error_500")]
    Error500,
    /// 429 with `Retry-After`; nothing is exchanged.
    RateLimit,
    /// The request is read and never answered.
    Hang,
    /// The exchange happens, then the connection is closed without an answer: the lost answer.
    DropAfter,
    /// The connection is closed without an answer; nothing is exchanged.
    DropBefore,
    /// 200 with JSON that is cut off: the exchange happens, unless the fault says otherwise.
    Garbage,
    /// 502 with a page of HTML, as a proxy in front would answer.
    Html,
    /// The exchange happens at once and the answer comes late.
    Slow,
    /// `invalid_client`, although the secret is right; nothing is exchanged.
    InvalidClient,
    /// The answer has no `expires_in`.
    NoExpiresIn,
    /// `expires_in` is text: `"3600"`.
    StringExpiresIn,
    /// The answer has no `refresh_token`. A one-time token is not spent then, which is what the absence means
    /// (RFC 6749 section 6).
    OmitRefreshToken,
}

impl FaultKind {
    /// Whether the exchange happens where the fault does not say.
    const fn processes(self) -> bool {
        matches!(
            self,
            Self::DropAfter
                | Self::Garbage
                | Self::Slow
                | Self::NoExpiresIn
                | Self::StringExpiresIn
                | Self::OmitRefreshToken
        )
    }

    /// Whether the fault may say if the exchange happens. The others state it by what they are.
    pub const fn may_choose(self) -> bool {
        matches!(self, Self::Error500 | Self::Hang | Self::Garbage | Self::Html)
    }
}

/// A fault, and when it strikes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    #[serde(rename = "fault")]
    pub kind: FaultKind,
    /// How often it strikes before it is over; `None`: until it is cleared.
    #[serde(default)]
    pub times: Option<u32>,
    /// Whose exchanges it strikes: a user, or an organization for API keys; `None`: everybody's.
    #[serde(default)]
    pub user: Option<String>,
    /// How likely it strikes an exchange that it could strike: 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
    /// Whether the exchange happens nevertheless; only for those kinds that leave it open.
    #[serde(default)]
    pub processed: Option<bool>,
    /// It strikes discovery, revocation and the organizations too, as far as it can be told from an answer there.
    #[serde(default)]
    pub everywhere: bool,
    /// What `Retry-After` says, in seconds.
    #[serde(default)]
    pub retry_after_seconds: Option<u64>,
    /// How late a slow answer is, in milliseconds.
    #[serde(default)]
    pub delay_ms: Option<u64>,
}

const fn always() -> f64 {
    1.0
}

impl Fault {
    /// A fault that strikes every exchange until it is cleared.
    pub const fn always(kind: FaultKind) -> Self {
        Self {
            kind,
            times: None,
            user: None,
            probability: 1.0,
            processed: None,
            everywhere: false,
            retry_after_seconds: None,
            delay_ms: None,
        }
    }

    /// A fault that strikes once.
    pub fn once(kind: FaultKind) -> Self {
        Self { times: Some(1), ..Self::always(kind) }
    }

    /// Whether the exchange happens under it.
    pub fn processes(&self) -> bool {
        match self.processed {
            Some(processed) if self.kind.may_choose() => processed,
            _ => self.kind.processes(),
        }
    }

    /// What `Retry-After` says.
    pub fn retry_after(&self) -> Duration {
        self.retry_after_seconds.map_or(DEFAULT_RETRY_AFTER, Duration::from_secs)
    }

    /// How late a slow answer is.
    pub fn delay(&self) -> Duration {
        self.delay_ms.map_or(DEFAULT_DELAY, Duration::from_millis)
    }

    /// Whether it could strike an exchange of `user`'s.
    pub(super) fn concerns(&self, user: Option<&str>) -> bool {
        self.times != Some(0) && self.user.as_deref().is_none_or(|whose| user == Some(whose))
    }
}
