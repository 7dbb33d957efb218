//! Forty-five days in the life of a consent, on a clock that is moved by hand: the whole worker in this process, and a
//! receiver nobody here wrote, in one of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use consentry::{
    clock::{Clock as _, ManualClock},
    daemon::{self, Running},
    model::{Timestamp, Usage},
};
use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};

use crate::harness::{
    eventually,
    hooks::{Got, Hooks, SECRET},
    sandbox::{CONSENTS, Stand},
    worker::{Setup, Worker},
};

/// Both use the same consent of one person, and are told of each by itself.
const ORGANIZATIONS: [&str; 2] = ["org-a", "org-b"];
const OPS: &str = "ops";
/// How far time moves at once.
const STEP: Duration = Duration::from_hours(6);

/// Where time goes, and who is told what happens in it.
struct World {
    clock: Arc<ManualClock>,
    stand: Stand,
    hooks: Hooks,
    worker: Worker,
    running: Option<Running>,
    end: Timestamp,
    /// Last, since the worker lives on it.
    runtime: Runtime,
}

impl World {
    /// Forty days before the end, with a change from summer time on the way.
    fn new() -> Self {
        let begin: Timestamp = "2026-09-20T06:30:00Z".parse().expect("a time");
        let clock = ManualClock::at(begin);
        let (stand, hooks) = (Stand::start_on(3600, clock.clone(), |_| {}), Hooks::start());
        hooks.set(OPS, &json!({ "secrets": [SECRET] }));
        let lines = "events = [\"consent.*\"]";
        let setup = Setup::default().sandbox(&stand).schedule("sweep = \"* * * * * *\"");
        let worker = setup.webhook(&hooks.url(OPS), SECRET, lines).prepare();
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let end = begin + Duration::from_hours(40 * 24);
        let mut world = Self { clock, stand, hooks, worker, running: None, end, runtime };
        world.hooks.set_now(begin.as_millis());
        world.start();
        world
    }

    fn start(&mut self) {
        let running = self.runtime.block_on(daemon::start_with(self.worker.parsed(), self.clock.clone()));
        let running = running.expect("it starts");
        eventually("the worker is ready", || running.is_ready().then_some(()));
        self.running = Some(running);
    }

    fn stop(&mut self) {
        let running = self.running.take().expect("it runs");
        self.runtime.block_on(running.stop()).expect("it stops");
    }

    /// Enrols a consent that reaches both organizations and ends in forty days.
    fn enrol(&self) {
        let token = self.stand.consent("alice", Usage::Reuse, &ORGANIZATIONS);
        for organization in ORGANIZATIONS {
            let body = json!({
                "provider": CONSENTS,
                "refresh_token": token,
                "usage": "reuse",
                "expires_at": self.end.to_string(),
                "labels": { "customer": organization },
            });
            let enrolled = self.worker.enrol(organization, &body);
            assert_eq!(enrolled.status, 201, "{enrolled:?}");
        }
    }

    /// Time passes, for everybody.
    fn pass(&self, time: Duration) {
        // The receiver's clock first: the worker posts as soon as its own has moved.
        self.hooks.set_now((self.clock.now().wall + time).as_millis());
        self.clock.advance(time);
    }

    /// Time passes until so long before the end, in steps; whatever should have been told by then is waited for at each.
    fn pass_until(&self, before: Duration, expected: &mut Expected) {
        while self.end.since(self.clock.now().wall) > before {
            self.pass(STEP);
            expected.at(self.end.since(self.clock.now().wall), self);
        }
    }

    fn got(&self) -> Vec<Got> {
        self.hooks.got(OPS)
    }

    /// Waits until everybody was told this of both organizations, and until that is noted.
    fn wait_for(&self, kind: &str, within: Option<&str>) {
        for organization in ORGANIZATIONS {
            eventually("both are told", || {
                let told = |got: &Got| got.answered == Some(200) && what(got) == (kind.into(), within.map(Into::into));
                self.got().iter().any(|got| told(got) && got.what().1 == organization).then_some(())
            });
        }
        eventually("that is noted", || {
            (self.worker.get("/v1/status").json()["webhooks"]["pending"] == 0).then_some(())
        });
    }
}

/// The steps that are still to come, the nearest first in time.
struct Expected(Vec<(Duration, &'static str)>);

impl Expected {
    /// So long before the end: every step that is due by now must be told, and none that is not.
    fn at(&mut self, left: Duration, world: &World) {
        while let Some((before, word)) = self.0.first().copied()
            && left <= before
        {
            world.wait_for("consent.expiring", Some(word));
            self.0.remove(0);
        }
        let told = world.got();
        let early = told.iter().find(|got| self.0.iter().any(|(_, word)| what(got).1.as_deref() == Some(*word)));
        assert!(early.is_none(), "{left:?} before the end: {early:?}");
    }
}

fn what(got: &Got) -> (String, Option<String>) {
    let event = got.event();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    (text(&event["type"]).expect("a type"), text(&event["data"]["within"]))
}

const fn days(days: u64) -> Duration {
    Duration::from_hours(24 * days)
}

#[test]
fn each_step_to_a_consents_end_is_told_once_through_restarts_and_a_long_downtime() {
    let mut world = World::new();
    world.enrol();
    let mut expected = Expected(vec![(days(30), "30d")]);
    world.pass_until(days(26), &mut expected);

    // A restart between two steps.
    world.stop();
    world.start();
    world.pass_until(days(16), &mut expected);

    // A downtime that swallows the steps of 14 and of 7 days: the nearest is told, and the other never.
    world.stop();
    world.pass(days(9) + Duration::from_hours(12));
    world.start();
    world.wait_for("consent.expiring", Some("7d"));
    expected.0 = vec![(days(3), "3d")];
    world.pass_until(days(3) + STEP, &mut expected);

    // The receiver refuses the next two, and the worker is started anew before they are tried again.
    world.hooks.set(OPS, &json!({ "status": 500, "times": 2 }));
    world.pass(STEP);
    eventually("both were refused", || {
        (world.got().iter().filter(|got| got.answered == Some(500)).count() == 2).then_some(())
    });
    world.stop();
    world.pass(Duration::from_mins(1));
    world.start();
    world.wait_for("consent.expiring", Some("3d"));
    expected.0 = vec![(days(1), "1d")];
    world.pass_until(Duration::ZERO, &mut expected);
    world.wait_for("consent.expired", None);

    // Five days more, of which there is nothing to tell.
    for _ in 0..20 {
        world.pass(STEP);
    }
    // Whoever has ended too is told of by a sweep that saw the others as well.
    let token = world.stand.consent("bob", Usage::Reuse, &["org-z"]);
    let body = json!({ "provider": CONSENTS, "refresh_token": token, "expires_at": world.end.to_string() });
    assert_eq!(world.worker.enrol("org-z", &body).status, 201);
    world.hooks.wait_for(OPS, "consent.expired", "org-z");
    world.stop();

    let got = world.got().into_iter().filter(|got| got.what().1 != "org-z");
    judge(&got.collect::<Vec<_>>());
}

/// Each step once for each organization by id, verified, and with the right days left.
fn judge(got: &[Got]) {
    for got in got {
        assert_eq!((got.verified_by.as_slice(), &got.problem), (&[0][..], &None), "{got:?}");
    }
    let taken: Vec<&Got> = got.iter().filter(|got| got.answered == Some(200)).collect();
    let ids: BTreeSet<&str> = taken.iter().map(|got| got.id.as_str()).collect();
    assert_eq!(ids.len(), taken.len(), "none was taken twice");
    assert!(got.iter().all(|got| ids.contains(got.id.as_str())), "what was refused was made again under its id");

    let mut told: BTreeMap<String, Vec<(String, Option<String>, i64)>> = BTreeMap::new();
    for got in taken {
        let (kind, within) = what(got);
        let left = got.event()["data"]["days_left"].as_i64().expect("a number");
        told.entry(got.what().1).or_default().push((kind, within, left));
    }
    let step = |within: &str, left| ("consent.expiring".to_owned(), Some(within.to_owned()), left);
    let steps = vec![step("30d", 30), step("7d", 7), step("3d", 3), step("1d", 1), ("consent.expired".into(), None, 0)];
    assert_eq!(told, ORGANIZATIONS.map(|organization| (organization.to_owned(), steps.clone())).into());
}
