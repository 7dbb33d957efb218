//! What is told of consents before they end: the forecast, lists for people and spreadsheets, and the digest.

use std::{
    collections::BTreeSet,
    process::Output,
    time::{Duration, SystemTime},
};

use consentry::model::{Timestamp, Usage};
use serde_json::{Value, json};

use crate::harness::{
    eventually,
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

const DAY: Duration = Duration::from_hours(24);

fn now() -> Timestamp {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970");
    Timestamp::from_millis(i64::try_from(since.as_millis()).expect("in range"))
}

/// A worker with three consents: one that ends in 20 days, one in 100, and one of which nobody told.
fn fleet() -> (Stand, Worker) {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox(&stand).start();
    for (organization, days) in [("481001", Some(20)), ("481002", Some(100)), ("481003", None)] {
        let token = stand.consent(&format!("user-{organization}"), Usage::Reuse, &[organization]);
        let mut body = json!({ "provider": CONSENTS, "refresh_token": token, "labels": {
            "name": format!("Holm, \"Byg\" & {organization}"), "email": "=cmd()@holm.example",
        } });
        if let Some(days) = days {
            body["expires_at"] = json!((now() + DAY * days).to_string());
        }
        let enrolled = worker.enrol(organization, &body);
        assert_eq!(enrolled.status, 201, "{enrolled:?}");
    }
    (stand, worker)
}

fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn a_forecast_tells_when_consents_end_and_of_which_nobody_told() {
    let (_stand, worker) = fleet();
    let status = worker.get("/v1/status").json();
    let of_weeks = |key: &str| -> u64 {
        let weeks = status["forecast"].as_array().expect("a list").iter();
        weeks.map(|week| week[key].as_u64().expect("a count")).sum()
    };
    assert_eq!((of_weeks("consents"), of_weeks("assumed")), (3, 1), "{status}");
    assert_eq!((&status["end_assumed"], &status["expired"], &status["later"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!(status["invitations_per_week"], json!(1));
    let told = lines(&worker.command(&["status"])).join("\n");
    for part in ["▒: the end is assumed", "1 invitation a week"] {
        assert!(told.contains(part), "{part} in {told}");
    }

    worker.fetch("481002");
    let csv = lines(&worker.command(&["org", "list", "--csv", "--expires-within", "30d"]));
    assert_eq!(csv.len(), 2, "{csv:?}");
    assert!(csv[0].starts_with("organization,provider,") && csv[1].starts_with("481001,"), "{csv:?}");
    assert!(csv[1].contains("\"email==cmd()@holm.example name=Holm, \"\"Byg\"\" & 481001\""), "{csv:?}");
    let listed: Value =
        serde_json::from_str(&lines(&worker.command(&["org", "list", "--json", "--unused-for", "1d"])).join(""))
            .expect("JSON");
    let ids: Vec<&str> =
        listed.as_array().expect("a list").iter().filter_map(|one| one["organization"].as_str()).collect();
    assert_eq!(ids, ["481001", "481003"], "who was fetched just now is used");
}

/// The moments for which a digest was posted, in the order of the log.
fn digests(worker: &Worker) -> Vec<String> {
    let log = worker.log();
    let told = log.lines().filter(|line| line.contains("a digest of the consents that end was posted"));
    told.filter_map(|line| line.split("due=").nth(1)?.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn a_digest_is_posted_for_each_moment_of_the_schedule_and_never_twice() {
    let (_stand, worker) = fleet();
    worker.reconfigure(|text| text + "\n[schedule]\ndigest = \"*/2 * * * * *\"\nsweep = \"* * * * * *\"\n");
    let mut worker = worker.restart();
    eventually("digests are posted", || Some(digests(&worker)).filter(|told| told.len() >= 2));
    worker.kill9();
    let before = digests(&worker).len();
    let worker = worker.restart();
    eventually("they go on after a kill", || Some(digests(&worker)).filter(|told| told.len() >= before + 2));
    let told = digests(&worker);
    assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), told.len(), "{told:?}");
    assert!(told.is_sorted(), "{told:?}");
}

#[test]
fn links_for_all_that_end_come_as_csv_for_a_mail_merge() {
    let (stand, worker) = fleet();
    // One person's consent for two companies is one invitation.
    let token = stand.consent("carl", Usage::Reuse, &["481004", "481005"]);
    for organization in ["481004", "481005"] {
        let body = json!({
            "provider": CONSENTS, "refresh_token": token, "expires_at": (now() + DAY * 5).to_string(),
        });
        assert_eq!(worker.enrol(organization, &body).status, 201);
    }
    let all = ["connect", "--all-expiring", "365d", "--csv"];
    let refused = worker.command(&all);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0), "no pages are configured: {refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("consent.public_url"), "{refused:?}");

    worker.reconfigure(|text| {
        text + "\n[consent]\nlisten = \"127.0.0.1:0\"\npublic_url = \"http://127.0.0.1:9/here\"\nlink_lifetime = \"20d\"\n"
    });
    let worker = worker.restart();
    let csv = lines(&worker.command(&all));
    assert_eq!(
        csv[0],
        "organization,email,name,provider,expires_at,assumed,days_left,also,renewal_url,link_expires_at"
    );
    let first = |line: &String| line.split(',').next().expect("a field").to_owned();
    assert_eq!(csv[1..].iter().map(first).collect::<Vec<_>>(), ["481004", "481001", "481002", "481003"]);
    assert!(csv[1].contains(",481005,http://127.0.0.1:9/here/c/"), "{csv:?}");
    assert!(csv[2].starts_with("481001,'=cmd()@holm.example,\"Holm, \"\"Byg\"\" & 481001\","), "{csv:?}");

    let spread: Vec<Value> =
        lines(&worker.command(&["connect", "--all-expiring", "365d", "--spread", "12d", "--json"]))
            .iter()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect();
    let days: Vec<&str> = spread.iter().map(|line| line["send_on"].as_str().expect("a day")).collect();
    assert!(days.is_sorted() && days[0] == &now().to_string()[..10], "who ends in five days cannot wait: {days:?}");
    let long = worker.command(&["connect", "--all-expiring", "365d", "--spread", "4w", "--csv"]);
    assert_eq!((long.status.code(), long.stdout.len()), (Some(1), 0), "{long:?}");
    assert!(String::from_utf8_lossy(&long.stderr).contains("consent.link_lifetime"), "{long:?}");
}
