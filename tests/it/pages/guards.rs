//! What the pages do not let happen.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::{Stage, a_second_later, word};
use crate::harness::{http::over_tcp, ports::free_port};

/// The answer to a request of these very bytes.
fn raw(pages: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(pages).expect("listening");
    stream.write_all(request.as_bytes()).expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

#[test]
fn a_scanner_that_opens_a_link_changes_nothing() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let before = stage.worker.get("/v1/organizations/481001").json();
    let link = stage.link("481001", "");
    let path = link.strip_prefix(&stage.public_url).expect("below it").to_owned();
    for _ in 0..3 {
        let answer = raw(&stage.pages, &format!("HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
        let page = stage.person().get(&link);
        assert_eq!((page.status, page.header("set-cookie")), (200, None));
    }
    let exchanges = stage.stand.issuer().exchanges();
    assert_eq!(stage.worker.get("/v1/organizations/481001").json(), before);
    a_second_later();
    let mut person = stage.person();
    let callback = person.approve(&link, "birgit").callback;
    assert_eq!(word(&person.follow(&callback)), "renewed");
    assert!(stage.stand.issuer().exchanges() > exchanges);
}

#[test]
fn a_link_that_ended_was_revoked_or_was_cut_leads_nowhere() {
    let stage = Stage::start("link_lifetime = \"1s\"");
    stage.enrolled("481001", "birgit");
    let link = stage.link("481001", "");
    a_second_later();
    a_second_later();
    let mut person = stage.person();
    let page = person.get(&link);
    assert_eq!((page.status, word(&page)), (410, "expired-link"), "{page:?}");
    assert!(page.body.contains("Ask Regnskab &amp; Co for a new one"), "{}", page.body);
    let cut = &link[..link.len() - 3];
    let page = person.get(cut);
    assert_eq!((page.status, word(&page)), (404, "unreadable-link"));
    assert!(page.body.contains("Regnskab &amp; Co"), "{}", page.body);
    let page = person.post(&format!("{cut}/start"), &[]);
    assert_eq!((page.status, word(&page)), (404, "unreadable-link"));

    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let (link, mut person) = (stage.link("481001", ""), stage.person());
    let revoked = stage.worker.request("DELETE", "/v1/organizations/481001/consent-link", &[], "");
    assert_eq!(revoked.status, 204, "{revoked:?}");
    let page = person.get(&link);
    assert_eq!((page.status, word(&page)), (410, "revoked-link"));
    let link = stage.link("481001", "");
    assert_eq!(word(&person.get(&link)), "invitation", "a new one is good");
}

#[test]
fn a_link_revoked_while_its_person_is_at_the_issuer_stores_nothing() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let before = stage.granted_at("481001");
    let (link, mut person) = (stage.link("481001", ""), stage.person());
    let callback = person.approve(&link, "birgit").callback;
    a_second_later();
    stage.worker.request("DELETE", "/v1/organizations/481001/consent-link", &[], "");
    assert_eq!(word(&person.follow(&callback)), "revoked-link");
    assert_eq!(stage.granted_at("481001"), before);
}

#[test]
fn only_the_browser_that_began_ends() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let before = stage.granted_at("481001");
    let link = stage.link("481001", "");
    let (mut person, mut attacker) = (stage.person(), stage.person());
    let callback = person.approve(&link, "birgit").callback;
    let theirs = attacker.approve(&link, "birgit").callback;

    // Somebody else's browser, a made-up state, another flow's code in one's own address: nothing comes of it.
    let page = attacker.get(&callback);
    assert_eq!((page.status, word(&page)), (400, "lost-session"), "{page:?}");
    let page = person.get(&theirs);
    assert_eq!((page.status, word(&page)), (400, "lost-session"));
    let forged = format!("{}/callback/consents?code=x&state=made-up", stage.public_url);
    let page = person.get(&forged);
    assert_eq!((page.status, word(&page)), (400, "lost-session"));
    let page = person.get(&format!("{callback}&state=twice"));
    assert_eq!((page.status, word(&page)), (400, "malformed-answer"));
    assert_eq!(stage.granted_at("481001"), before);
    a_second_later();
    assert_eq!(word(&person.follow(&callback)), "renewed", "what was tried did no harm");
}

#[test]
fn an_answer_of_another_issuer_or_to_another_providers_address_is_refused() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let before = stage.granted_at("481001");
    let link = stage.link("481001", "");
    for spoil in [
        |url: &str| {
            let mut url: url::Url = url.parse().expect("a URL");
            let pairs: Vec<(String, String)> = url.query_pairs().into_owned().filter(|(key, _)| key != "iss").collect();
            url.query_pairs_mut().clear().extend_pairs(pairs).append_pair("iss", "https://evil.example");
            url.to_string()
        },
        |url: &str| url.replace("/callback/consents", "/callback/api-keys"),
    ] {
        let mut person = stage.person();
        let callback = spoil(&person.approve(&link, "birgit").callback);
        assert_eq!(word(&person.follow(&callback)), "other-issuer", "{callback}");
        assert_eq!(stage.granted_at("481001"), before);
    }
}

#[test]
fn the_button_of_another_site_begins_nothing() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let link = stage.link("481001", "");
    let mut person = stage.person();
    for (site, status) in [("cross-site", 403), ("same-site", 403), ("same-origin", 303), ("none", 303)] {
        let answer = person.send("POST", &format!("{link}/start"), &[("sec-fetch-site", site)], "");
        assert_eq!(answer.status, status, "{site}: {answer:?}");
    }
}

#[test]
fn every_answer_is_guarded_and_nothing_else_answers_there() {
    let port = free_port();
    let stage = Stage::at("https://connect.example/in/here", port, "", "");
    stage.enrolled("481001", "birgit");
    let link = stage.link("481001", "");
    let token = link.rsplit('/').next().expect("a token");
    let start = format!("/c/{token}/start");
    let form: &[(&str, &str)] = &[("content-type", "application/x-www-form-urlencoded")];
    let large = "a".repeat(20_000);
    for (method, path, headers, body, status) in [
        ("GET", format!("/in/here/c/{token}"), form, "", 200),
        ("GET", format!("/c/{token}"), &[("host", "evil.example"), ("x-forwarded-host", "evil.example")], "", 200),
        ("POST", start.clone(), form, "", 303),
        ("POST", start.clone(), form, &large, 413),
        ("GET", start.clone(), form, "", 405),
        ("GET", "/callback/consents?error=server_error".to_owned(), form, "", 400),
        ("PUT", "/callback/consents".to_owned(), form, "", 405),
        ("POST", "/callback/consents".to_owned(), &[("content-type", "text/plain")], "code=a", 400),
        ("GET", "/in/here/done".to_owned(), form, "", 400),
        ("GET", "/".to_owned(), form, "", 404),
        ("GET", "/metrics".to_owned(), form, "", 404),
        ("GET", "/healthz".to_owned(), form, "", 404),
        ("GET", "/v1/status".to_owned(), form, "", 404),
        ("GET", "/favicon.ico".to_owned(), form, "", 404),
    ] {
        let answer = over_tcp(&stage.pages, method, &path, headers, body);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        for (name, part) in [
            ("content-security-policy", "default-src 'none'"),
            ("content-security-policy", "frame-ancestors 'none'"),
            ("content-security-policy", "base-uri 'none'"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("cross-origin-opener-policy", "same-origin"),
            ("strict-transport-security", "max-age=31536000"),
        ] {
            assert!(
                answer.header(name).is_some_and(|value| value.contains(part)),
                "{name} of {method} {path}: {answer:?}"
            );
        }
        assert!(!answer.body.contains("evil.example") && !answer.body.contains("<script"), "{}", answer.body);
        if status == 405 {
            assert!(answer.header("allow").is_some(), "{answer:?}");
        }
    }
    let started = over_tcp(&stage.pages, "POST", &start, form, "");
    let cookie = started.header("set-cookie").expect("a cookie");
    for part in ["__Host-consent=", "; Path=/;", "; Secure", "; HttpOnly", "; SameSite=None"] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
}

#[test]
fn without_an_address_for_people_no_link_is_made_and_the_answer_says_what_to_do() {
    let stand = crate::harness::sandbox::Stand::start(3600);
    let worker = crate::harness::worker::Setup::default().sandbox(&stand).start();
    let answer = worker.post("/v1/organizations/481001/consent-link", &[]);
    assert_eq!((answer.status, &answer.json()["code"]), (400, &serde_json::json!("bad_request")));
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("consent.public_url")), "{answer:?}");
}
