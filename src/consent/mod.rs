//! The public pages on which a person gives consent: the authorization-code flow (RFC 6749 section 4.1) with PKCE
//! (RFC 7636), from the link to the page that says "done". They have a listener of their own, on which nothing else
//! answers; what becomes of a consent is decided by the keeper.
//!
//! ```text
//! GET  /c/{token}           what is asked for, by whom; changes nothing, so that scanners of mail may open it (`answer`)
//! POST /c/{token}/start     begins a flow (`flows`), sets the cookie, and sends the person to the issuer (`authorize`)
//! GET or POST /callback/{provider}    the issuer sends the person back (`returned`); the keeper stores the consent
//! GET  /done                what came of it, for the browser that began: no code is left in an address
//! ```
//!
//! All of it lies below the path of `consent.public_url`; a proxy may pass that path on or cut it off (`route`). Nothing
//! that a proxy or a caller says about itself (`Host`, `X-Forwarded-*`) decides anything: every address comes from the
//! configuration.
//!
//! The browser that began is the one that ends: a flow is found by the cookie and then by its `state`, both random; the
//! cookie survives a form that the issuer's site posts, and belongs to this host alone (`cookie`). What the person reads
//! is in `texts`, how it looks and which headers guard it in `page`.
//!
//! What is deliberately absent: JavaScript, anything of a third party, and any text that was not escaped on its way into
//! a page.

mod answer;
mod authorize;
mod begin;
mod callback;
mod cookie;
mod date;
mod flows;
mod language;
mod listener;
mod page;
mod rate;
mod returned;
mod route;
#[cfg(test)]
mod tests;
mod texts;
mod trouble;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwapOption;
use jiff::tz::TimeZone;
use tokio_util::task::TaskTracker;
use url::Url;

pub use self::listener::{BindError, Bound, bind};
use self::{flows::Flows, rate::Rate};
use crate::{
    clock::SharedClock, config, keeper::Current, links::Links, metrics::Metrics, model::ProviderName,
    provider::Provider,
};

/// The pages. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keeper: Current,
    clock: SharedClock,
    metrics: Metrics,
    /// `None` until the vault is open.
    offer: ArcSwapOption<Offer>,
    flows: Flows,
    rate: Rate,
    /// Callbacks under way: what the issuer gave is stored also if the browser goes away.
    ending: TaskTracker,
}

/// What the configuration says about the pages; another one may be put in force while flows are under way.
#[derive(Debug)]
pub struct Offer {
    /// Opens links.
    pub links: Links,
    /// How the world reaches the pages.
    pub public_url: Url,
    /// Who asks, as people know it.
    pub name: String,
    /// What dates are meant in.
    pub time_zone: TimeZone,
    /// Every provider at which a person can give consent.
    pub providers: BTreeMap<ProviderName, Arc<Provider>>,
}

impl Pages {
    /// Pages that answer "in a moment" until there is an [`Offer`].
    pub fn new(keeper: Current, clock: SharedClock, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            keeper,
            clock,
            metrics,
            offer: ArcSwapOption::empty(),
            flows: Flows::default(),
            rate: Rate::default(),
            ending: TaskTracker::new(),
        }))
    }

    /// Puts another offer in force, from the next request on.
    pub fn set(&self, offer: Option<Offer>) {
        self.0.offer.store(offer.map(Arc::new));
    }
}

impl Offer {
    /// The path below which the pages lie, without a slash at its end; empty as a rule.
    fn prefix(&self) -> &str {
        self.public_url.path().trim_end_matches('/')
    }

    /// Where the issuer of `provider` sends people back to; registered there once, so that a code of one provider is never
    /// taken to another (RFC 9700 section 4.4).
    fn redirect_uri(&self, provider: &ProviderName) -> String {
        config::redirect_uri(&self.public_url, provider)
    }

    /// Whether browsers reach the pages by https, as anywhere but on a laptop.
    fn is_https(&self) -> bool {
        self.public_url.scheme() == "https"
    }
}
