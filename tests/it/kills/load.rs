//! What goes on while the worker is killed: callers who fetch and force, organizations that come and go; and the operator
//! who looks after what is in doubt. Everything that the worker acknowledged is written down here.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Scope},
    time::{Duration, Instant},
};

use consentry::{model::Secret, sandbox::Outcome};
use fastrand::Rng;
use serde_json::{Value, json};

use super::issuers::{Issuers, Kind, Token};
use crate::harness::{
    eventually,
    http::{self, Response},
    worker::Worker,
};

const CALLERS: usize = 3;
/// How many of the organizations that come may be there before the first of them goes.
const MANY_GUESTS: usize = 10;
/// How long something that is in doubt may take to come back by itself before the operator looks after it.
const BY_ITSELF: Duration = Duration::from_secs(15);

/// What the worker is held to about an organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Its enrolment was acknowledged.
    There,
    /// Its enrolment or removal was asked for, and no answer came yet.
    Unsure,
    /// Its removal was acknowledged.
    Gone,
}

/// An access token that a caller was given.
#[derive(Clone, Debug)]
pub(super) struct Handed {
    pub(super) kind: Kind,
    pub(super) organization: String,
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    pub(super) token: Token,
}

#[derive(Default, Debug)]
struct Counts {
    enrolled: usize,
    removed: usize,
    in_doubt: usize,
    retried: usize,
    renewed: usize,
}

/// The load, and what is known of it.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub(super) issuers: &'a Issuers,
    socket: PathBuf,
    stop: AtomicBool,
    /// Held over every change of an organization and its entry in the book.
    changing: Mutex<()>,
    book: Mutex<BTreeMap<String, (Kind, Standing)>>,
    /// The organizations that came and will go, the first first.
    guests: Mutex<VecDeque<String>>,
    noticed: Mutex<BTreeMap<String, Instant>>,
    handed: Mutex<Vec<Handed>>,
    counts: Mutex<Counts>,
}

/// Ends the load when it is dropped.
pub(super) struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Load<'a> {
    pub(super) fn new(issuers: &'a Issuers, socket: &Path) -> Self {
        Self {
            issuers,
            socket: socket.to_owned(),
            stop: AtomicBool::new(false),
            changing: Mutex::default(),
            book: Mutex::default(),
            guests: Mutex::default(),
            noticed: Mutex::default(),
            handed: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// Enrols so many organizations at each issuer; the worker must run undisturbed.
    pub(super) fn enrol_fleet(&self, each: usize) {
        for (kind, number) in Kind::ALL.into_iter().flat_map(|kind| (0..each).map(move |number| (kind, number))) {
            let organization = format!("{}-{number}", kind.name());
            let answer = self.enrol(kind, &organization, &self.issuers.of(kind).consent(&organization));
            assert_eq!(answer.as_ref().map(|answer| answer.status).ok(), Some(201), "{answer:?}");
            self.note(&organization, kind, Standing::There);
        }
    }

    /// Starts the callers and the coming and going, until what [`ends`](Self::ends) gave is dropped.
    pub(super) fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, mut rng: Rng) {
        for _ in 0..CALLERS {
            let mut rng = rng.fork();
            scope.spawn(move || {
                while !self.stop.load(Ordering::Relaxed) {
                    self.call(&mut rng);
                    thread::sleep(Duration::from_millis(rng.u64(5..40)));
                }
            });
        }
        scope.spawn(move || self.come_and_go(&mut rng));
    }

    pub(super) fn ends(&self) -> Ends<'_> {
        Ends(&self.stop)
    }

    /// Takes in organizations that another way of enrolling them has acknowledged.
    pub(super) fn welcome(&self, organizations: impl IntoIterator<Item = (String, Kind)>) {
        for (organization, kind) in organizations {
            self.note(&organization, kind, Standing::There);
            lock(&self.guests).push_back(organization);
        }
    }

    /// Every enrolment and removal that was acknowledged holds.
    pub(super) fn check_what_was_acknowledged(&self, worker: &Worker) {
        let _still = lock(&self.changing);
        let found: Vec<String> = list(worker).into_iter().map(|shown| id_of(&shown)).collect();
        for (organization, (_, standing)) in &*lock(&self.book) {
            let there = found.contains(organization);
            match standing {
                Standing::There => assert!(there, "{organization} was enrolled, and is lost"),
                Standing::Gone => assert!(!there, "{organization} was removed, and is back"),
                Standing::Unsure => {}
            }
        }
    }

    /// What an operator does about grants that do not come back by themselves: looks at the issuer whether the stored
    /// token is unspent, and has it tried again; else asks the customer for a new consent. True if nothing is left to do.
    pub(super) fn mend(&self, worker: &Worker) -> bool {
        let _still = lock(&self.changing);
        let mut well = true;
        for shown in list(worker) {
            let (organization, state) = (id_of(&shown), shown["state"].as_str().unwrap_or_default());
            let Some((kind, _)) = lock(&self.book).get(&organization).copied() else { continue };
            if state == "active" {
                lock(&self.noticed).remove(&organization);
                continue;
            }
            well = false;
            let since = *lock(&self.noticed).entry(organization.clone()).or_insert_with(|| {
                lock(&self.counts).in_doubt += usize::from(state == "in_doubt");
                Instant::now()
            });
            match state {
                "in_doubt" if kind == Kind::Hold || since.elapsed() > BY_ITSELF => {
                    self.resolve(worker, kind, &organization);
                }
                // Only a retry that was found harmless may have ended a consent.
                "lost" => self.renew(kind, &organization, &shown),
                "failing" if shown["reason"] == "refused" => self.renew(kind, &organization, &shown),
                _ => {}
            }
        }
        well
    }

    /// Waits until everything has recovered and every organization's token has been exchanged once more.
    pub(super) fn settle(&self, worker: &Worker) {
        eventually("everything recovers", || self.mend(worker).then_some(()));
        let from = self.issuers.of(Kind::Hold).stand.now();
        for (organization, kind) in self.there() {
            let stand = &self.issuers.of(kind).stand;
            eventually("every grant is exchanged again", || {
                let entries = stand.issuer().record();
                let mut later = entries.iter().rev().take_while(|entry| entry.at > from);
                later
                    .any(|entry| entry.user.as_deref() == Some(&organization) && entry.result == Outcome::Granted)
                    .then_some(())
            });
            let token = worker.fetch(&organization);
            let reach = stand.issuer().reach(stand.now(), &Secret::new(token.as_str()));
            let reaches = reach.is_some_and(|reach| reach.iter().any(|reached| **reached == *organization));
            assert!(reaches, "the token of {organization} does not reach it");
        }
    }

    /// What callers were given, in the order of the answers.
    pub(super) fn handed(&self) -> Vec<Handed> {
        let mut handed = lock(&self.handed).clone();
        handed.sort_by_key(|handed| handed.answered);
        handed
    }

    pub(super) fn counts(&self) -> String {
        format!("{:?}", lock(&self.counts))
    }

    fn there(&self) -> Vec<(String, Kind)> {
        let book = lock(&self.book);
        let there = book.iter().filter(|(_, (_, standing))| *standing == Standing::There);
        there.map(|(organization, (kind, _))| (organization.clone(), *kind)).collect()
    }

    /// Fetches or forces one token. No answer is no fault: the worker may be dead.
    fn call(&self, rng: &mut Rng) {
        let there = self.there();
        let Some((organization, kind)) = rng.choice(&there).cloned() else { return };
        let path = format!("/v1/organizations/{organization}/token");
        let stand = &self.issuers.of(kind).stand;
        let (asked, asked_at) = (Instant::now(), stand.now());
        let answer = if rng.u8(..4) == 0 {
            http::over_unix(&self.socket, "POST", &format!("{path}/refresh"), &[], "")
        } else {
            http::over_unix(&self.socket, "GET", &path, &[], "")
        };
        let Ok(answer) = answer else { return };
        let answered = Instant::now();
        match answer.status {
            200 => {
                let text = answer.json()["access_token"].as_str().expect("a token has an access token").to_owned();
                // A retry that was found harmless may end an authorization at any time.
                let lives = stand.issuer().reach(asked_at, &Secret::new(text.as_str())).is_some();
                assert!(lives || kind == Kind::Harmless, "{organization} was given a dead token");
                let token = Token::read(&text);
                lock(&self.handed).push(Handed { kind, organization, asked, answered, token });
            }
            404 => {
                let still =
                    lock(&self.book).get(&organization).is_some_and(|(_, standing)| *standing == Standing::There);
                assert!(!still, "{organization} was enrolled, and is not known: {answer:?}");
            }
            409 | 429 | 503 => {}
            other => panic!("{organization}: status {other}: {answer:?}"),
        }
    }

    /// Enrols organizations one after the other and removes them again, across the worker's deaths.
    fn come_and_go(&self, rng: &mut Rng) {
        let mut coming: Option<(String, Kind, String)> = None;
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let changing = lock(&self.changing);
            if let Some((organization, kind, secret)) = coming.take() {
                coming = self.come(kind, organization, secret);
            } else if lock(&self.guests).len() > MANY_GUESTS {
                self.go();
            } else {
                let kind = Kind::ALL[rng.usize(..3)];
                let organization = format!("guest-{number}");
                number += 1;
                let secret = self.issuers.of(kind).consent(&organization);
                coming = Some((organization, kind, secret));
            }
            drop(changing);
            thread::sleep(Duration::from_millis(rng.u64(10..120)));
        }
    }

    /// One try; gives back what has to be tried again.
    fn come(&self, kind: Kind, organization: String, secret: String) -> Option<(String, Kind, String)> {
        self.note(&organization, kind, Standing::Unsure);
        let Ok(answer) = self.enrol(kind, &organization, &secret) else { return Some((organization, kind, secret)) };
        match (answer.status, code(&answer).as_deref()) {
            (200 | 201, _) => {
                lock(&self.counts).enrolled += 1;
                self.welcome([(organization, kind)]);
                None
            }
            // Its first exchange was cut off: nobody knows whether the token is spent.
            (409, Some("in_doubt" | "already_spent" | "consent_lost")) => {
                let secret = self.issuers.of(kind).consent(&organization);
                Some((organization, kind, secret))
            }
            (429 | 503, _) => Some((organization, kind, secret)),
            _ => panic!("enrolling {organization}: {answer:?}"),
        }
    }

    fn go(&self) {
        let Some(organization) = lock(&self.guests).front().cloned() else { return };
        let kind = lock(&self.book)[&organization].0;
        self.note(&organization, kind, Standing::Unsure);
        let Ok(answer) = http::over_unix(&self.socket, "DELETE", &format!("/v1/organizations/{organization}"), &[], "")
        else {
            return;
        };
        match answer.status {
            // 404: an earlier try did it, and nobody was told.
            204 | 404 => {
                lock(&self.counts).removed += 1;
                lock(&self.guests).pop_front();
                self.note(&organization, kind, Standing::Gone);
            }
            503 => {}
            other => panic!("removing {organization}: status {other}: {answer:?}"),
        }
    }

    fn resolve(&self, worker: &Worker, kind: Kind, organization: &str) {
        let answer = worker.get(&format!("/v1/organizations/{organization}/token"));
        let known = answer.json()["access_token"].as_str().map(Token::read);
        if !known.is_some_and(|known| self.issuers.of(kind).is_newest(organization, &known)) {
            return self.renew_now(kind, organization);
        }
        let body = json!({ "action": "retry" }).to_string();
        let path = format!("/v1/organizations/{organization}/resolve");
        let resolved = worker.request("POST", &path, &[("content-type", "application/json")], &body);
        // It may have come back meanwhile.
        assert!(matches!(resolved.status, 200 | 409), "{resolved:?}");
        lock(&self.counts).retried += 1;
    }

    fn renew(&self, kind: Kind, organization: &str, shown: &Value) {
        assert_eq!(kind, Kind::Harmless, "no token was spent twice, and yet the issuer refuses one: {shown}");
        self.renew_now(kind, organization);
    }

    fn renew_now(&self, kind: Kind, organization: &str) {
        lock(&self.counts).renewed += 1;
        let answer = self.enrol(kind, organization, &self.issuers.of(kind).consent(organization));
        let answer = answer.expect("the worker runs");
        // An issuer that has just been cut off is tried again later; so is what that left in doubt.
        assert!(matches!(answer.status, 200 | 201 | 409 | 429 | 503), "{answer:?}");
    }

    fn enrol(&self, kind: Kind, organization: &str, secret: &str) -> std::io::Result<Response> {
        let body = json!({ "provider": kind.name(), "refresh_token": secret }).to_string();
        let path = format!("/v1/organizations/{organization}");
        http::over_unix(&self.socket, "PUT", &path, &[("content-type", "application/json")], &body)
    }

    fn note(&self, organization: &str, kind: Kind, standing: Standing) {
        lock(&self.book).insert(organization.to_owned(), (kind, standing));
    }
}

/// Every organization, as the worker shows it.
fn list(worker: &Worker) -> Vec<Value> {
    let answer = eventually("organizations are listed", || {
        let answer = worker.get("/v1/organizations?limit=1000");
        (answer.status == 200).then_some(answer)
    });
    answer.json()["organizations"].as_array().expect("a list").clone()
}

fn id_of(shown: &Value) -> String {
    shown["organization"].as_str().expect("an organization has an id").to_owned()
}

fn code(answer: &Response) -> Option<String> {
    answer.json()["code"].as_str().map(str::to_owned)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
