//! The board with as many organizations as a large customer has, by keyboard alone.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use consentry::{
    clock::{Clock as _, SystemClock},
    model::Usage,
};
use serde_json::{Value, json};

use super::{
    chromium::{self, Chromium, key},
    front::{Front, Route, To},
    pictures,
    stage::CONNECT,
};
use crate::harness::{
    eventually,
    ports::free_port,
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

const ORGANIZATIONS: usize = 10_000;
/// Organizations of one consent, so that the issuer has not too many to answer for.
const OF_ONE_CONSENT: usize = 20;
/// Organizations that come from one file, so that a slow machine is through with it in time.
const OF_ONE_FILE: usize = 1000;
/// One consent in so many is at an issuer that nobody reaches.
const UNREACHABLE_EVERY: usize = 20;
/// Nobody listens there: port 9 is for a service that throws away what it is sent.
const UNREACHABLE: &str = "kind = \"oauth2\"\ntoken_url = \"http://127.0.0.1:9/token\"\nclient_id = \"isv_nobody\"";
/// How many times TAB is pressed on the way to something, at most.
const MOST_TABS: usize = 60;

#[test]
fn the_board_shows_and_finds_ten_thousand_organizations_by_keyboard_in_light_and_dark() {
    if !chromium::is_there() {
        return;
    }
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).provider("unreachable", "hush-unreachable", UNREACHABLE).prepare();
    let pages = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let sections = format!(
        "\n[http.board]\nenabled = true\n\n[consent]\nlisten = \"{pages}\"\npublic_url = \"https://{CONNECT}\"\n"
    );
    worker.reconfigure(|text| text + &sections);
    let worker = worker.restart();
    fill(&worker, &stand);

    let front = Front::start(&[Route { host: CONNECT, to: To::Listener(pages) }]);
    let browser = Chromium::open("en", Some(&front));
    browser.go(&format!("http://{}/board", worker.http()));
    browser.reads("10,000 organizations");
    pictures(&browser, "board");
    no_card_stands_alone(&browser);
    every_stop_shows_the_focus(&browser);

    browser.go(&format!("http://{}/board", worker.http()));
    for letter in ["/", "0", "4", "2", "4", "2"] {
        browser.press(letter);
    }
    browser.reads("1 organization found by id");
    assert_eq!(rows(&browser), ["customer-04242"]);
    browser.screenshot("board-search");
    assert!(browser.url().ends_with("/board?q=04242"), "what is shown can be passed on: {}", browser.url());
    let link = copied_link(&browser);
    browser.go(&link);
    browser.finds("main#invitation");
    assert!(browser.text().contains("Bakery 4242"), "{}", browser.text());

    // By a label, which is in no index.
    browser.go(&format!("http://{}/board?q=Bakery+4242&sort=id", worker.http()));
    eventually("the label is found, a page of records at a time", || {
        if rows(&browser) == ["customer-04242"] {
            return Some(());
        }
        browser.click("a[rel=next]");
        None
    });

    browser.go(&format!("http://{}/board?state=failing", worker.http()));
    browser.reads("500 organizations found");
    browser.screenshot("board-failing");
    let complaints = browser.log();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// Enrols them all: consents that end over the coming weeks, most of them in a few of those, as after a campaign.
fn fill(worker: &Worker, stand: &Stand) {
    let now = SystemClock::new().now().wall;
    let mut lines = Vec::new();
    for first in (0..ORGANIZATIONS).step_by(OF_ONE_CONSENT) {
        let consent = first / OF_ONE_CONSENT;
        let ids: Vec<String> = (first..first + OF_ONE_CONSENT).map(id).collect();
        let (provider, token) = if consent.is_multiple_of(UNREACHABLE_EVERY) {
            ("unreachable", format!("hush-unreachable-{consent}"))
        } else {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            (CONSENTS, stand.consent(&format!("user-{consent}"), Usage::Reuse, &ids))
        };
        worker.plant(&token);
        let weeks = [1, 3, 3, 4, 9, 9, 9, 10, 17, 23, 25][consent % 11];
        let days = u64::try_from(weeks * 7 + consent % 5).expect("not many");
        let ends = now + Duration::from_hours(days * 24);
        lines.extend(ids.iter().enumerate().map(|(number, organization)| {
            let plan = ["basic", "pro"][number % 2];
            json!({
                "organization": organization, "provider": provider, "refresh_token": token, "usage": "reuse",
                "expires_at": ends.to_string(),
                "labels": { "name": format!("Bakery {}", first + number), "plan": plan },
            })
            .to_string()
        }));
    }
    let file = worker.file("fleet.jsonl");
    let path = file.to_str().expect("a temporary folder has a plain name");
    for lines in lines.chunks(OF_ONE_FILE) {
        fs::write(&file, lines.join("\n")).expect("the folder is ours");
        let imported = worker.command(&["import", path]);
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    }
    let failing = ORGANIZATIONS / UNREACHABLE_EVERY;
    eventually("what can be exchanged is", || {
        let states = worker.get("/v1/status").json()["organizations"].clone();
        (states["active"] == ORGANIZATIONS - failing).then_some(())
    });
}

fn id(number: usize) -> String {
    format!("customer-{number:05}")
}

/// The organizations in the table.
fn rows(browser: &Chromium) -> Vec<String> {
    let ids =
        browser.script("return [...document.querySelectorAll('#results tbody .id')].map(cell => cell.textContent)");
    serde_json::from_value(ids).expect("a list of texts")
}

/// Goes on to the button that copies the organization's renewal link, presses it, and gives what was copied.
fn copied_link(browser: &Chromium) -> String {
    browser.allow_clipboard();
    for _ in 0..MOST_TABS {
        browser.press(key::TAB);
        if browser.script("return document.activeElement.matches('form.link button')") == true {
            break;
        }
    }
    browser.press(key::ENTER);
    browser.reads("Copied");
    browser.reads("The renewal link for customer-04242 can be used until");
    browser.screenshot("board-copied");
    let copied = browser.script("return navigator.clipboard.readText()");
    copied.as_str().expect("a link is text").to_owned()
}

/// At the width of a small laptop, which the browser has, the cards of the states are one row, and those of what ends are another.
fn no_card_stands_alone(browser: &Chromium) {
    let rows = browser.script(
        "const rows = new Map(); \
         for (const card of document.querySelectorAll('.tile')) { \
           const top = Math.round(card.getBoundingClientRect().top); rows.set(top, (rows.get(top) ?? 0) + 1); } \
         return [...rows.values()]",
    );
    assert_eq!(rows, json!([5, 2]));
}

/// Goes from one thing that can be used to the next, through the page's head and into the table, and looks whether a person
/// sees where they are.
fn every_stop_shows_the_focus(browser: &Chromium) {
    let mut stops = Vec::new();
    for _ in 0..MOST_TABS {
        browser.press(key::TAB);
        let stop = browser.script(
            "const at = document.activeElement, style = getComputedStyle(at); \
             return { name: at.tagName + '.' + at.className + '#' + at.id, in: !!at.closest('#results'), \
             seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 }",
        );
        assert_eq!(stop["seen"], Value::Bool(true), "no focus is seen at {stop}, after {stops:?}");
        let is_in_table = stop["in"] == true;
        stops.push(stop["name"].as_str().unwrap_or_default().to_owned());
        if is_in_table {
            break;
        }
    }
    assert!(stops.first().is_some_and(|first| first.contains("skip")), "{stops:?}");
    assert!(stops.iter().any(|stop| stop.ends_with("#q")), "the search is reached: {stops:?}");
    assert!(stops.len() < MOST_TABS, "the table is not reached: {stops:?}");
}
