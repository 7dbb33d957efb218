//! All who take part when a person gives consent: the worker with its public pages, an issuer on another site, and the proxy
//! before both.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use consentry::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::{
    chromium::Chromium,
    front::{Front, Route, Seen, To},
};
use crate::harness::{
    LOOK_EVERY,
    oidc::{Peer, REUSE},
    ports::free_port,
    worker::{Setup, Worker},
};

/// The host name of the consent pages.
pub(super) const CONNECT: &str = "connect.isv.test";
/// The host name of the issuer: another site, since `isv.test` and `issuer.test` share no registered name.
pub(super) const LOGIN: &str = "login.issuer.test";
/// A host name of a third site, which sends everybody on to the issuer.
pub(super) const SIGN_IN: &str = "sign-in.company.test";
/// The provider at which consents are given.
pub(super) const PROVIDER: &str = "connect";
/// Who asks, as the pages name it.
pub(super) const ISV: &str = "Example Books";
/// Access tokens that are refreshed several times while a person reads a page.
const SHORT: u32 = 4;

/// What a test wants to be other than usual.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// Where below the host name the pages are; empty: at its root.
    pub(super) prefix: &'static str,
    /// Whether the proxy takes the prefix away before it passes a request on.
    pub(super) is_stripped: bool,
    /// The host name of the authorize endpoint; `None`: the issuer's.
    pub(super) authorize_at: Option<&'static str>,
    /// Further lines of `[consent]`.
    pub(super) consent: &'static str,
    /// Further lines of the provider.
    pub(super) provider: &'static str,
}

/// Everything but a browser.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) peer: Peer,
    pub(super) front: Front,
    pub(super) worker: Worker,
    /// How the world reaches the pages.
    pub(super) public_url: String,
}

impl Stage {
    /// Starts them all.
    pub(super) fn set(terms: Terms) -> Self {
        let public_url = format!("https://{CONNECT}{}", terms.prefix);
        let peer = Peer::start_for(SHORT, &[&format!("{public_url}/callback/{PROVIDER}")]);
        let pages = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let to_pages = if terms.is_stripped { To::Below(terms.prefix, pages) } else { To::Listener(pages) };
        let front = Front::start(&[
            Route { host: CONNECT, to: to_pages },
            Route { host: LOGIN, to: To::Listener(peer.address().parse().expect("an address")) },
            Route { host: SIGN_IN, to: To::Host(LOGIN) },
        ]);

        // Without a prompt this issuer gives nothing that lasts (OpenID Connect Core section 11).
        let provider = format!(
            "client_auth = \"post\"\nusage = \"reuse\"\nconsent_lifetime = \"180d\"\nprompt = \"consent\"\n\
             authorize_url = \"https://{}/auth\"\n{}",
            terms.authorize_at.unwrap_or(LOGIN),
            terms.provider
        );
        let worker = Setup::default().peer(PROVIDER, &peer, REUSE, &provider).prepare();
        let consent = format!(
            "\n[consent]\nlisten = \"{pages}\"\npublic_url = \"{public_url}\"\nname = \"{ISV}\"\n{}\n",
            terms.consent
        );
        worker.reconfigure(|text| text + &consent);
        Self { peer, front, worker: worker.restart(), public_url }
    }

    /// Enrols a consent of `user` that was given 170 days ago, and so ends in ten.
    pub(super) fn enrol(&self, organization: &str, user: &str) {
        let body = json!({
            "provider": PROVIDER,
            "refresh_token": self.peer.consent(REUSE, user),
            "granted_at": (SystemClock::new().now().wall - Duration::from_hours(170 * 24)).to_string(),
            "labels": { "name": format!("Company {organization} & Sons <Ltd>") },
        });
        let enrolled = self.worker.enrol(organization, &body);
        assert_eq!(enrolled.status, 201, "{enrolled:?}");
    }

    /// A link that renews or gives the organization's consent.
    pub(super) fn link(&self, organization: &str, body: &Value) -> String {
        let path = format!("/v1/organizations/{organization}/consent-link");
        let made = self.worker.request("POST", &path, &[("content-type", "application/json")], &body.to_string());
        assert_eq!(made.status, 200, "{made:?}");
        made.json()["url"].as_str().expect("a link is text").to_owned()
    }

    /// The organization as operators see it.
    pub(super) fn shown(&self, organization: &str) -> Value {
        let shown = self.worker.get(&format!("/v1/organizations/{organization}"));
        assert_eq!(shown.status, 200, "{shown:?}");
        shown.json()
    }

    /// When the organization's consent ends.
    pub(super) fn ends(&self, organization: &str) -> String {
        let shown = self.shown(organization);
        shown["consent"]["expires_at"].as_str().unwrap_or_else(|| panic!("no end in {shown}")).to_owned()
    }

    /// A browser that knows both hosts.
    pub(super) fn browser(&self, languages: &str) -> Chromium {
        Chromium::open(languages, Some(&self.front))
    }

    /// Does something while the organization's access token is fetched all the time: every fetch must give one that lives.
    pub(super) fn while_fetching<T>(&self, organization: &str, act: impl FnOnce() -> T) -> T {
        let (is_over, fetches) = (AtomicBool::new(false), AtomicU64::new(0));
        let done = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let token = self.worker.fetch(organization);
                    assert!(self.peer.is_alive(&token), "a dead token was handed out");
                    fetches.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(LOOK_EVERY);
                }
            });
            let _end = OnDrop(&is_over);
            act()
        });
        assert!(fetches.into_inner() > 0, "nothing was fetched meanwhile");
        done
    }

    /// What the pages were asked for so far.
    pub(super) fn asked_of_pages(&self) -> Vec<Seen> {
        self.front.seen().into_iter().filter(|seen| seen.host == CONNECT).collect()
    }
}

/// Ends the fetching even where the test fails meanwhile.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fills in the issuer's first form.
pub(super) fn log_in(browser: &Chromium, user: &str) {
    browser.types("input[name=login]", user);
    browser.types("input[name=password]", "anything");
    browser.click("button[type=submit]");
}

/// Logs in at the issuer and approves what it is asked there.
pub(super) fn approve(browser: &Chromium, user: &str) {
    browser.arrives(&format!("https://{LOGIN}/"));
    log_in(browser, user);
    browser.reads("offline access");
    browser.click("form button[type=submit]");
}
