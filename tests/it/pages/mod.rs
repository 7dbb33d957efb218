//! The public pages, walked through by hand as a browser would: from the link to the page that says what came of it.

mod guards;
mod killed;
mod person;

use consentry::model::Usage;
use serde_json::json;

use self::person::{Person, Visit};
use crate::harness::{
    eventually,
    http::Response,
    ports::free_port,
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

/// A worker with pages, the issuer, and the way from one to the other.
pub(crate) struct Stage {
    pub(crate) stand: Stand,
    pub(crate) worker: Worker,
    /// Where the listener is.
    pub(crate) pages: String,
    /// How the world reaches it.
    pub(crate) public_url: String,
}

impl Stage {
    /// Pages reached directly, as on a laptop.
    fn start(consent: &str) -> Self {
        let port = free_port();
        Self::at(&format!("http://127.0.0.1:{port}"), port, consent, "")
    }

    /// Pages that the world reaches at `public_url` by some proxy, with further lines of `[consent]` and of the provider.
    fn at(public_url: &str, port: u16, consent: &str, provider: &str) -> Self {
        Self::of(Stand::start(3600), public_url, port, consent, provider)
    }

    /// As [`at`](Self::at), with that issuer.
    fn of(stand: Stand, public_url: &str, port: u16, consent: &str, provider: &str) -> Self {
        let mut worker = Setup::default().sandbox(&stand).prepare();
        let pages = format!("127.0.0.1:{port}");
        worker.reconfigure(|text| {
            let table = format!("[providers.{CONSENTS}]\n");
            let text = text.replace(&table, &format!("{table}{provider}\n"));
            format!(
                "{text}\n[consent]\nlisten = \"{pages}\"\npublic_url = \"{public_url}\"\nname = \"Regnskab & Co\"\n{consent}\n"
            )
        });
        worker = worker.started();
        Self { stand, worker, pages, public_url: public_url.to_owned() }
    }

    /// Enrols the organization with a consent of that person.
    fn enrolled(&self, organization: &str, user: &str) {
        self.enrolled_with(organization, user, Usage::Reuse);
    }

    fn enrolled_with(&self, organization: &str, user: &str, usage: Usage) {
        let token = self.stand.consent(user, usage, &[organization]);
        let body = json!({ "provider": CONSENTS, "refresh_token": token, "labels": { "name": "Bageriet <ApS>" } });
        assert_eq!(self.worker.enrol(organization, &body).status, 201);
    }

    fn link(&self, organization: &str, body: &str) -> String {
        let path = format!("/v1/organizations/{organization}/consent-link");
        let answer = self.worker.request("POST", &path, &[("content-type", "application/json")], body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["url"].as_str().expect("a link").to_owned()
    }

    fn person(&self) -> Person {
        Person::new(&self.public_url, &self.pages)
    }

    /// When the organization's consent was given; null where there is none.
    fn granted_at(&self, organization: &str) -> serde_json::Value {
        self.worker.get(&format!("/v1/organizations/{organization}")).json()["consent"]["granted_at"].clone()
    }
}

/// The word by which a page says what it is about.
fn word(page: &Response) -> &str {
    let rest = page.body.split_once("<main id=\"").unwrap_or_else(|| panic!("no page: {page:?}")).1;
    rest.split_once('"').expect("it is closed").0
}

/// Consents are told apart by whole seconds.
fn a_second_later() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

#[test]
fn a_consent_is_renewed_with_one_click_and_the_link_is_used_up() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let before = stage.granted_at("481001");
    a_second_later();
    let link = stage.link("481001", "");
    let mut person = stage.person();

    let page = person.get(&link);
    assert_eq!((page.status, word(&page)), (200, "invitation"), "{page:?}");
    for part in ["Regnskab &amp; Co", "Bageriet &lt;ApS&gt;", "Visma Connect", "read the company’s data in Dinero"] {
        assert!(page.body.contains(part), "{part} in {}", page.body);
    }
    let Visit { callback, .. } = person.approve(&link, "birgit");
    let back = person.get(&callback);
    assert_eq!(back.status, 303, "{back:?}");
    let done_url = Person::location(&back, &callback);
    assert!(!done_url.contains("code") && !done_url.contains("state") && !done_url.contains('?'), "{done_url}");
    let done = person.get(&done_url);
    assert_eq!((done.status, word(&done)), (200, "renewed"), "{done:?}");
    assert!(done.body.contains("Bageriet &lt;ApS&gt;"));
    assert_ne!(stage.granted_at("481001"), before);
    assert!(stage.stand.takes(&stage.worker.fetch("481001")), "the new consent serves");

    let flows = |result: &str| stage.worker.metric("consentry_consent_flows_total", &[&format!("result=\"{result}\"")]);
    assert!(flows("begun") > 0.5 && flows("renewed") > 0.5 && flows("failed") < 0.5);
    assert!(stage.worker.metric("consentry_consent_redemptions_total", &["result=\"ok\""]) > 0.5);

    let exchanges = stage.stand.issuer().exchanges();
    let again = person.get(&callback);
    assert_eq!((again.status, Person::location(&again, &callback)), (303, done_url));
    assert_eq!(stage.stand.issuer().exchanges(), exchanges, "a code is sent once");
    let stranger = stage.person().get(&callback);
    assert_eq!((stranger.status, word(&stranger)), (400, "lost-session"));
    let used = person.get(&link);
    assert_eq!((used.status, word(&used)), (410, "used-link"));
    for secret in ["code=", "state=", "refresh"] {
        assert!(!done.body.contains(secret), "{secret}");
    }
}

#[test]
fn a_form_from_the_issuers_site_comes_back_through_a_proxy_with_a_path() {
    for keeps_path in [true, false] {
        let port = free_port();
        let stage = Stage::at("https://connect.example/in/here", port, "", "");
        stage.enrolled("481001", "birgit");
        let before = stage.granted_at("481001");
        a_second_later();
        let link = stage.link("481001", "");
        assert!(link.starts_with("https://connect.example/in/here/c/"), "{link}");
        let mut person = stage.person().speaking("da-DK,da;q=0.9,en;q=0.8");
        person.proxy_keeps_path = keeps_path;

        let page = person.get(&link);
        assert!(page.body.contains("<html lang=\"da\">") && page.body.contains("Forny adgangen til"), "{}", page.body);
        let visit = person.approve(&link, "birgit");
        assert_eq!(visit.asked("response_mode"), Some("form_post"));
        assert_eq!(visit.asked("ui_locales"), Some("da-DK"));
        assert_eq!(visit.asked("redirect_uri"), Some("https://connect.example/in/here/callback/consents"));
        let fields: Vec<(&str, &str)> = visit.form.iter().map(|(key, value)| (&**key, &**value)).collect();
        let back = person.post(&visit.callback, &fields);
        assert_eq!(back.status, 303, "{back:?}");
        let done_url = Person::location(&back, &visit.callback);
        assert_eq!(done_url, "https://connect.example/in/here/done");
        assert_eq!(word(&person.get(&done_url)), "renewed");
        assert_ne!(stage.granted_at("481001"), before);
    }
}

#[test]
fn who_refuses_changes_nothing_and_may_think_again() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let before = stage.granted_at("481001");
    let link = stage.link("481001", "");
    let mut person = stage.person();
    let callback = person.refuse(&link);
    let done = person.follow(&callback);
    assert_eq!(word(&done), "declined", "{done:?}");
    assert!(done.body.contains("Nothing was changed"), "{}", done.body);
    let reference = done.body.split_once("<code>").and_then(|(_, rest)| rest.split_once("</code>")).expect("one").0;
    let log = stage.worker.log();
    let told = log.lines().find(|told| told.contains(reference)).expect("the operator finds it");
    assert!(told.contains("access_denied") && told.contains("481001"), "{told}");
    assert_eq!(stage.granted_at("481001"), before);

    a_second_later();
    let again = person.approve(&link, "birgit").callback;
    assert_eq!(word(&person.follow(&again)), "renewed");
}

#[test]
fn a_person_who_may_not_speak_for_the_organization_is_told_so_and_nothing_changes() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let before = stage.granted_at("481001");
    let link = stage.link("481001", "");
    let mut person = stage.person();
    let callback = person.approve(&link, "camilla").callback;
    let done = person.follow(&callback);
    assert_eq!(word(&done), "wrong-organization", "{done:?}");
    assert!(!done.body.contains("483001"), "it does not tell what else they may: {}", done.body);
    assert_eq!(stage.granted_at("481001"), before);
    assert!(stage.stand.takes(&stage.worker.fetch("481001")));

    a_second_later();
    let visit = person.approve_as_another(&link, "birgit");
    assert_eq!(visit.asked("prompt"), Some("login"), "the issuer is asked to let another user sign in");
    assert_eq!(word(&person.follow(&visit.callback)), "renewed");
}

#[test]
fn a_first_consent_connects_every_organization_that_the_link_names_and_the_user_has() {
    let stage = Stage::start("");
    let link = stage.link("482001", r#"{"provider":"consents","also":["482002","483001"]}"#);
    let mut person = stage.person();
    let page = person.get(&link);
    assert!(page.body.contains("482002") && page.body.contains("483001"), "{}", page.body);
    let callback = person.approve(&link, "anders").callback;
    let done = person.follow(&callback);
    assert_eq!(word(&done), "connected", "{done:?}");
    assert!(stage.stand.takes(&stage.worker.fetch("482001")) && stage.stand.takes(&stage.worker.fetch("482002")));
    assert_eq!(stage.worker.get("/v1/organizations/483001").status, 404, "it is somebody else's");
    assert!(done.body.contains("no access to these"), "{}", done.body);
}

#[test]
fn an_operator_makes_a_link_and_waits_for_the_consent() {
    let stage = Stage::start("");
    stage.enrolled("481001", "birgit");
    let told = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let unknown = stage.worker.command(&["connect", "482001"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("provider"), "{unknown:?}");

    let made = stage.worker.command(&["connect", "481001", "--json"]);
    assert!(made.status.success(), "{made:?}");
    let made: serde_json::Value = serde_json::from_str(&told(&made)).expect("JSON");
    let link = made["url"].as_str().expect("a link").to_owned();
    assert!(made["expires_at"].as_str().is_some_and(|at| at.ends_with('Z')));
    a_second_later();

    let waiting = stage.worker.spawn(&["connect", "481001", "--wait"]);
    let mut person = stage.person();
    // It has looked at how things stand before it makes its own link.
    eventually("a second link", || {
        let log = stage.worker.log();
        (log.matches("make_link").count() >= 3).then_some(())
    });
    let callback = person.approve(&link, "birgit").callback;
    assert_eq!(word(&person.follow(&callback)), "renewed");
    let waited = waiting.wait_with_output().expect("it ends");
    assert!(waited.status.success(), "{waited:?}");

    let link = stage.link("481001", "");
    let revoked = stage.worker.command(&["connect", "481001", "--revoke"]);
    assert!(revoked.status.success() && told(&revoked).contains("481001"), "{revoked:?}");
    assert_eq!(word(&person.get(&link)), "revoked-link");
    let nothing = stage.worker.command(&["connect", "481001", "--confirm"]);
    assert!(!nothing.status.success(), "nothing waits: {nothing:?}");
}
