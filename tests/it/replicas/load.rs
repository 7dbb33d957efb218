//! What goes on meanwhile: callers at every worker, the operator who looks after what is in doubt, and what must hold of all that
//! they were given and of all that the issuer saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use consentry::{
    model::Secret,
    sandbox::{Entry, Outcome},
};
use fastrand::Rng;
use serde_json::{Value, json};

use super::fleet::{Fleet, consent};
use crate::{
    harness::{
        eventually,
        http::{self, Response},
        sandbox::Stand,
        worker::Worker,
    },
    kills::issuers::{Token, granted},
};

/// How long a caller waits before it asks again.
const BETWEEN_CALLS: Duration = Duration::from_millis(30);
/// How long something that is in doubt may take to come back by itself before the operator looks after it.
const BY_ITSELF: Duration = Duration::from_secs(4);

/// An access token that a caller was given by one of the workers.
#[derive(Clone, Debug)]
struct Handed {
    worker: usize,
    organization: String,
    asked: Instant,
    answered: Instant,
    token: Token,
}

/// What came of it all.
#[derive(Clone, Copy, Default, Debug)]
#[expect(dead_code, reason = "printed")]
pub(super) struct Counts {
    exchanges: usize,
    fetched: usize,
    in_doubt: usize,
    renewed: usize,
}

/// The callers, and what is known of what they were given.
#[derive(Debug)]
pub(super) struct Load<'a> {
    stand: &'a Stand,
    sockets: Vec<PathBuf>,
    organizations: Vec<String>,
    stop: AtomicBool,
    handed: Mutex<Vec<Handed>>,
    counts: Mutex<Counts>,
    /// Since when an organization is known to be in doubt.
    noticed: Mutex<BTreeMap<String, Instant>>,
}

/// Ends the callers when it is dropped, however the test does.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Load<'a> {
    pub(super) fn new(stand: &'a Stand, fleet: &Fleet) -> Self {
        Self {
            stand,
            sockets: fleet.workers.iter().map(|worker| worker.socket().to_owned()).collect(),
            organizations: fleet.organizations.clone(),
            stop: AtomicBool::new(false),
            handed: Mutex::default(),
            counts: Mutex::default(),
            noticed: Mutex::default(),
        }
    }

    /// Lets `faults` happen while callers ask every worker.
    pub(super) fn during(&self, faults: impl FnOnce()) {
        thread::scope(|scope| {
            let _ends = Ends(&self.stop);
            for worker in 0..self.sockets.len() {
                scope.spawn(move || {
                    let mut rng = Rng::new();
                    while !self.stop.load(Ordering::Relaxed) {
                        self.call(worker, &mut rng);
                        thread::sleep(BETWEEN_CALLS);
                    }
                });
            }
            faults();
        });
    }

    /// Waits until the issuer has granted so many exchanges more.
    pub(super) fn wait_for_exchanges(&self, more: usize) {
        let before = self.granted();
        eventually("exchanges are made", || (self.granted() >= before + more).then_some(()));
    }

    /// What an operator does about grants that do not come back by themselves: the customer is asked for a new consent. True if nothing
    /// is left to do.
    pub(super) fn mend(&self, worker: &Worker) -> bool {
        let answer = worker.get("/v1/organizations?limit=1000");
        if answer.status != 200 {
            return false;
        }
        let mut well = true;
        for shown in answer.json()["organizations"].as_array().expect("a list") {
            let organization = shown["organization"].as_str().expect("an organization has an id").to_owned();
            assert_ne!(shown["state"], "lost", "no token was sent twice, and yet the issuer refuses one: {shown}");
            if shown["state"] == "active" {
                lock(&self.noticed).remove(&organization);
                continue;
            }
            well = false;
            if shown["state"] == "in_doubt" {
                self.look_after(worker, &organization);
            }
        }
        well
    }

    fn look_after(&self, worker: &Worker, organization: &str) {
        let since = *lock(&self.noticed).entry(organization.to_owned()).or_insert_with(|| {
            lock(&self.counts).in_doubt += 1;
            Instant::now()
        });
        if since.elapsed() < BY_ITSELF {
            return;
        }
        let answer = worker.enrol(organization, &consent(self.stand, organization));
        // Another worker may be at work on it.
        assert!(matches!(answer.status, 200 | 201 | 409 | 429 | 503), "{answer:?}");
        if matches!(answer.status, 200 | 201) {
            lock(&self.counts).renewed += 1;
            lock(&self.noticed).remove(organization);
        }
    }

    /// Waits for four exchanges of each organization while nothing goes wrong, and judges what came of it: nothing was ever in doubt,
    /// and each worker did its part.
    pub(super) fn judge_undisturbed(&self, workers: &[Worker]) -> Counts {
        self.during(|| self.wait_for_exchanges(4 * self.organizations.len()));
        let counts = self.judge(workers);
        assert_eq!((counts.in_doubt, counts.renewed), (0, 0), "nothing was ever in doubt: {counts:?}");
        let made = |worker: &Worker| worker.metric("consentry_token_refresh_total", &["result=\"ok\""]);
        assert!(workers.iter().all(|worker| made(worker) > 0.0), "each of them does its part");
        counts
    }

    /// Waits until everything has recovered and every worker serves every organization, and holds what happened against the rules.
    ///
    /// A worker that died in an exchange leaves a grant that looks well until its claim runs out, and is in doubt only then: so the
    /// operator goes on looking while the workers are asked.
    pub(super) fn judge(&self, workers: &[Worker]) -> Counts {
        eventually("everything recovers", || self.mend(&workers[0]).then_some(()));
        self.wait_for_exchanges(1);
        for (worker, organization) in
            workers.iter().flat_map(|worker| self.organizations.iter().map(move |id| (worker, id)))
        {
            eventually("every worker serves every organization", || {
                let answer = worker.get(&format!("/v1/organizations/{organization}/token"));
                if answer.status != 200 {
                    self.mend(worker);
                    return None;
                }
                Some(self.lives(organization, &answer, self.stand.now()))
            });
        }
        let issuer = self.stand.issuer();
        assert_eq!(issuer.record_dropped(), 0, "the record is whole");
        let entries = issuer.record();
        let replays: Vec<&Entry> = entries.iter().filter(|entry| entry.replay).collect();
        assert!(replays.is_empty(), "tokens were sent twice: {replays:#?}");
        each_token_was_exchanged_once(&entries);
        let handed = lock(&self.handed).clone();
        what_was_handed_out_is_the_callers_own(&handed, &entries);
        no_worker_went_back(&handed);
        Counts { exchanges: self.granted(), fetched: handed.len(), ..*lock(&self.counts) }
    }

    fn granted(&self) -> usize {
        granted(&self.stand.issuer().record()).len()
    }

    /// Fetches one token of one worker. No answer is no fault: it may be dead.
    fn call(&self, worker: usize, rng: &mut Rng) {
        let Some(organization) = rng.choice(&self.organizations) else { return };
        let (asked, asked_at) = (Instant::now(), self.stand.now());
        let path = format!("/v1/organizations/{organization}/token");
        let Ok(answer) = http::over_unix(&self.sockets[worker], "GET", &path, &[], "") else { return };
        match answer.status {
            200 => {
                let token = self.lives(organization, &answer, asked_at);
                let organization = organization.clone();
                lock(&self.handed).push(Handed { worker, organization, asked, answered: Instant::now(), token });
            }
            409 | 429 | 503 => {}
            other => panic!("{organization}: status {other}: {answer:?}"),
        }
    }

    /// The token in an answer, which must have been alive when it was asked for, and reach the organization.
    fn lives(&self, organization: &str, answer: &Response, asked_at: consentry::model::Timestamp) -> Token {
        let body: Value = answer.json();
        let text = body["access_token"].as_str().expect("a token has an access token");
        let reach = self.stand.issuer().reach(asked_at, &Secret::new(text));
        let reaches = reach.is_some_and(|reach| reach.iter().any(|reached| **reached == *organization));
        assert!(reaches, "{organization} was given a token that is dead or another's: {}", json!(answer.status));
        Token::read(text)
    }
}

/// Of every consent, no refresh token was exchanged a second time.
fn each_token_was_exchanged_once(entries: &[Entry]) {
    let mut seen = BTreeSet::new();
    for entry in entries.iter().filter(|entry| entry.result == Outcome::Granted) {
        let Some(token) = entry.authorization.zip(entry.token) else { continue };
        assert!(seen.insert(token), "exchanged twice: {entry:?}");
    }
}

fn what_was_handed_out_is_the_callers_own(handed: &[Handed], entries: &[Entry]) {
    let granted = granted(entries);
    for handed in handed {
        let from = granted.get(handed.token.serial).expect("every token is from an exchange");
        assert_eq!(from.user.as_deref(), Some(handed.organization.as_str()), "a token of somebody else");
    }
}

/// Whoever asks a worker after somebody was answered by it is not given an older token than that one.
fn no_worker_went_back(handed: &[Handed]) {
    let mut answers: BTreeMap<(usize, &str), Vec<&Handed>> = BTreeMap::new();
    for handed in handed {
        answers.entry((handed.worker, &handed.organization)).or_default().push(handed);
    }
    for ((worker, organization), answers) in answers {
        for later in &answers {
            let known =
                answers.iter().filter(|earlier| earlier.answered < later.asked).map(|earlier| earlier.token.serial);
            assert!(
                known.max() <= Some(later.token.serial),
                "worker {worker} went back with {organization}: {later:?}"
            );
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
