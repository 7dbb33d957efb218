//! A person opens a link, consents at the issuer, and comes back: with everything that may go wrong on the way.

use serde_json::{Value, json};

use super::{
    chromium::{self, Chromium, key},
    pictures,
    stage::{CONNECT, ISV, LOGIN, PROVIDER, SIGN_IN, Stage, Terms, approve, log_in},
};
use crate::harness::eventually;

/// The button that begins it.
const START: &str = "form button";
/// The issuer's link by which a person refuses.
const REFUSE: &str = "a[href$='/abort']";

const QUERY: &str = "response_mode = \"query\"";
const FORM_POST: &str = "response_mode = \"form_post\"";

/// The consent of the organization, but for what was told of its end, which may be at any time.
fn given(stage: &Stage) -> Value {
    let mut consent = stage.shown("org-a")["consent"].take();
    consent["warned"].take();
    consent
}

#[test]
fn a_person_renews_a_consent_by_a_query_while_fetches_go_on_and_the_link_is_used_up() {
    if !chromium::is_there() {
        return;
    }
    let stage = Stage::set(Terms { provider: QUERY, ..Terms::default() });
    stage.enrol("org-a", "alice");
    let link = stage.link("org-a", &json!({}));
    let browser = stage.browser("en-GB,en");
    renew(&stage, &browser, &link, "en");

    let back = callback(&stage, "GET");
    let code = between(&back.path, "code=", "&");
    assert!(!browser.markup().contains(code) && !browser.kept_history().to_string().contains(code));

    let ends = stage.ends("org-a");
    browser.go(&link);
    shows(&browser, "used-link");
    assert!(!browser.has(START), "there is nothing to begin");
    pictures(&browser, "used-link");
    assert_eq!(stage.ends("org-a"), ends);
}

#[test]
fn a_person_renews_a_consent_by_a_form_of_the_issuers_site_below_a_path() {
    if !chromium::is_there() {
        return;
    }
    let terms = Terms { prefix: "/books/consents", is_stripped: true, provider: FORM_POST, ..Terms::default() };
    let stage = Stage::set(terms);
    stage.enrol("org-a", "alice");
    let browser = stage.browser("da,en");
    renew(&stage, &browser, &stage.link("org-a", &json!({})), "da");
    let back = callback(&stage, "POST");
    assert_eq!(back.path, format!("/books/consents/callback/{PROVIDER}"), "nothing is in the address");
}

/// From the link to the page that says that it is done.
fn renew(stage: &Stage, browser: &Chromium, link: &str, language: &str) {
    let before = stage.ends("org-a");
    stage.while_fetching("org-a", || {
        browser.go(link);
        assert_eq!(browser.language(), language);
        let text = shows(browser, "invitation");
        for known in [ISV, LOGIN, "Company org-a & Sons <Ltd>"] {
            assert!(text.contains(known), "who asks, where, and about whose books: {text}");
        }
        pictures(browser, &format!("link-{language}"));
        assert_eq!(stage.ends("org-a"), before, "opening it changes nothing");

        // By keyboard alone.
        browser.press(key::TAB);
        browser.press(key::ENTER);
        approve(browser, "alice");
        browser.arrives(&format!("{}/done", stage.public_url));
        shows(browser, "renewed");
        assert_eq!(browser.language(), language);
        pictures(browser, &format!("done-{language}"));
    });

    let shown = stage.shown("org-a");
    assert!(stage.ends("org-a") > before, "{shown}");
    assert_eq!((&shown["state"], &shown["subject"]), (&json!("active"), &json!("alice")), "{shown}");
    assert_eq!(shown["labels"]["name"], "Company org-a & Sons <Ltd>", "labels are kept: {shown}");
    leaves_nothing(stage, browser, link);
}

/// Nothing secret is left in the page, in its address, in the history or with anybody else, and no page was refused
/// anything by its own policy.
fn leaves_nothing(stage: &Stage, browser: &Chromium, link: &str) {
    assert_eq!(browser.url(), format!("{}/done", stage.public_url));
    let token = link.rsplit('/').next().expect("a link has a path");
    let sent = state_of_last_request(stage);
    let secrets = [token, &sent, &stage.worker.fetch("org-a")];

    let page = browser.markup();
    assert!(!secrets.iter().any(|secret| page.contains(secret)), "{page}");
    let known = browser.script(
        "return JSON.stringify([location.href, document.referrer, document.cookie, Object.keys(localStorage), \
         Object.keys(sessionStorage), performance.getEntries().map(entry => entry.name), history.state])",
    );
    let known = known.as_str().expect("it was made text").to_owned();
    assert!(!secrets.iter().any(|secret| known.contains(secret)), "{known}");

    let ours: Vec<String> = browser.history().into_iter().filter(|url| url.contains(CONNECT)).collect();
    for url in &ours {
        assert!(url == link || !url.contains(['?', '#']), "in the history: {url}");
        assert!(!url.contains("/callback"), "going back would call again: {ours:?}");
    }
    for seen in stage.front.seen().iter().filter(|seen| seen.host == LOGIN) {
        let from_us = seen.referer.as_ref().is_some_and(|referer| referer.contains(CONNECT));
        assert!(!from_us, "the issuer was told of the link: {seen:?}");
    }
    assert!(!browser.kept_history().to_string().contains(&sent));
    let log = browser.log();
    let ours: Vec<&String> = log.iter().filter(|line| line.contains(CONNECT)).collect();
    assert!(ours.is_empty(), "the browser complains: {ours:?}");
}

#[test]
fn a_refusal_and_a_wrong_person_change_nothing_and_the_link_stays_good() {
    if !chromium::is_there() {
        return;
    }
    let stage = Stage::set(Terms { provider: FORM_POST, ..Terms::default() });
    stage.enrol("org-a", "alice");
    let before = given(&stage);
    let link = stage.link("org-a", &json!({}));

    stage.while_fetching("org-a", || {
        let browser = stage.browser("en");
        browser.go(&link);
        browser.click(START);
        browser.arrives(&format!("https://{LOGIN}/"));
        browser.click(REFUSE);
        browser.arrives(&format!("{}/done", stage.public_url));
        shows(&browser, "declined");
        pictures(&browser, "declined");
        assert_eq!(given(&stage), before);

        // Bob keeps the books of another company.
        browser.go(&link);
        browser.click(START);
        approve(&browser, "bob");
        browser.arrives(&format!("{}/done", stage.public_url));
        let text = shows(&browser, "wrong-organization");
        assert!(!text.contains("org-d"), "nobody's other companies are named: {text}");
        pictures(&browser, "wrong-organization");
        assert_eq!(given(&stage), before);
        assert_eq!(stage.shown("org-a")["subject"], "alice");
    });
    let log = stage.worker.log();
    assert!(log.contains("wrong") && log.contains("org-a"), "the operator is told:\n{log}");

    let browser = stage.browser("en");
    browser.go(&link);
    browser.click(START);
    approve(&browser, "alice");
    browser.arrives(&format!("{}/done", stage.public_url));
    eventually("the consent is renewed", || (given(&stage) != before).then_some(()));
}

#[test]
fn a_forged_answer_is_refused_and_harms_nobody_who_is_on_the_way() {
    if !chromium::is_there() {
        return;
    }
    let stage = Stage::set(Terms { provider: QUERY, ..Terms::default() });
    stage.enrol("org-a", "alice");
    let before = given(&stage);
    let link = stage.link("org-a", &json!({}));
    let callback = format!("{}/callback/{PROVIDER}", stage.public_url);
    let iss = stage.peer.issuer();

    let browser = stage.browser("en");
    browser.go(&link);
    browser.click(START);
    browser.arrives(&format!("https://{LOGIN}/"));
    let first_tab = browser.new_tab();
    browser.go(&format!("{callback}?code=made-up&state=forged&iss={iss}"));
    shows(&browser, "lost-session");
    pictures(&browser, "forged");

    // Another site makes the browser post what it likes.
    browser.go(&format!("https://{LOGIN}/.well-known/openid-configuration"));
    browser.script(&format!(
        "const form = document.createElement('form'); form.method = 'POST'; form.action = '{callback}'; \
         for (const [name, value] of [['code', 'made-up'], ['state', 'forged'], ['iss', '{iss}']]) {{ \
           const field = document.createElement('input'); field.name = name; field.value = value; form.append(field); }} \
         document.body.append(form); form.submit();"
    ));
    browser.arrives(&stage.public_url);
    shows(&browser, "lost-session");

    // Another browser, which does not have the cookie, with the state of this one.
    let sent = state_of_last_request(&stage);
    let other = stage.browser("en");
    other.go(&format!("{callback}?code=made-up&state={sent}&iss={iss}"));
    shows(&other, "lost-session");
    assert_eq!(given(&stage), before);

    browser.switch_to(&first_tab);
    approve(&browser, "alice");
    browser.arrives(&format!("{}/done", stage.public_url));
    shows(&browser, "renewed");
    assert_ne!(given(&stage), before);
    let refused: Vec<_> = stage.asked_of_pages().into_iter().filter(|seen| seen.path.contains("forged")).collect();
    assert!(refused.iter().all(|seen| seen.status == 400), "{refused:?}");
}

#[test]
fn of_two_tabs_the_first_to_come_back_renews_and_the_other_learns_it() {
    if !chromium::is_there() {
        return;
    }
    let stage = Stage::set(Terms { provider: FORM_POST, ..Terms::default() });
    stage.enrol("org-a", "alice");
    let link = stage.link("org-a", &json!({}));
    let browser = stage.browser("en");
    browser.go(&link);
    browser.click(START);
    browser.arrives(&format!("https://{LOGIN}/"));
    let first_tab = browser.new_tab();
    browser.go(&link);
    browser.click(START);
    approve(&browser, "alice");
    browser.arrives(&format!("{}/done", stage.public_url));
    let consent = stage.shown("org-a")["consent"].clone();

    browser.switch_to(&first_tab);
    log_in(&browser, "alice");
    browser.reads("offline access");
    browser.click("form button[type=submit]");
    browser.arrives(&format!("{}/done", stage.public_url));
    shows(&browser, "used-link");
    assert_eq!(stage.shown("org-a")["consent"], consent, "the second changed nothing");
}

#[test]
fn a_link_that_is_over_or_that_nobody_made_is_told_from_one_that_is_good() {
    if !chromium::is_there() {
        return;
    }
    let stage = Stage::set(Terms { consent: "link_lifetime = \"1s\"", ..Terms::default() });
    stage.enrol("org-a", "alice");
    let link = stage.link("org-a", &json!({}));
    for (languages, language) in [("da", "da"), ("en", "en"), ("de-DE,de", "en")] {
        let browser = stage.browser(languages);
        eventually("the link ends", || {
            browser.go(&link);
            browser.has("main#expired-link").then_some(())
        });
        assert_eq!(browser.language(), language);
        pictures(&browser, &format!("expired-link-{language}"));
        assert!(!browser.has(START), "there is nothing to begin");

        browser.go(&format!("{}/c/nobody-made-this", stage.public_url));
        shows(&browser, "unreadable-link");
        assert_eq!(browser.language(), language);
        pictures(&browser, &format!("unreadable-link-{language}"));
        for nothing in ["metrics", "board", "v1/status", "readyz"] {
            browser.go(&format!("{}/{nothing}", stage.public_url));
            shows(&browser, "not-found");
        }
    }
}

#[test]
fn one_consent_connects_two_companies_of_the_same_person_for_the_first_time() {
    if !chromium::is_there() {
        return;
    }
    // The issuer sends people on to the sign-in of their own company first, on a third site.
    let stage = Stage::set(Terms { provider: FORM_POST, authorize_at: Some(SIGN_IN), ..Terms::default() });
    let link = stage.link("org-a", &json!({ "provider": PROVIDER, "also": ["org-b", "org-d"] }));
    let browser = stage.browser("da");
    browser.go(&link);
    let text = shows(&browser, "invitation");
    assert!(["org-a", "org-b", "org-d"].iter().all(|company| text.contains(company)), "{text}");
    pictures(&browser, "link-several");
    browser.click(START);
    approve(&browser, "alice");
    browser.arrives(&format!("{}/done", stage.public_url));
    let text = shows(&browser, "connected");
    assert!(["org-a", "org-b", "org-d"].iter().all(|company| text.contains(company)), "{text}");
    pictures(&browser, "done-several");

    assert_eq!(stage.shown("org-a")["shares_grant_with"], json!(["org-b"]));
    assert_eq!(stage.worker.fetch("org-a"), stage.worker.fetch("org-b"));
    assert_eq!(stage.worker.get("/v1/organizations/org-d").status, 404, "that one is bob's");
}

/// Waits for the page of that name, and gives what a person reads there.
fn shows(browser: &Chromium, page: &str) -> String {
    browser.finds(&format!("main#{page}"));
    browser.text()
}

/// The answer that came back to the worker.
fn callback(stage: &Stage, method: &str) -> super::front::Seen {
    let mut seen = stage.asked_of_pages().into_iter();
    let back = seen.find(|seen| seen.path.contains("/callback/")).expect("the issuer sent the browser back");
    assert_eq!((back.method.as_str(), back.status), (method, 303), "{back:?}");
    assert_eq!(back.site.as_deref(), Some("cross-site"), "the issuer is another site: {back:?}");
    assert!(back.cookies.iter().any(|cookie| cookie.starts_with("__Host-")), "{back:?}");
    back
}

/// The `state` of the last request that a browser took to the issuer.
fn state_of_last_request(stage: &Stage) -> String {
    let seen = stage.front.seen();
    let asked = seen.iter().rev().find(|seen| seen.host == LOGIN && seen.path.starts_with("/auth?"));
    between(&asked.expect("the issuer was asked").path, "state=", "&").to_owned()
}

/// What stands between two texts; up to the end, where the second is not there.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}")).1;
    rest.split_once(after).map_or(rest, |(value, _)| value)
}
