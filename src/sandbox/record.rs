use std::fmt;

use serde::{Serialize, Serializer};

use super::{fault::FaultKind, ring_list::RingList, rules::Denied};
use crate::model::{Timestamp, Usage};

/// How many entries the record keeps.
pub const RECORD_CAPACITY: usize = 100_000;
/// How much of a client id that a caller made up is kept, in characters.
const MAX_CLIENT_SHOWN: usize = 64;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantType {
    /// An authorization code was exchanged.
    AuthorizationCode,
    /// A refresh token was exchanged.
    RefreshToken,
    /// An API key was exchanged.
    Password,
    /// A refresh token was revoked (RFC 7009).
    Revocation,
    /// A user withdrew every consent, or an API key was deleted.
    Withdrawal,
    /// Something that the token endpoint does not know.
    Other,
}

/// How it ended at the issuer, whatever the caller got to see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Tokens were given.
    Granted,
    /// It was refused.
    Denied(Denied),
    /// A fault came first.
    NotProcessed,
    /// Done, for what gives no tokens.
    Done,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted => f.write_str("granted"),
            Self::Denied(Denied::InvalidGrant(refusal)) => write!(f, "invalid_grant: {}", refusal.word()),
            Self::Denied(denied) => f.write_str(denied.code()),
            Self::NotProcessed => f.write_str("not_processed"),
            Self::Done => f.write_str("done"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that really happened at the issuer.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Counts up from 0; gaps at the start are entries that were dropped.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// What was asked for.
    pub grant_type: GrantType,
    /// The client id that was presented.
    pub client: String,
    /// Whose token it was, or the organization of an API key; `None` for a token that is not ours.
    pub user: Option<String>,
    /// Which authorization it belongs to: the consents count up from 0.
    pub authorization: Option<u64>,
    /// The place of the presented refresh token in its authorization's sequence, from 0.
    pub token: Option<u32>,
    /// What kind of refresh token it is.
    pub usage: Option<Usage>,
    /// How it ended.
    pub result: Outcome,
    /// The presented token had been spent, and was exchanged again within its grace.
    pub in_grace: bool,
    /// A spent one-time token was presented outside its grace.
    pub replay: bool,
    /// The living authorizations that this ended.
    pub killed: Vec<u64>,
    /// The fault that struck it.
    pub fault: Option<FaultKind>,
}

impl Entry {
    pub(super) fn new(at: Timestamp, grant_type: GrantType, client: &str, fault: Option<FaultKind>) -> Self {
        Self {
            number: 0,
            at,
            grant_type,
            client: client.chars().take(MAX_CLIENT_SHOWN).collect(),
            user: None,
            authorization: None,
            token: None,
            usage: None,
            result: Outcome::NotProcessed,
            in_grace: false,
            replay: false,
            killed: Vec::new(),
            fault,
        }
    }
}

/// The last [`RECORD_CAPACITY`] entries.
#[derive(Debug)]
pub(super) struct Record(RingList<Entry>);

impl Record {
    pub(super) const fn new() -> Self {
        Self(RingList::new(RECORD_CAPACITY))
    }

    pub(super) fn push(&mut self, mut entry: Entry) {
        entry.number = self.0.next();
        let _oldest = self.0.push(entry);
    }

    /// The last `limit` entries, the oldest first.
    pub(super) fn last(&self, limit: usize) -> Vec<Entry> {
        let skip = self.0.iter().len().saturating_sub(limit);
        self.0.iter().skip(skip).cloned().collect()
    }

    pub(super) const fn dropped(&self) -> u64 {
        self.0.dropped()
    }
}
