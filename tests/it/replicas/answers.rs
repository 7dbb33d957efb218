//! A worker is stopped at every point of an exchange at once, until its lease is over and another has taken its grants over: whatever
//! the issuer gave it is kept, and nothing is sent that was not sent before.

use std::thread;

use rustix::process::Signal;
use serde_json::Value;

use super::{
    door::{Door, Stage},
    fleet::{Fleet, consent, issuer_of},
    ledger::{Kept, Ledger},
};
use crate::{
    harness::{eventually, http, sandbox::Stand, worker::Worker},
    postgres::{
        bouncer::Bouncer,
        cluster::{Cluster, is_installed},
    },
};

/// Nothing is refreshed but what is forced.
const LONG_LIFE: u64 = 3600;
const SCHEMA: &str = "answers";
/// As many as the worker that is stopped may want.
const CONNECTIONS: usize = 10;

/// Each organization's worker is stopped at another point of its exchange.
const BEFORE_SENDING: &str = "the-intent-is-committed-while-it-is-stopped";
const ASKED: &str = "the-answer-comes-while-it-is-stopped";
const REPLACED: &str = "and-another-consent-takes-its-place";
const REMOVED: &str = "and-it-is-removed";
const ANSWERED: &str = "the-answer-was-read-and-the-commit-does-not-arrive";
const COMMITTING: &str = "the-end-is-committed-while-it-is-stopped";
const POINTS: [&str; 6] = [BEFORE_SENDING, ASKED, REPLACED, REMOVED, ANSWERED, COMMITTING];

/// One organization, and the token that its next exchange sends.
struct Point {
    organization: &'static str,
    token: String,
    /// Its grant's name in the database.
    grant: String,
}

#[test]
fn an_answer_that_arrived_is_kept_wherever_in_the_exchange_its_worker_was_stopped() {
    if !is_installed() {
        return;
    }
    let (cluster, stand) = (Cluster::shared(), issuer_of(LONG_LIFE));
    let mut bouncer = Bouncer::start_with(&cluster, CONNECTIONS);
    let fleet = Fleet::start(&stand, &[bouncer.url(), cluster.url()], SCHEMA, 0);
    let ([stopped, other], door) = (fleet.workers.first_chunk().expect("two"), &fleet.doors[0]);
    let points = POINTS.map(|organization| enrolled(&cluster, &stand, stopped, door, organization));
    for point in &points {
        eventually("the other worker knows it", || is_served(other, point.organization).then_some(()));
    }
    let [before, asked, replaced, removed, answered, committing] = &points;
    // Whoever sends that one's token is not answered until it was seen what became of the exchange that was stopped.
    fleet.doors.iter().for_each(|door| door.hold(&before.token));
    let commits = HeldCommits::of(&cluster);
    thread::scope(|scope| {
        commits.hold(before);
        for point in &points {
            door.hold(&point.token);
            scope.spawn(|| force(stopped, point.organization));
        }
        for point in [asked, replaced, removed, answered, committing] {
            eventually("the issuer has answered", || (door.stage(&point.token) == Some(Stage::Answered)).then_some(()));
        }
        commits.wait_for(1);
        commits.hold(committing);
        door.let_through(&committing.token);
        commits.wait_for(2);
        bouncer.stop();
        door.let_through(&answered.token);
        eventually("the worker has read it", || door.was_read(&answered.token).then_some(()));

        stopped.signal(Signal::STOP);
        bouncer.replace(&cluster);
        commits.let_all_through();
        for point in [asked, replaced, removed] {
            door.let_through(&point.token);
            eventually("it arrives", || (door.stage(&point.token) == Some(Stage::Arrived)).then_some(()));
        }
        for point in [before, asked, replaced, removed, answered] {
            eventually("it is taken over", || (state(other, point.organization) == "in_doubt").then_some(()));
        }
        assert_eq!(state(other, committing.organization), "active", "its end was committed");
        let renewed = other.enrol(replaced.organization, &consent(&stand, replaced.organization));
        assert!(matches!(renewed.status, 200 | 201), "{renewed:?}");
        let gone = other.request("DELETE", &format!("/v1/organizations/{}", removed.organization), &[], "");
        assert_eq!(gone.status, 204, "{gone:?}");
        stopped.signal(Signal::CONT);
    });
    let unsent = || state(other, BEFORE_SENDING) == "failing";
    eventually("the doubt goes, since its lease was over and it has sent nothing", || unsent().then_some(()));
    fleet.doors.iter().for_each(|door| door.let_through(&before.token));
    for (worker, point) in fleet.workers.iter().flat_map(|worker| points.iter().map(move |point| (worker, point))) {
        match point.organization {
            REMOVED => {}
            well => eventually("it is well", || (state(worker, well) == "active").then_some(())),
        }
    }
    let sent = fleet.doors.iter().flat_map(Door::calls).filter(|call| call.sent == before.token);
    assert_eq!(sent.count(), 1, "it is tried again, and sent for the first time");
    let ledger = Ledger::of(other);
    ledger.accounts_for_all(&fleet);
    let strays = ledger.strays();
    for point in [replaced, removed] {
        let given = given(door, &point.token);
        let is_kept = |kept: &Kept| kept.refresh_token == given && kept.why.contains("removed");
        assert!(strays.iter().any(is_kept), "{}: {strays:?}", point.organization);
    }
    assert_eq!(strays.len(), 2, "{strays:?}");
    // What took its place is what the issuer takes.
    for point in [before, asked, answered, committing] {
        let forced = force(other, point.organization).expect("the worker answers");
        assert_eq!(forced.status, 200, "{}: {forced:?}", point.organization);
    }
    let replays: Vec<_> = stand.issuer().record().into_iter().filter(|entry| entry.replay).collect();
    assert!(replays.is_empty(), "{replays:?}");
}

/// Enrols an organization, which exchanges its token once.
fn enrolled(cluster: &Cluster, stand: &Stand, worker: &Worker, door: &Door, organization: &'static str) -> Point {
    let grants = || -> Vec<String> {
        let names = format!("SELECT encode(name, 'hex') FROM {SCHEMA}.work");
        cluster.on_primary(&names).lines().map(str::to_owned).collect()
    };
    let known = grants();
    let enrolled = worker.enrol(organization, &consent(stand, organization));
    assert_eq!(enrolled.status, 201, "{enrolled:?}");
    let mut new = grants();
    new.retain(|name| !known.contains(name));
    let [grant] = <[String; 1]>::try_from(new).expect("one grant more");
    let token = door.calls().pop().and_then(|call| call.given).expect("the enrolment was given a token");
    worker.plant(&token);
    Point { organization, token, grant }
}

/// What the issuer gave for that token.
fn given(door: &Door, token: &str) -> String {
    let call = door.calls().into_iter().find(|call| call.sent == token);
    call.and_then(|call| call.given).expect("it was answered")
}

fn is_served(worker: &Worker, organization: &str) -> bool {
    worker.get(&format!("/v1/organizations/{organization}/token")).status == 200
}

fn force(worker: &Worker, organization: &str) -> std::io::Result<http::Response> {
    let path = format!("/v1/organizations/{organization}/token/refresh");
    http::over_unix(worker.socket(), "POST", &path, &[], "")
}

fn state(worker: &Worker, organization: &str) -> String {
    let shown = worker.get(&format!("/v1/organizations/{organization}"));
    let body: Value = shown.json();
    body["state"].as_str().unwrap_or_else(|| panic!("{shown:?}")).to_owned()
}

/// Commits that wait inside the server, each with its grant's row locked, until they are let through: a trigger of the test's own
/// sees to it.
struct HeldCommits<'a>(&'a Cluster);

impl<'a> HeldCommits<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        cluster.on_primary(&format!(
            "CREATE TABLE {SCHEMA}.held_back (name bytea PRIMARY KEY);
             CREATE FUNCTION {SCHEMA}.wait_here() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                 WHILE EXISTS (SELECT 1 FROM {SCHEMA}.held_back WHERE name = NEW.name) LOOP
                     PERFORM pg_sleep(0.02);
                 END LOOP;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER wait_here BEFORE UPDATE ON {SCHEMA}.work FOR EACH ROW
                 WHEN (NEW.fence = OLD.fence) EXECUTE FUNCTION {SCHEMA}.wait_here()"
        ));
        Self(cluster)
    }

    /// Holds the next commit of that grant.
    fn hold(&self, point: &Point) {
        self.0.on_primary(&format!("INSERT INTO {SCHEMA}.held_back VALUES ('\\x{}')", point.grant));
    }

    /// Waits until so many are held.
    fn wait_for(&self, count: usize) {
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%{SCHEMA}%commit%'"
        );
        eventually("commits wait", || (self.0.on_primary(&waiting) == count.to_string()).then_some(()));
    }

    fn let_all_through(&self) {
        self.0.on_primary(&format!("DELETE FROM {SCHEMA}.held_back"));
        self.wait_for(0);
    }
}
