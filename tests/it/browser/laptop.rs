//! What somebody sees who tries it on a laptop: the sandbox as issuer, no proxy, no https.

use std::net::{Ipv4Addr, SocketAddr};

use consentry::model::Usage;
use serde_json::json;

use super::{
    chromium::{self, Chromium},
    pictures,
};
use crate::harness::{
    ports::free_port,
    sandbox::{CONSENTS, Stand},
    worker::Setup,
};

#[test]
fn a_consent_is_renewed_at_the_sandbox_without_a_proxy() {
    if !chromium::is_there() {
        return;
    }
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).prepare();
    let pages = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let consent = format!("\n[consent]\nlisten = \"{pages}\"\npublic_url = \"http://{pages}\"\n");
    worker.reconfigure(|text| text + &consent);
    let worker = worker.restart();
    let token = stand.consent("anna", Usage::Reuse, &["bakery"]);
    let body = json!({ "provider": CONSENTS, "refresh_token": token, "expires_at": "2026-01-31T12:00:00Z" });
    assert_eq!(worker.enrol("bakery", &body).status, 201);
    let made = worker.command(&["connect", "bakery"]);
    let link = String::from_utf8(made.stdout).expect("text");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let browser = Chromium::open("en", None);
    browser.go(link.trim());
    browser.finds("main#invitation");
    pictures(&browser, "laptop");
    browser.click("form button");
    browser.arrives(&stand.url());
    browser.click("input[name=user][value=anna]");
    pictures(&browser, "sandbox");
    browser.click("button[value=approve]");
    browser.finds("main#renewed");
    assert_eq!(browser.url(), format!("http://{pages}/done"));
    let complaints = browser.log();
    assert!(complaints.is_empty(), "{complaints:?}");

    let shown = worker.get("/v1/organizations/bakery").json();
    assert!(shown["consent"]["expires_at"].as_str() > Some("2026-02"), "{shown}");
}
