//! The three issuers of the load, each with another rule for what is in doubt, behind wires that can be cut.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use consentry::{
    model::Usage,
    sandbox::{Entry, Fault, FaultKind, Outcome},
};
use fastrand::Rng;
use serde_json::Value;

use crate::harness::{sandbox::Stand, tap::Tap};

/// How long an access token lives: short, so that there is always an exchange under way.
pub(crate) const TOKEN_SECONDS: u64 = 4;
/// How long an exchange takes at the issuer; in its middle it is noted.
const EXCHANGE: Duration = Duration::from_millis(80);
/// Longer than any restart takes: a cut exchange can be tried again by itself within it.
const GRACE: Duration = Duration::from_secs(20);

/// What becomes of a token that is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It waits for an operator.
    Hold,
    /// It is tried again once that can harm nobody.
    Harmless,
    /// It is tried again within its grace, and else waits.
    Grace,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Hold, Self::Harmless, Self::Grace];

    /// The provider's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Harmless => "harmless",
            Self::Grace => "grace",
        }
    }

    const fn grace(self) -> Duration {
        if matches!(self, Self::Grace) { GRACE } else { Duration::ZERO }
    }
}

/// One issuer and the wire to it.
#[derive(Debug)]
pub(crate) struct Issuer {
    pub(crate) stand: Stand,
    tap: Tap,
}

impl Issuer {
    fn start(kind: Kind) -> Self {
        let tap = Tap::deaf();
        let stand = Stand::start_with(TOKEN_SECONDS, |config| {
            config.latency = EXCHANGE;
            config.grace = kind.grace();
            config.usage = Usage::OneTime;
            config.public_url = Some(format!("http://{}", tap.address()).parse().expect("a URL"));
        });
        tap.lead_to(stand.addr());
        Self { stand, tap }
    }

    /// A new consent of the organization's one user.
    pub(crate) fn consent(&self, organization: &str) -> String {
        self.stand.consent(organization, Usage::OneTime, &[organization])
    }

    /// Whether this was the last access token that the user's authorizations were given, so that the one-time token that
    /// came with it has not been spent.
    pub(crate) fn is_newest(&self, organization: &str, token: &Token) -> bool {
        let granted = self.stand.issuer().record().into_iter().filter(|entry| entry.result == Outcome::Granted);
        let of_user = granted.enumerate().filter(|(_, entry)| entry.user.as_deref() == Some(organization));
        of_user.last().is_some_and(|(serial, _)| serial == token.serial)
    }

    /// Goes wrong in one of the ways in which an issuer can die: in the middle of whatever it is doing, after an exchange
    /// and before its answer, or in the middle of the answer.
    pub(crate) fn fail(&self, rng: &mut Rng) {
        match rng.u8(..3) {
            0 => self.tap.cut(),
            1 => self.stand.fault(Fault::once(FaultKind::DropAfter)),
            _ => self.stand.fault(Fault::once(FaultKind::Garbage)),
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Issuers([Issuer; 3]);

impl Issuers {
    pub(crate) fn start() -> Self {
        Self(Kind::ALL.map(Issuer::start))
    }

    pub(crate) fn of(&self, kind: Kind) -> &Issuer {
        &self.0[kind as usize]
    }

    /// Name, client secret and lines of each as a provider.
    pub(crate) fn providers(&self) -> impl Iterator<Item = (&'static str, &str, String)> {
        Kind::ALL.into_iter().map(|kind| {
            let stand = &self.of(kind).stand;
            let (url, (id, secret)) = (stand.url(), stand.client());
            let in_doubt = if kind == Kind::Harmless { "retry-when-harmless" } else { "hold" };
            let lines = format!(
                "kind = \"visma-connect\"\nissuer = \"{url}\"\nclient_id = \"{id}\"\n\
                 organizations_url = \"{url}/v1/organizations\"\nmax_per_minute = 6000\nusage = \"one-time\"\n\
                 grace = \"{}s\"\nin_doubt = \"{in_doubt}\"",
                kind.grace().as_secs()
            );
            (kind.name(), secret, lines)
        })
    }
}

/// What an access token of the sandbox says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The consent behind it.
    pub(crate) authorization: u64,
    /// How many access tokens its issuer had given before it: the number of the exchange it is from, of those that were granted.
    pub(crate) serial: usize,
}

impl Token {
    pub(crate) fn read(text: &str) -> Self {
        let payload = text.split('.').nth(1).expect("a JWT has three parts");
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).expect("a JWT is base64");
        let claims: Value = serde_json::from_slice(&payload).expect("a JWT is JSON");
        let jti = claims["jti"].as_str().expect("the sandbox's have a jti");
        let number = |digits: &str| u64::from_str_radix(digits, 16).expect("hexadecimal digits");
        let serial = usize::try_from(number(&jti[16..])).expect("there are few");
        Self { authorization: number(&jti[2..16]), serial }
    }
}

/// The granted exchanges among the entries, by the serial of the access token that each gave.
pub(crate) fn granted(entries: &[Entry]) -> Vec<&Entry> {
    entries.iter().filter(|entry| entry.result == Outcome::Granted).collect()
}
