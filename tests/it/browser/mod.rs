//! People's side of it, in a real browser: Chromium at the consent pages and at the board, with the issuer on another
//! site, both behind a proxy that ends TLS.
//!
//! Pictures of the pages are kept in `target/screenshots`, to be looked at.

mod board;
mod chromium;
mod consent;
mod front;
mod laptop;
mod stage;

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::Value;
use url::Url;

use self::{
    chromium::Chromium,
    front::{Front, Route, To},
    stage::{CONNECT, LOGIN, log_in},
};
use crate::harness::{
    eventually, http,
    oidc::{Peer, REUSE},
};

/// Where nobody listens.
const NOWHERE: &str = "127.0.0.1:9";

#[test]
fn a_person_logs_in_at_the_issuers_site_and_comes_back_to_another() {
    if !chromium::is_there() {
        return;
    }
    let redirect_uri = format!("https://{CONNECT}/callback/connect");
    let peer = Peer::start_for(3600, &[&redirect_uri]);
    let front = Front::start(&[
        Route { host: CONNECT, to: To::Listener(address(NOWHERE)) },
        Route { host: LOGIN, to: To::Listener(address(peer.address())) },
    ]);
    let browser = Chromium::open("da,en", Some(&front));
    for response_mode in ["query", "form_post"] {
        browser.go(&authorize_url(&redirect_uri, response_mode));
        if browser.has("input[name=login]") {
            log_in(&browser, "alice");
        }
        browser.click("form button[type=submit]");

        let path = Url::parse(&redirect_uri).expect("a URL").path().to_owned();
        let back = eventually("the browser is sent back", || {
            front.seen().into_iter().find(|seen| {
                seen.host == CONNECT
                    && (seen.method == "POST") == (response_mode == "form_post")
                    && seen.path.starts_with(&path)
            })
        });
        assert_eq!(back.site.as_deref(), Some("cross-site"), "{back:?}");
        assert_eq!(back.status, 502, "nobody listens there: {back:?}");
        assert!(back.language.is_some_and(|language| language.starts_with("da")));
        if response_mode == "query" {
            let back = Url::parse(&browser.arrives(&redirect_uri)).expect("a URL");
            let answer: BTreeMap<String, String> = back.query_pairs().into_owned().collect();
            assert_eq!(answer["state"], "a-state");
            assert_eq!(answer["iss"], peer.issuer());
            assert!(answer.contains_key("code"), "{answer:?}");
        }
    }
}

fn authorize_url(redirect_uri: &str, response_mode: &str) -> String {
    let query = http::form(&[
        ("client_id", REUSE.id),
        ("response_type", "code"),
        ("redirect_uri", redirect_uri),
        ("response_mode", response_mode),
        ("scope", "dineropublicapi:read offline_access"),
        ("prompt", "consent"),
        ("state", "a-state"),
        ("code_challenge", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"),
        ("code_challenge_method", "S256"),
    ]);
    format!("https://{LOGIN}/auth?{query}")
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// What people see on a large screen, by night, and on a phone.
fn pictures(browser: &Chromium, name: &str) {
    browser.screenshot(name);
    browser.prefers("dark");
    browser.screenshot(&format!("{name}-dark"));
    browser.prefers("light");
    browser.resize(Some((360, 640)));
    let wide = browser.script("return document.documentElement.scrollWidth > document.documentElement.clientWidth");
    assert_eq!(wide, Value::Bool(false), "{name} does not fit a phone");
    browser.screenshot(&format!("{name}-phone"));
    browser.resize(None);
}
