//! Webhooks, at receivers that verify each with the specification's own library.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _};

use consentry::model::Usage;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    eventually,
    hooks::{Got, Hooks, NEXT_SECRET, SECRET},
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

/// The path of a webhook's URL may be as good as a password.
const OPS: &str = "ops-hush-path-token";
const EXPIRING: &str = "consent.expiring";
const DELIVERIES: &str = "consentry_webhook_deliveries_total";
const PENDING: &str = "consentry_webhook_pending";

/// A receiver that knows [`SECRET`], and a setup that posts everything to it.
fn setup(stand: &Stand, hooks: &Hooks) -> Setup {
    hooks.set(OPS, &json!({ "secrets": [SECRET] }));
    // Warnings are given by the sweep.
    Setup::default().sandbox(stand).schedule("sweep = \"* * * * * *\"").webhook(&hooks.url(OPS), SECRET, "")
}

/// Enrols a consent that ends in ten days, which is an event: inside of two weeks, of thirty days too.
fn expiring(stand: &Stand, worker: &Worker, organization: &str) {
    let token = stand.consent(organization, Usage::Reuse, &[organization]);
    let ends = stand.now() + std::time::Duration::from_hours(10 * 24);
    let body = json!({
        "provider": CONSENTS,
        "refresh_token": token,
        "usage": "reuse",
        "expires_at": ends.to_string(),
        "labels": { "mail": "support@customer.example" },
    });
    // A worker that takes another configuration says that it is starting.
    let enrolled = eventually("it is enrolled", || {
        let enrolled = worker.enrol(organization, &body);
        (enrolled.status != 503).then_some(enrolled)
    });
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
}

/// What a receiver got of that type about that organization.
fn told(hooks: &Hooks, receiver: &str, organization: &str) -> Vec<Got> {
    let expected = (EXPIRING.to_owned(), organization.to_owned());
    hooks.got(receiver).into_iter().filter(|got| got.what() == expected).collect()
}

fn nothing_is_pending(worker: &Worker) {
    eventually("every delivery is made", || {
        let status = worker.get("/v1/status").json();
        (status["webhooks"]["pending"] == 0 && worker.metric(PENDING, &[]).abs() < 0.5).then_some(())
    });
}

#[test]
fn a_warning_arrives_once_verified_and_says_what_support_needs() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    let worker = setup(&stand, &hooks).start();
    worker.plant(OPS);
    expiring(&stand, &worker, "org-a");

    let got = hooks.wait_for(OPS, EXPIRING, "org-a");
    assert_eq!((got.verified_by.as_slice(), got.signatures, &got.problem), (&[0][..], 1, &None), "{got:?}");
    assert_eq!((got.content_type.as_str(), got.answered), ("application/json", Some(200)));
    let event = got.event();
    assert_eq!(event["id"], got.id.as_str(), "the header names the event");
    assert!(got.id.starts_with("evt_"), "{got:?}");
    let data = &event["data"];
    assert_eq!(
        (&data["days_left"], &data["labels"]["mail"]),
        (&json!(10), &json!("support@customer.example")),
        "{event}"
    );
    assert_eq!((&data["provider"], &data["state"]), (&json!(CONSENTS), &json!("active")), "{event}");

    nothing_is_pending(&worker);
    assert!(worker.metric(DELIVERIES, &["result=\"ok\""]) >= 1.0);
    let worker = worker.restart();
    nothing_is_pending(&worker);
    assert_eq!(told(&hooks, OPS, "org-a").len(), 1, "once, across a restart too");
}

#[test]
fn a_failed_delivery_is_made_again_after_a_restart_with_the_same_id_and_the_same_bytes() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    let worker = setup(&stand, &hooks).start();
    hooks.set(OPS, &json!({ "status": 500, "times": 1 }));
    expiring(&stand, &worker, "org-a");
    let first = hooks.wait_for(OPS, EXPIRING, "org-a");
    assert_eq!(first.answered, Some(500));

    let worker = worker.restart();
    let second = eventually("the delivery is made again", || told(&hooks, OPS, "org-a").get(1).cloned());
    assert_eq!((&second.id, &second.body), (&first.id, &first.body));
    assert_eq!((second.verified_by.as_slice(), second.answered), (&[0][..], Some(200)), "with a fresh timestamp");
    nothing_is_pending(&worker);
    assert_eq!(told(&hooks, OPS, "org-a").len(), 2);
}

#[test]
fn what_happened_while_a_receiver_was_away_is_delivered_when_it_is_back() {
    let (stand, mut hooks) = (Stand::start(3600), Hooks::start());
    let mut worker = setup(&stand, &hooks).start();
    hooks.away_while(|| {
        expiring(&stand, &worker, "org-a");
        eventually("it is pending", || (worker.metric(PENDING, &[]) > 0.5).then_some(()));
        worker.kill9();
    });
    hooks.set(OPS, &json!({ "secrets": [SECRET] }));
    let worker = worker.restart();
    assert_eq!(hooks.wait_for(OPS, EXPIRING, "org-a").verified_by, [0]);
    nothing_is_pending(&worker);
}

#[test]
fn while_a_secret_is_replaced_each_delivery_bears_both_signatures() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    let worker = setup(&stand, &hooks).start();
    hooks.set(OPS, &json!({ "secrets": [SECRET, NEXT_SECRET] }));

    // No reload and no restart: the file is enough. It is looked at again after a second.
    let mut number = 0;
    for (secrets, signatures, verified_by) in
        [(format!("{NEXT_SECRET}\n{SECRET}\n"), 2, vec![0, 1]), (NEXT_SECRET.to_owned(), 1, vec![1])]
    {
        worker.set_signing_secrets(0, &secrets);
        eventually("the secrets are taken up", || {
            number += 1;
            let organization = format!("org-{number}");
            expiring(&stand, &worker, &organization);
            let got = hooks.wait_for(OPS, EXPIRING, &organization);
            (got.signatures == signatures && got.verified_by == verified_by).then_some(())
        });
    }
    assert!(hooks.got(OPS).iter().all(|got| !got.verified_by.is_empty()), "every one was verified by some secret");
}

#[test]
fn a_receiver_gets_the_events_it_asked_for_and_no_others() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    hooks.set("providers", &json!({ "secrets": [SECRET] }));
    let lines = "events = [\"provider.*\", \"consents.digest\"]";
    let worker = setup(&stand, &hooks).webhook(&hooks.url("providers"), SECRET, lines).start();
    expiring(&stand, &worker, "org-a");
    hooks.wait_for(OPS, EXPIRING, "org-a");
    nothing_is_pending(&worker);
    assert!(hooks.got("providers").is_empty());
}

#[test]
fn a_receiver_that_hangs_delays_no_other_and_gets_few_at_once() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    hooks.set("slow", &json!({ "secrets": [SECRET], "delay_ms": 600_000 }));
    let worker = setup(&stand, &hooks).webhook(&hooks.url("slow"), SECRET, "").start();
    let organizations: Vec<String> = (0..12).map(|number| format!("org-{number}")).collect();
    for organization in &organizations {
        expiring(&stand, &worker, organization);
    }
    for organization in &organizations {
        hooks.wait_for(OPS, EXPIRING, organization);
    }
    let slow = hooks.got("slow");
    assert!(slow.iter().all(|got| got.answered.is_none()));
    let ids: BTreeSet<_> = slow.iter().map(|got| &got.id).collect();
    assert!(ids.len() < organizations.len(), "what hangs is not sent everything at once");
}

#[test]
fn a_receiver_that_is_gone_is_left_alone_until_the_configuration_is_read_again() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    let worker = setup(&stand, &hooks).start();
    hooks.set(OPS, &json!({ "status": 410 }));
    expiring(&stand, &worker, "org-a");
    hooks.wait_for(OPS, EXPIRING, "org-a");
    nothing_is_pending(&worker);
    let dead = worker.metric(DELIVERIES, &["result=\"given_up\""]);
    assert!(dead >= 1.0);

    expiring(&stand, &worker, "org-b");
    eventually("it is given up", || (worker.metric(DELIVERIES, &["result=\"given_up\""]) > dead).then_some(()));
    nothing_is_pending(&worker);
    assert!(told(&hooks, OPS, "org-b").is_empty(), "without being sent");
    assert!(worker.get("/v1/status").json()["webhooks"]["given_up"].as_u64() >= Some(2));

    hooks.set(OPS, &json!({ "status": 200 }));
    worker.signal(Signal::HUP);
    let mut number = 0;
    eventually("deliveries are made again", || {
        number += 1;
        let organization = format!("org-c{number}");
        expiring(&stand, &worker, &organization);
        nothing_is_pending(&worker);
        told(&hooks, OPS, &organization).first().map(|got| assert_eq!(got.verified_by, [0]))
    });
}

#[test]
fn an_attempt_under_way_is_finished_before_the_worker_ends() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    let mut worker = setup(&stand, &hooks).start();
    hooks.set(OPS, &json!({ "delay_ms": 1500 }));
    expiring(&stand, &worker, "org-a");
    hooks.wait_for(OPS, EXPIRING, "org-a");
    assert!(worker.stop().success());
    hooks.set(OPS, &json!({ "delay_ms": 0 }));
    let worker = worker.restart();
    nothing_is_pending(&worker);
    assert_eq!(told(&hooks, OPS, "org-a").len(), 1, "its answer was waited for and noted");
}

#[test]
fn a_reload_takes_a_new_receiver() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    hooks.set("second", &json!({ "secrets": [SECRET] }));
    let worker = setup(&stand, &hooks).start();
    let (url, file) = (hooks.url("second"), worker.signing_file(0).display().to_string());
    worker.reconfigure(|text| format!("{text}[[webhook]]\nurl = \"{url}\"\nsecret_file = \"{file}\"\n"));
    worker.signal(Signal::HUP);
    let mut number = 0;
    eventually("the new receiver is told", || {
        number += 1;
        let organization = format!("org-{number}");
        expiring(&stand, &worker, &organization);
        nothing_is_pending(&worker);
        told(&hooks, "second", &organization).first().map(|got| assert_eq!(got.verified_by, [0]))
    });
}

#[test]
fn a_check_finds_what_is_wrong_with_a_signing_secret_and_the_worker_does_not_start_with_it() {
    let stand = Stand::start(3600);
    let mut worker = Setup::default().sandbox(&stand).webhook("https://127.0.0.1:1/hush-path", SECRET, "").prepare();
    worker.plant("hush-path");
    let findings = |worker: &Worker| {
        let told = worker.command(&["check", "--json"]);
        let findings: Vec<Value> = serde_json::from_slice(&told.stdout).expect("findings");
        let severe = |finding: &Value| ["warn", "error"].contains(&finding["severity"].as_str().unwrap_or_default());
        let texts = findings.iter().filter(|finding| severe(finding)).map(|finding| finding["what"].to_string());
        texts.filter(|text| text.contains("webhook 127.0.0.1:1")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(findings(&worker), "");

    let file = worker.signing_file(0);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("the file is ours");
    assert!(findings(&worker).contains("is open to every user of the machine"));
    for (content, expected) in
        [("whsec_dG9vIHNob3J0", "is too short"), ("plain words, not base64", "is not base64"), ("\n", "it is empty")]
    {
        fs::write(&file, content).expect("the folder is ours");
        let found = findings(&worker);
        assert!(found.contains(expected) && !found.contains("hush-path"), "{found}");
    }
    fs::remove_file(&file).expect("it was there");
    assert!(findings(&worker).contains("there is no such file"));

    worker.launch();
    let status = worker.ready().expect("it ends");
    assert!(!status.success(), "{}", worker.log());
    assert!(worker.log().contains("there is no such file"), "{}", worker.log());
}

#[test]
fn an_online_check_connects_to_a_receivers_host_and_posts_nothing() {
    let (stand, hooks) = (Stand::start(3600), Hooks::start());
    let worker = setup(&stand, &hooks).webhook("http://127.0.0.1:9/nobody", SECRET, "").prepare();
    let told = worker.command(&["check", "--online"]);
    let said = String::from_utf8_lossy(&told.stdout);
    assert!(said.contains("its host answers; no event was sent to it"), "{said}");
    assert!(said.contains("webhook 127.0.0.1:9: its host cannot be reached"), "{said}");
    assert!(hooks.got(OPS).is_empty());
}
