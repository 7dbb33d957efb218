//! `OpenID` Connect Discovery 1.0 (and RFC 8414): where an issuer's endpoints are.
//!
//! An exchange must not wait for it longer than it has to: a document is good for an hour, a failure is remembered for
//! a minute, one caller at a time asks, and an old document is better than none.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::Method;
use serde::Deserialize;
use url::Url;

use super::{
    detail,
    transport::{Failure, Outgoing, Transport, is_safe_endpoint, without_secrets},
};
use crate::clock::SharedClock;

/// The longest that one discovery may take; it comes on top of an exchange's own limit.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long a document is good.
const LIFETIME: Duration = Duration::from_hours(1);
/// How long after a failure it is not tried again.
const PAUSE: Duration = Duration::from_mins(1);
/// The largest document, in bytes.
const MAX_DOCUMENT: usize = 256 * 1024;

/// One issuer's document, asked for when it is needed.
pub(super) struct Discovery {
    provider: String,
    issuer: Url,
    clock: SharedClock,
    state: Mutex<State>,
    /// Held by the one who asks.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    document: Option<Arc<Document>>,
    /// Until when nobody asks, on the boot-time clock.
    settled_until: Duration,
    is_failing: bool,
}

/// The endpoints that a document names; each may be given a secret.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) token: Option<Url>,
    pub(super) authorize: Option<Url>,
    pub(super) revoke: Option<Url>,
    /// Whether its answers to an authorization request name the issuer (RFC 9207).
    pub(super) sends_issuer: bool,
    /// `token_endpoint_auth_methods_supported`; empty where the document has none.
    pub(super) auth_methods: Vec<String>,
}

impl Discovery {
    pub(super) fn new(provider: &str, issuer: Url, clock: SharedClock) -> Self {
        let (state, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { provider: provider.to_owned(), issuer, clock, state, turn }
    }

    /// Where the document is.
    pub(super) fn url(&self) -> Url {
        let mut url = self.issuer.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.set_path(&format!("{}/.well-known/openid-configuration", self.issuer.path().trim_end_matches('/')));
        url
    }

    /// The document: the one at hand, else a new one; `None` if none could be had lately.
    pub(super) async fn document(&self, transport: &Transport) -> Option<Arc<Document>> {
        let at_hand = self.lock().document.clone();
        if self.is_settled() {
            return at_hand;
        }
        let _turn = match (self.turn.try_lock(), at_hand) {
            (Ok(turn), _) => turn,
            (Err(_), Some(document)) => return Some(document),
            (Err(_), None) => self.turn.lock().await,
        };
        // Whoever had the turn before may have settled it.
        if self.is_settled() {
            return self.lock().document.clone();
        }
        let result = self.fetch(transport).await;
        let now = self.clock.now().boot;
        let mut state = self.lock();
        match result {
            Ok(document) => {
                *state = State {
                    document: Some(Arc::new(document)),
                    settled_until: now.saturating_add(LIFETIME),
                    is_failing: false,
                };
            }
            Err(problem) => {
                if !state.is_failing {
                    tracing::warn!(provider.name = self.provider, error = problem, "discovery failed");
                }
                state.is_failing = true;
                state.settled_until = now.saturating_add(PAUSE);
            }
        }
        state.document.clone()
    }

    /// Asks for the document now; the error is fit for a log.
    pub(super) async fn fetch(&self, transport: &Transport) -> Result<Document, String> {
        let outgoing = Outgoing {
            leave: None,
            method: Method::GET,
            url: self.url(),
            authorization: None,
            form: None,
            fresh: false,
            timeout: TIMEOUT,
            max_body: MAX_DOCUMENT,
        };
        let reply = transport.send(outgoing).await.map_err(Failure::into_detail)?;
        if reply.status != 200 {
            return Err(format!("status {} instead of a discovery document", reply.status));
        }
        read(&reply.body.map_err(Failure::into_detail)?, &self.issuer)
    }

    /// Whether nobody needs to ask now.
    fn is_settled(&self) -> bool {
        self.clock.now().boot < self.lock().settled_until
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The members of a document that matter.
#[derive(Deserialize)]
struct Raw {
    issuer: String,
    token_endpoint: Option<String>,
    authorization_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: Option<bool>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// Reads the document of `issuer`; the error is fit for a log.
pub(super) fn read(body: &[u8], issuer: &Url) -> Result<Document, String> {
    let raw: Raw = serde_json::from_slice(body).map_err(|_| "it is not a discovery document".to_owned())?;
    // RFC 8414 section 3.3: a document of another issuer must not be used. A slash at the end is commonly forgotten.
    if raw.issuer.trim_end_matches('/') != issuer.as_str().trim_end_matches('/') {
        let other = detail::Cleaner::of([]).clean(&raw.issuer);
        return Err(format!("the document is that of {other}, not of {}", without_secrets(issuer)));
    }
    Ok(Document {
        token: endpoint("token_endpoint", raw.token_endpoint)?,
        authorize: endpoint("authorization_endpoint", raw.authorization_endpoint)?,
        revoke: endpoint("revocation_endpoint", raw.revocation_endpoint)?,
        sends_issuer: raw.authorization_response_iss_parameter_supported.unwrap_or(false),
        auth_methods: raw.token_endpoint_auth_methods_supported.unwrap_or_default(),
    })
}

fn endpoint(name: &str, text: Option<String>) -> Result<Option<Url>, String> {
    let Some(text) = text else { return Ok(None) };
    match Url::parse(&text) {
        Ok(url) if is_safe_endpoint(&url) => Ok(Some(url)),
        _ => Err(format!("the document's {name} is not a safe https URL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_for(issuer: &str, body: &str) -> Result<Document, String> {
        read(body.as_bytes(), &issuer.parse().expect("a URL"))
    }

    #[test]
    fn a_document_must_be_the_issuers_own() {
        let body = r#"{"issuer":"https://a.example/t","token_endpoint":"https://b.example/token"}"#;
        for same in ["https://a.example/t", "https://a.example/t/"] {
            let document = read_for(same, body).expect("its own");
            assert_eq!(document.token.expect("there").as_str(), "https://b.example/token");
        }
        for other in ["https://a.example/", "https://evil.example/t", "http://a.example/t"] {
            assert!(read_for(other, body).is_err(), "{other}");
        }
    }

    #[test]
    fn a_document_with_an_unsafe_endpoint_is_not_used() {
        for bad in ["http://a.example/token", "file:///token", "nonsense", "https://u:p@a.example/"] {
            let body = format!(r#"{{"issuer":"https://a.example","token_endpoint":"{bad}"}}"#);
            assert!(read_for("https://a.example", &body).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_document_lies_below_the_issuers_path() {
        let clock = crate::clock::ManualClock::at(crate::model::Timestamp::default());
        for (issuer, expected) in [
            ("https://a.example", "https://a.example/.well-known/openid-configuration"),
            ("https://a.example/t/", "https://a.example/t/.well-known/openid-configuration"),
        ] {
            let discovery = Discovery::new("p", issuer.parse().expect("a URL"), clock.clone());
            assert_eq!(discovery.url().as_str(), expected);
        }
    }
}
