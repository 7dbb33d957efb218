use std::time::Duration;

use crate::{
    config::{Kind, ProviderConfig},
    model::{
        ClientCredentials, Consent, Credential, FailingReason, Fingerprint, Grant, GrantId, Labels, MAX_LABEL_BYTES,
        MAX_LABELS, State, Timestamp, Usage,
    },
};

/// How far in the future a consent may be said to have been given: other machines' clocks are not ours.
const CLOCK_TOLERANCE: Duration = Duration::from_hours(24);
/// The longest secret that is taken, in bytes.
const MAX_SECRET_BYTES: usize = 8 * 1024;
/// The longest client id, in bytes.
const MAX_CLIENT_ID_BYTES: usize = 256;
/// The longest grace that makes sense: issuers offer up to a minute.
const MAX_GRACE: Duration = Duration::from_mins(10);

/// What is being enrolled.
#[derive(Debug)]
pub struct Enrolling {
    /// The long-lived secret.
    pub credential: Credential,
    /// Client credentials of its own.
    pub client: Option<ClientCredentials>,
    /// When the person approved, if known.
    pub granted_at: Option<Timestamp>,
    /// When the consent ends, if known.
    pub expires_at: Option<Timestamp>,
    /// What it is expected to be.
    pub usage: Option<Usage>,
    /// How long a spent token may be exchanged again.
    pub grace: Option<Duration>,
}

/// Why something cannot be enrolled; fit for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentError {
    /// Visma Connect has no API keys, Dinero's personal integration no refresh tokens.
    #[error("provider {provider} takes {wanted}, not {given}")]
    WrongKind {
        /// The provider's name.
        provider: String,
        /// What it takes.
        wanted: &'static str,
        /// What came.
        given: &'static str,
    },
    /// The secret is empty, too long or holds characters that no issuer gives.
    #[error("the {0} is empty, longer than {MAX_SECRET_BYTES} bytes or holds control characters or spaces")]
    BadSecret(&'static str),
    /// The client id is empty, too long or odd.
    #[error("client_id is empty, longer than {MAX_CLIENT_ID_BYTES} bytes or holds control characters")]
    BadClientId,
    /// There is no client id to exchange it with.
    #[error("provider {0} has no client secret of its own: give client_id and client_secret with the credential")]
    NoClient(String),
    /// A consent cannot have been given later than now.
    #[error("granted_at lies in the future")]
    GrantedInFuture,
    /// It ends before it begins.
    #[error("expires_at is not after granted_at")]
    EndsBeforeItBegins,
    /// Consents end, keys do not.
    #[error("granted_at, expires_at, usage and grace belong to a refresh token, not to an API key")]
    NotForKeys,
    /// More grace than any issuer gives.
    #[error("grace is longer than ten minutes")]
    GraceTooLong,
}

/// A grant as it is before its first exchange.
pub fn new_grant(
    id: GrantId,
    fingerprint: Fingerprint,
    enrolling: Enrolling,
    provider: &ProviderConfig,
    now: Timestamp,
    epoch: u32,
) -> Result<Grant, EnrolmentError> {
    check_kind(&enrolling.credential, provider)?;
    check_secrets(&enrolling)?;
    if enrolling.client.is_none() && provider.client_secret_file.is_none() && provider.kind != Kind::Oauth2 {
        return Err(EnrolmentError::NoClient(provider.name.to_string()));
    }
    let consent = match &enrolling.credential {
        Credential::ApiKey(_) => {
            let says_of_consent = enrolling.granted_at.is_some()
                || enrolling.expires_at.is_some()
                || enrolling.usage.is_some()
                || enrolling.grace.is_some();
            if says_of_consent {
                return Err(EnrolmentError::NotForKeys);
            }
            None
        }
        Credential::RefreshToken(_) => Some(consent(&enrolling, provider, now)?),
    };
    Ok(Grant {
        id,
        provider: provider.name.clone(),
        credential: enrolling.credential,
        fingerprint,
        spent: Vec::new(),
        client: enrolling.client,
        access: None,
        state: State::Failing(FailingReason::Unverified),
        since: now,
        paused: false,
        subject: None,
        consent,
        refreshed_at: None,
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: Vec::new(),
        epoch,
    })
}

fn consent(enrolling: &Enrolling, provider: &ProviderConfig, now: Timestamp) -> Result<Consent, EnrolmentError> {
    if enrolling.granted_at.is_some_and(|granted| granted > now + CLOCK_TOLERANCE) {
        return Err(EnrolmentError::GrantedInFuture);
    }
    let grace = enrolling.grace.unwrap_or(provider.grace);
    if grace > MAX_GRACE {
        return Err(EnrolmentError::GraceTooLong);
    }
    let granted_at = enrolling.granted_at.unwrap_or(now);
    let expires_at = enrolling.expires_at.or_else(|| provider.consent_lifetime.map(|lifetime| granted_at + lifetime));
    let explicit_pair = enrolling.granted_at.is_some() && enrolling.expires_at.is_some();
    if explicit_pair && expires_at.is_some_and(|end| end <= granted_at) {
        return Err(EnrolmentError::EndsBeforeItBegins);
    }
    Ok(Consent {
        granted_at,
        expires_at,
        assumed: enrolling.granted_at.is_none() && enrolling.expires_at.is_none(),
        expected: enrolling.usage.unwrap_or(provider.usage),
        shown: None,
        grace,
        warned: Vec::new(),
    })
}

fn check_kind(credential: &Credential, provider: &ProviderConfig) -> Result<(), EnrolmentError> {
    let (wanted, given) = match (provider.kind, credential) {
        (Kind::VismaConnect, Credential::ApiKey(_)) => ("a refresh token", "an API key"),
        (Kind::DineroPersonal, Credential::RefreshToken(_)) => ("an API key", "a refresh token"),
        _ => return Ok(()),
    };
    Err(EnrolmentError::WrongKind { provider: provider.name.to_string(), wanted, given })
}

fn check_secrets(enrolling: &Enrolling) -> Result<(), EnrolmentError> {
    let fits = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    let (what, secret) = match &enrolling.credential {
        Credential::RefreshToken(secret) => ("refresh_token", secret),
        Credential::ApiKey(secret) => ("api_key", secret),
    };
    if !fits(secret.expose(), MAX_SECRET_BYTES) {
        return Err(EnrolmentError::BadSecret(what));
    }
    if let Some(client) = &enrolling.client {
        if !fits(&client.id, MAX_CLIENT_ID_BYTES) {
            return Err(EnrolmentError::BadClientId);
        }
        if !fits(client.secret.expose(), MAX_SECRET_BYTES) {
            return Err(EnrolmentError::BadSecret("client_secret"));
        }
    }
    Ok(())
}

/// Whether labels stay within the contract's bounds: at most 16, at most 256 bytes each.
pub fn valid_labels(labels: &Labels) -> bool {
    labels.len() <= MAX_LABELS
        && labels.iter().all(|(key, value)| {
            !key.is_empty() && key.len() + value.len() <= MAX_LABEL_BYTES && !key.contains(['=', '\n', '\0'])
        })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        config::{ClientAuth, InDoubtPolicy},
        model::Secret,
    };

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
    const DAY: Duration = Duration::from_hours(24);

    /// A provider of consents that hold for half a year.
    pub(in crate::lifecycle) fn visma() -> ProviderConfig {
        provider(Kind::VismaConnect)
    }

    fn provider(kind: Kind) -> ProviderConfig {
        ProviderConfig {
            name: "p".parse().expect("valid"),
            kind,
            client_id: "isv_x".into(),
            client_secret_file: Some("/secret".into()),
            scopes: vec![],
            pkce: true,
            usage: Usage::Reuse,
            consent_lifetime: Some(DAY * 180),
            idle_lifetime: None,
            grace: Duration::ZERO,
            in_doubt: InDoubtPolicy::Hold,
            max_per_minute: 600,
            issuer: None,
            token_url: None,
            authorize_url: None,
            revoke_url: None,
            organizations_url: None,
            client_auth: ClientAuth::Post,
            response_mode: None,
            prompt: None,
        }
    }

    fn enrolling(credential: Credential) -> Enrolling {
        Enrolling { credential, client: None, granted_at: None, expires_at: None, usage: None, grace: None }
    }

    fn token() -> Enrolling {
        enrolling(Credential::RefreshToken(Secret::new("rt")))
    }

    fn make(enrolling: Enrolling, kind: Kind) -> Result<Grant, EnrolmentError> {
        new_grant(GrantId::from_bytes([0; 16]), Fingerprint([0; 16]), enrolling, &provider(kind), NOW, 1)
    }

    #[test]
    fn a_consent_without_a_date_is_assumed_to_begin_now_and_says_so() {
        let consent = make(token(), Kind::VismaConnect).expect("fits").consent.expect("consent");
        assert_eq!((consent.assumed, consent.expires_at), (true, Some(NOW + DAY * 180)));
        let dated = Enrolling { granted_at: Some(NOW - DAY * 100), ..token() };
        let consent = make(dated, Kind::VismaConnect).expect("fits").consent.expect("consent");
        assert_eq!((consent.assumed, consent.expires_at), (false, Some(NOW + DAY * 80)));
    }

    #[test]
    fn whatever_is_expected_it_is_one_time_until_shown_otherwise() {
        assert!(
            make(Enrolling { usage: Some(Usage::Reuse), ..token() }, Kind::VismaConnect).expect("fits").is_one_time()
        );
    }

    #[test]
    fn each_kind_of_provider_takes_its_own_kind_of_secret() {
        let key = || enrolling(Credential::ApiKey(Secret::new("key")));
        assert!(matches!(make(key(), Kind::VismaConnect), Err(EnrolmentError::WrongKind { .. })));
        assert!(matches!(make(token(), Kind::DineroPersonal), Err(EnrolmentError::WrongKind { .. })));
        assert!(make(key(), Kind::DineroPersonal).is_ok());
        assert!(make(key(), Kind::Oauth2).is_ok());
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        let bad = |enrolling| make(enrolling, Kind::Oauth2).expect_err("nonsense");
        let secret = |text: &str| enrolling(Credential::RefreshToken(Secret::new(text)));
        assert_eq!(bad(secret("")), EnrolmentError::BadSecret("refresh_token"));
        assert_eq!(bad(secret("a\nb")), EnrolmentError::BadSecret("refresh_token"));
        assert_eq!(bad(secret(&"a".repeat(8193))), EnrolmentError::BadSecret("refresh_token"));
        assert_eq!(bad(Enrolling { granted_at: Some(NOW + DAY * 2), ..token() }), EnrolmentError::GrantedInFuture);
        let backwards = Enrolling { granted_at: Some(NOW), expires_at: Some(NOW), ..token() };
        assert_eq!(bad(backwards), EnrolmentError::EndsBeforeItBegins);
        assert_eq!(bad(Enrolling { grace: Some(DAY), ..token() }), EnrolmentError::GraceTooLong);
        let dated_key = Enrolling { expires_at: Some(NOW), ..enrolling(Credential::ApiKey(Secret::new("k"))) };
        assert_eq!(bad(dated_key), EnrolmentError::NotForKeys);
    }

    #[test]
    fn labels_are_bounded() {
        let labels = |n: usize| (0..n).map(|i| (format!("k{i}"), "v".to_owned())).collect::<Labels>();
        assert!(valid_labels(&labels(16)));
        assert!(!valid_labels(&labels(17)));
        assert!(!valid_labels(&Labels::from([("k".into(), "v".repeat(256))])));
        assert!(!valid_labels(&Labels::from([("a=b".into(), "v".into())])));
    }
}
