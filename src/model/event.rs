use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use super::{Labels, OrganizationId, ProviderName, Timestamp};

/// What the text of every event's id begins with.
const PREFIX: &str = "evt_";
/// How many hexadecimal digits follow it.
const DIGITS: usize = 32;

/// Names something that happened: `evt_` and 32 hexadecimal digits.
///
/// It follows from what happened, by a keyed hash: the same happening told twice, after a restart or by a restored backup,
/// has the same id, and whoever remembers ids is not told twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId([u8; 16]);

impl EventId {
    /// The id of these 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no event's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an event's id: it begins with {PREFIX} and has {DIGITS} lower-case hexadecimal digits after that")]
pub struct InvalidEventId;

impl FromStr for EventId {
    type Err = InvalidEventId;
    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let digits = text.strip_prefix(PREFIX).filter(|digits| digits.len() == DIGITS).ok_or(InvalidEventId)?;
        let plain = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(digits, 16).ok().filter(|_| plain).ok_or(InvalidEventId)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// What kind of thing happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventKind {
    /// A consent ends within one of the configured times.
    ConsentExpiring,
    /// A consent has passed its end date.
    ConsentExpired,
    /// The issuer refused a credential; not yet proven dead.
    ConsentRefused,
    /// The issuer says that a credential is dead.
    ConsentLost,
    /// A one-time token was sent and its fate is unknown.
    ConsentInDoubt,
    /// A person has given consent anew.
    ConsentRenewed,
    /// A credential that was refused, in doubt or lost works again.
    ConsentRecovered,
    /// What ends in the coming weeks.
    ConsentsDigest,
    /// A provider fails as a whole.
    ProviderFailing,
    /// It answers again.
    ProviderRecovered,
    /// The vault takes no more writes. Kept in memory alone, since there is nowhere else to keep it.
    VaultFailing,
    /// An access token was refreshed. Live only: told to who listens in that moment.
    TokenRefreshed,
}

impl EventKind {
    /// All of them, in the order of their places in the vault's records.
    pub const ALL: [Self; 12] = [
        Self::ConsentExpiring,
        Self::ConsentExpired,
        Self::ConsentRefused,
        Self::ConsentLost,
        Self::ConsentInDoubt,
        Self::ConsentRenewed,
        Self::ConsentRecovered,
        Self::ConsentsDigest,
        Self::ProviderFailing,
        Self::ProviderRecovered,
        Self::VaultFailing,
        Self::TokenRefreshed,
    ];

    /// Its word in the contract.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ConsentExpiring => "consent.expiring",
            Self::ConsentExpired => "consent.expired",
            Self::ConsentRefused => "consent.refused",
            Self::ConsentLost => "consent.lost",
            Self::ConsentInDoubt => "consent.in_doubt",
            Self::ConsentRenewed => "consent.renewed",
            Self::ConsentRecovered => "consent.recovered",
            Self::ConsentsDigest => "consents.digest",
            Self::ProviderFailing => "provider.failing",
            Self::ProviderRecovered => "provider.recovered",
            Self::VaultFailing => "vault.failing",
            Self::TokenRefreshed => "token.refreshed",
        }
    }

    /// Whether it is told to whoever listens in that moment and to nobody else: nobody can resume from it, and no webhook
    /// gets it.
    pub const fn is_live_only(self) -> bool {
        matches!(self, Self::TokenRefreshed)
    }
}

/// Something that happened, as it is told to people and programs. Holds no secret but the link of [`renewal_url`](Self::renewal_url).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Names it.
    pub id: EventId,
    /// When it happened, by the wall clock.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// Where, if it is about a provider or a grant.
    pub provider: Option<ProviderName>,
    /// Whose, if it is about an organization's grant. A grant that serves several is told of once for each.
    pub organization: Option<OrganizationId>,
    /// That organization's labels.
    pub labels: Labels,
    /// The grant's state after it, in the contract's words.
    pub state: Option<Cow<'static, str>>,
    /// Why, in the contract's words; of the vault, in plain ones.
    pub reason: Option<Cow<'static, str>>,
    /// When the consent ends, as far as known.
    pub consent_expires_at: Option<Timestamp>,
    /// Days until then, rounded up; zero or less once it has ended.
    pub days_left: Option<i64>,
    /// Where the customer renews the consent.
    pub renewal_url: Option<String>,
    /// Of [`EventKind::ConsentExpiring`]: which of the configured times before the end this is.
    pub within: Option<Duration>,
    /// Of [`EventKind::ConsentsDigest`]: what ends in which week.
    pub weeks: Vec<EndingWeek>,
    /// Of [`EventKind::ConsentsDigest`]: what it counts besides.
    pub outlook: Option<Box<Outlook>>,
}

impl Event {
    /// An event of that kind that is about nothing in particular yet.
    pub const fn new(id: EventId, at: Timestamp, kind: EventKind) -> Self {
        Self {
            id,
            at,
            kind,
            provider: None,
            organization: None,
            labels: Labels::new(),
            state: None,
            reason: None,
            consent_expires_at: None,
            days_left: None,
            renewal_url: None,
            within: None,
            weeks: Vec::new(),
            outlook: None,
        }
    }
}

/// How many consents end in one week.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndingWeek {
    /// The week's Monday, as `2026-11-23`.
    pub week: String,
    /// The provider.
    pub provider: ProviderName,
    /// How many.
    pub consents: u64,
    /// How many of them have an end that nobody told and that is assumed.
    pub assumed: u64,
}

/// How all consents stand, in numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outlook {
    /// For each configured warning, how many consents end within it; cumulative, the expired not counted.
    pub ending: Vec<(Duration, u64)>,
    /// Consents that end after the last week of the list.
    pub later: u64,
    /// Consents past their end.
    pub expired: u64,
    /// Consents whose end is assumed.
    pub end_assumed: u64,
    /// Organizations in doubt.
    pub in_doubt: u64,
    /// Organizations whose grant is lost.
    pub lost: u64,
    /// The least even number of invitations a week that keeps ahead of what ends.
    pub invitations_per_week: u64,
}

/// Names whoever is to be told of events, such as a webhook's URL; the same across restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReceiverId(pub u64);

/// An event as the vault keeps it, with who has not been told of it yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutboxRow {
    /// Its place among all events: each told later has a greater one.
    pub number: u64,
    /// What happened.
    pub event: std::sync::Arc<Event>,
    /// Who is still to be told.
    pub deliveries: Vec<OpenDelivery>,
}

/// A delivery that is still to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenDelivery {
    /// To whom.
    pub receiver: ReceiverId,
    /// How often it was tried.
    pub attempts: u32,
    /// Since when it is to be made.
    pub first_at: Timestamp,
    /// When it is to be tried next.
    pub next_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_does() {
        let id = EventId::from_bytes([0x0a; 16]);
        assert_eq!(id.to_string(), "evt_0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a");
        assert_eq!(id.to_string().parse(), Ok(id));
        let wrong = ["", "evt_", "evt_0a", "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", "evt_0A0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"];
        for wrong in
            wrong.into_iter().chain(["evt_+a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", "evt_ø0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"])
        {
            assert_eq!(wrong.parse::<EventId>(), Err(InvalidEventId), "{wrong}");
        }
    }

    #[test]
    fn no_two_kinds_share_a_word() {
        let words: std::collections::BTreeSet<_> = EventKind::ALL.iter().map(|kind| kind.word()).collect();
        assert_eq!(words.len(), EventKind::ALL.len());
    }
}
