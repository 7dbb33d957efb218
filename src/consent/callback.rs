//! From the issuer to the page that says what came of it.

use axum::{http::StatusCode, response::Response};
use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Pages,
    answer::Asking,
    cookie, date,
    flows::{Back, Going, Latest, Ticket},
    page::{Page, Part, see_other},
    returned::Returned,
    texts::{self, Subject},
    trouble::Trouble,
};
use crate::{
    keeper::{ConsentError, Consented, NewConsent},
    metrics::Flow,
    model::{OrganizationId, ProviderName},
    provider::cleaned,
    task,
};

/// The letters of a reference: none that is mistaken for another on the telephone.
const LETTERS: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
/// How many of them it has: enough to tell apart what a log holds.
const REFERENCE_LENGTH: usize = 8;

/// What came of a flow.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The issuer gave a consent, and it is stored.
    Stored(Consented, Subject),
    /// Nothing was changed.
    Failed {
        /// Why.
        trouble: Trouble,
        /// What the page says it about.
        subject: Subject,
        /// By which the log's line is found.
        reference: String,
    },
}

/// The issuer sends a person back. Whatever comes of it is told at `/done`, so that no code stays in an address, and no
/// reloading sends it twice.
pub(super) async fn answer(
    pages: &Pages,
    asking: &Asking,
    provider: &str,
    returned: &[u8],
) -> Result<Response, Trouble> {
    let returned = Returned::read(returned).ok_or(Trouble::Malformed)?;
    let is_https = asking.offer.is_https();
    let cookie = cookie::read(&asking.headers, is_https);
    let state = returned.state.as_deref().unwrap_or_default();
    let (going, ticket) = match pages.0.flows.come_back(cookie, state, asking.now.boot) {
        Back::Unknown => {
            // Without the flow nobody knows whose it was; the issuer's error is still worth a line.
            told_by_issuer(&returned, provider);
            return Err(Trouble::Lost);
        }
        Back::Again => return Ok(to_done(asking)),
        Back::Here(going, ticket) => (going, ticket),
    };
    let task = end(pages.clone(), *going, ticket, provider.to_owned(), returned);
    // A task of its own: what the issuer gave is stored also if the browser goes away.
    if task::spawn_on(&pages.0.ending, task).await.is_err() {
        tracing::error!("storing a consent panicked; this is a fault of the worker");
    }
    Ok(to_done(asking))
}

fn to_done(asking: &Asking) -> Response {
    see_other(&format!("{}/done", asking.offer.prefix()), asking.offer.is_https())
}

/// Lets the keeper store what the issuer gave, and keeps what came of it for the page.
async fn end(pages: Pages, going: Going, ticket: Ticket, provider: String, returned: Returned) {
    let organization = going.invitation.organization.clone();
    let (subject, asked_at) = (going.subject.clone(), going.invitation.provider.clone());
    // In force until the flow is over, also if the task dies.
    let guard = Unended { pages: &pages, ticket: &ticket, subject: &subject, provider: &asked_at };
    let outcome = match redeem(&pages, going, &provider, returned).await {
        Ok(consented) => {
            audit(&organization, &provider, outcome_word(&consented), None);
            Outcome::Stored(consented, subject.clone())
        }
        Err(Failed { trouble, detail }) => {
            let reference = reference();
            let asked = organization.as_str();
            let (provider_name, word) = (provider.as_str(), trouble.word());
            // A person who says no is no fault of anybody's.
            if trouble == Trouble::Declined {
                tracing::info!(
                    organization = asked,
                    provider.name = provider_name,
                    reference,
                    detail,
                    "a person gave no consent"
                );
            } else {
                tracing::warn!(
                    organization = asked,
                    provider.name = provider_name,
                    reason = word,
                    reference,
                    detail,
                    "a consent came to nothing; nothing was changed"
                );
            }
            audit(&organization, &provider, word, Some(&reference));
            Outcome::Failed { trouble, subject: subject.clone(), reference }
        }
    };
    guard.end();
    pages.0.metrics.flow(&asked_at, flow_of(&outcome));
    pages.0.flows.end(&ticket, outcome, pages.0.clock.now().boot);
}

/// Ends a flow whose task died, so that its page does not wait for ever.
struct Unended<'a> {
    pages: &'a Pages,
    ticket: &'a Ticket,
    subject: &'a Subject,
    provider: &'a ProviderName,
}

impl Unended<'_> {
    fn end(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unended<'_> {
    fn drop(&mut self) {
        let outcome =
            Outcome::Failed { trouble: Trouble::Internal, subject: self.subject.clone(), reference: reference() };
        self.pages.0.metrics.flow(self.provider, Flow::Failed);
        self.pages.0.flows.end(self.ticket, outcome, self.pages.0.clock.now().boot);
    }
}

/// Why nothing came of it, for the person and for the operator.
struct Failed {
    trouble: Trouble,
    /// Without anything secret.
    detail: String,
}

async fn redeem(pages: &Pages, going: Going, provider: &str, returned: Returned) -> Result<Consented, Failed> {
    let failed = |trouble, detail: String| Failed { trouble, detail };
    if going.invitation.provider.as_str() != provider {
        return Err(failed(Trouble::OtherIssuer, "the answer came to another provider’s redirect URI".to_owned()));
    }
    if !returned.is_from(going.issuer.as_deref(), going.sends_issuer) {
        let named = returned.iss.as_deref().map_or_else(|| "nobody".to_owned(), cleaned);
        let asked = going.issuer.unwrap_or_default();
        return Err(failed(Trouble::OtherIssuer, format!("the answer names {named} as its issuer, not {asked}")));
    }
    if let Some(error) = &returned.error {
        let declined = error == "access_denied";
        let trouble = if declined { Trouble::Declined } else { Trouble::Issuer };
        return Err(failed(trouble, in_words(&returned)));
    }
    let Some(code) = returned.code else {
        return Err(failed(Trouble::Issuer, "the answer has neither a code nor an error".to_owned()));
    };
    let Some(keeper) = pages.0.keeper.get() else {
        return Err(failed(Trouble::Unavailable, "no keeper is in force".to_owned()));
    };
    let Going { invitation, verifier, redirect_uri, .. } = going;
    let consent = NewConsent { invitation, code, verifier, redirect_uri };
    keeper.consent(consent).await.map_err(|error: ConsentError| failed(Trouble::from(&error), error.to_string()))
}

/// An issuer's error, as an operator needs it for the issuer's own tools.
fn in_words(returned: &Returned) -> String {
    let part = |name: &str, text: &Option<String>| {
        text.as_deref().map_or_else(String::new, |text| format!("{name}: {}; ", cleaned(text)))
    };
    let words = format!(
        "{}{}{}",
        part("error", &returned.error),
        part("error_description", &returned.error_description),
        part("error_id", &returned.error_id)
    );
    words.trim_end_matches("; ").to_owned()
}

/// Notes an issuer's error that belongs to no flow.
fn told_by_issuer(returned: &Returned, provider: &str) {
    if returned.error.is_some() {
        let detail = in_words(returned);
        tracing::info!(
            provider.name = cleaned(provider),
            detail,
            "an issuer sent back an error to a flow that is over"
        );
    }
}

const fn outcome_word(consented: &Consented) -> &'static str {
    match (consented.connected.is_empty(), consented.renewed) {
        (true, _) => "awaiting-confirmation",
        (false, true) => "renewed",
        (false, false) => "connected",
    }
}

const fn flow_of(outcome: &Outcome) -> Flow {
    match outcome {
        Outcome::Failed { trouble: Trouble::Declined, .. } => Flow::Declined,
        Outcome::Failed { .. } => Flow::Failed,
        Outcome::Stored(consented, _) if consented.connected.is_empty() => Flow::Awaiting,
        Outcome::Stored(Consented { renewed: true, .. }, _) => Flow::Renewed,
        Outcome::Stored(..) => Flow::Connected,
    }
}

/// Writes a line of the audit log: nobody is known by uid here, a link was enough.
fn audit(organization: &OrganizationId, provider: &str, outcome: &str, reference: Option<&str>) {
    tracing::event!(
        target: "consentry::audit",
        tracing::Level::INFO,
        action = "consent",
        organization = organization.as_str(),
        provider,
        outcome,
        reference,
        "audit"
    );
}

/// Letters by which a person on the telephone and a line of the log are brought together.
fn reference() -> String {
    let mut bytes = [0; REFERENCE_LENGTH];
    // Without randomness it is a poor reference, and nothing worse.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

/// What came of the flow that came back last in this browser.
pub(super) fn done(pages: &Pages, asking: &Asking) -> Response {
    let cookie = cookie::read(&asking.headers, asking.offer.is_https());
    let page = match pages.0.flows.latest(cookie, asking.now.boot) {
        None => asking.trouble(Trouble::Lost, None, None),
        Some(Latest::Ending) => ending(asking),
        Some(Latest::Ended(outcome)) => match &*outcome {
            Outcome::Stored(consented, subject) => stored(asking, consented, subject),
            Outcome::Failed { trouble, subject, reference } => {
                let page = asking.trouble(*trouble, Some(subject), Some(reference));
                Page { status: StatusCode::OK, ..page }
            }
        },
    };
    asking.show(page)
}

fn ending(asking: &Asking) -> Page {
    let (title, said) = texts::ending(asking.language);
    let parts = said.into_iter().map(Part::Text).collect();
    Page { language: asking.language, word: "ending", status: StatusCode::OK, title, parts, looks_again: true }
}

fn stored(asking: &Asking, consented: &Consented, subject: &Subject) -> Page {
    let language = asking.language;
    let until = consented.expires_at.map(|at| date::day(at, &asking.offer.time_zone, language));
    let (title, said) = if consented.connected.is_empty() {
        texts::awaiting(language, subject)
    } else {
        texts::done(language, subject, consented.renewed, until.as_deref())
    };
    let mut parts: Vec<Part> = said.into_iter().map(Part::Text).collect();
    let name = |id: &OrganizationId| {
        if *id == subject.id { subject.organization.clone() } else { id.to_string() }
    };
    for (heading, organizations) in [
        (texts::connected(language).to_owned(), &consented.connected),
        (texts::to_be_confirmed(language, &subject.asker), &consented.awaiting),
        (texts::beyond(language).to_owned(), &consented.beyond),
    ] {
        if !organizations.is_empty() {
            parts.push(Part::List(heading, organizations.iter().map(name).collect()));
        }
    }
    Page { language, word: outcome_word(consented), status: StatusCode::OK, title, parts, looks_again: false }
}

#[cfg(test)]
impl Outcome {
    pub(super) fn for_test() -> Self {
        let subject = super::tests::going().subject;
        Self::Failed { trouble: Trouble::Declined, subject, reference: reference() }
    }
}
