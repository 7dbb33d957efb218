//! Several workers with one grant, whose one-time token must not be sent twice: the rules of claims, intents and takeovers, tried out on
//! a model of the database's rows and of the issuer.
//!
//! Workers are stopped at any point for any time and go on, die, have clocks that run ahead, and commits that are lost, or arrive late,
//! or arrive without anybody being told. Every rule is also left out on purpose: then something must go wrong.

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;

use super::{
    DoubtfulTry, Ended, Fleet, Policy, Situation, closes, crashed, due,
    ended::tests::{answer, consent_grant, ended, now, policy},
    exchange_ended, may_try,
};
use crate::{
    clock::Now,
    model::{ExchangeOutcome, Fingerprint, Grant, Intent, NoAnswer, Secret, State},
};

const WORKERS: usize = 3;
/// In milliseconds, like every time here.
const LEASE: u64 = 30_000;
/// A holder counts on so much of it.
const COUNTED: u64 = LEASE - LEASE / 10;
/// How long a request may take.
const TIMEOUT: u64 = 10_000;
const STEPS: usize = 250;

/// The rules, of which one may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Commits that change the grant need the claim's number.
    Fence,
    /// The lease is looked at right before the request is written.
    Look,
    /// Whoever finds an intent that is not its own takes the grant to be in doubt.
    Doubt,
    /// An answer whose claim is gone is merged under a new one.
    Merge,
    /// The end of an exchange closes the intent of that exchange, and no other.
    CloseOwn,
}

/// What a commit does to the intent.
#[derive(Clone, Debug)]
enum Note {
    Leave,
    Open(Intent),
    Close,
}

/// What one commit writes, all of it or nothing.
#[derive(Clone, Debug)]
struct Batch {
    worker: usize,
    fence: u64,
    grant: Option<Grant>,
    note: Note,
    stray: Option<Fingerprint>,
    /// The claim is prolonged, or given up.
    prolong: bool,
}

/// The rows.
#[derive(Debug)]
struct Database {
    grant: Grant,
    intent: Option<Intent>,
    holder: Option<usize>,
    fence: u64,
    until: u64,
    /// Every token that was ever in the grant or in a stray.
    kept: BTreeSet<[u8; 16]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Fenced,
    Away,
}

impl Database {
    fn claim(&mut self, worker: usize, at: u64) -> Option<u64> {
        (self.holder.is_none() || self.until < at).then(|| {
            (self.holder, self.until) = (Some(worker), at + LEASE);
            self.fence += 1;
            self.fence
        })
    }

    fn apply(&mut self, batch: Batch, at: u64, without: Option<Rule>) -> Result<(), Refusal> {
        let holds = self.holder == Some(batch.worker) && self.fence == batch.fence;
        if without != Some(Rule::Fence) && !holds {
            return Err(Refusal::Fenced);
        }
        if holds {
            (self.holder, self.until) = if batch.prolong { (self.holder, at + LEASE) } else { (None, at) };
        }
        if let Some(grant) = batch.grant {
            self.kept.insert(grant.fingerprint.0);
            self.grant = grant;
        }
        self.kept.extend(batch.stray.map(|stray| stray.0));
        match batch.note {
            Note::Leave => {}
            Note::Open(intent) => self.intent = Some(intent),
            Note::Close => self.intent = None,
        }
        Ok(())
    }
}

/// One exchange, from its intent on.
#[derive(Clone, Debug)]
struct Exchange {
    fence: u64,
    /// Until when the claim is good, by the worker's boot-time clock.
    good_until: u64,
    /// When it was looked at that, by the same clock.
    looked_at: u64,
    sent: Fingerprint,
    intent: Intent,
    asked: Now,
    /// Rule 6 has allowed that it may be a replay.
    in_doubt: bool,
}

#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    /// The claim was asked for at that moment of the worker's clock.
    Claiming(u64),
    Claimed(u64, u64),
    Doubting,
    Intending(Exchange),
    Intended(Exchange),
    GivingBack,
    Looked(Exchange),
    Waiting(Exchange, ExchangeOutcome),
    Answered(Exchange, ExchangeOutcome),
    Ending(Exchange, ExchangeOutcome),
}

#[derive(Debug)]
struct Worker {
    doing: Doing,
    /// A commit whose end is not known to the worker yet, and whether it was made.
    sent: Option<(Batch, Option<Result<(), Refusal>>)>,
    /// What its clocks say besides what they should.
    ahead: u64,
    /// In percent of the true time.
    pace: u64,
}

impl Worker {
    fn boot(&self, at: u64) -> u64 {
        self.ahead + at * self.pace / 100
    }

    fn now(&self, at: u64) -> Now {
        let wall = now().wall + Duration::from_millis(at + self.ahead % 3000);
        Now { wall, boot: Duration::from_millis(self.boot(at)) }
    }
}

/// What was seen to happen in some lives.
#[derive(Debug, Default)]
struct Seen {
    exchanges: u32,
    doubts: u32,
    replays: u32,
    looked_away: u32,
    unfounded: u32,
    late: u32,
    strays: u32,
}

struct Life<'a> {
    without: Option<Rule>,
    policy: Policy,
    at: u64,
    database: Database,
    workers: Vec<Worker>,
    /// Commits of workers that died; they may be made yet.
    orphans: Vec<Batch>,
    /// The number of the newest token, and which the issuer takes.
    newest: u8,
    valid: BTreeSet<[u8; 16]>,
    /// Tokens that a living worker was given.
    given: BTreeSet<[u8; 16]>,
    chance: Rng,
    quiet: bool,
    seen: &'a mut Seen,
}

fn token(number: u8) -> Fingerprint {
    Fingerprint([number; 16])
}

impl<'a> Life<'a> {
    fn new(number: u64, without: Option<Rule>, seen: &'a mut Seen) -> Self {
        let mut chance = Rng::with_seed(number);
        let workers = (0..WORKERS).map(|_| Worker {
            doing: Doing::Nothing,
            sent: None,
            ahead: chance.u64(1_000..10_000_000),
            pace: chance.u64(95..=105),
        });
        let workers = workers.collect();
        let grant = Grant { access: None, ..consent_grant() };
        let valid = BTreeSet::from([grant.fingerprint.0]);
        let kept = BTreeSet::from([grant.fingerprint.0]);
        let database = Database { grant, intent: None, holder: None, fence: 0, until: 0, kept };
        let (orphans, given) = (Vec::new(), BTreeSet::new());
        Self {
            without,
            policy: policy(),
            at: 0,
            database,
            workers,
            orphans,
            newest: 1,
            valid,
            given,
            chance,
            quiet: false,
            seen,
        }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Lives through a time of faults and then through a quiet one.
    fn live(mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            let worker = self.chance.usize(..WORKERS);
            match self.chance.u32(..100) {
                0..60 => self.step(worker)?,
                60..80 => self.at += [50, 3_000, 12_000, 40_000, 100_000][self.chance.usize(..5)],
                80..92 => self.arrive(worker),
                92..95 => self.die(worker),
                _ => self.arrive_late(),
            }
            self.check()?;
        }
        self.quiet = true;
        for _ in 0..200 {
            self.at += 1_000;
            for worker in 0..WORKERS {
                self.step(worker)?;
            }
        }
        self.check()?;
        if let Some(worker) = self.workers.iter().find(|worker| !matches!(worker.doing, Doing::Nothing)) {
            return Err(format!("nothing ends for {worker:?}"));
        }
        match self.given.difference(&self.database.kept).next() {
            Some(lost) => Err(format!("the answer with token {} is nowhere", lost[0])),
            None => Ok(()),
        }
    }

    /// A grant that is not in doubt has a token that the issuer takes.
    fn check(&self) -> Result<(), String> {
        let Database { grant, intent, .. } = &self.database;
        let is_open = intent.as_ref().is_some_and(|intent| intent.fingerprint == grant.fingerprint);
        let is_sure = !is_open && matches!(grant.state, State::Active | State::Failing(_));
        if is_sure && !self.valid.contains(&grant.fingerprint.0) {
            return Err(format!("{:?} with token {}, which is spent", grant.state, grant.fingerprint.0[0]));
        }
        Ok(())
    }

    /// The commit that a worker has sent reaches the database, or is refused there; nobody is told yet.
    fn arrive(&mut self, worker: usize) {
        if let Some((batch, made @ None)) = &mut self.workers[worker].sent {
            *made = Some(self.database.apply(batch.clone(), self.at, self.without));
        }
    }

    fn arrive_late(&mut self) {
        if let Some(batch) = self.orphans.pop() {
            let _ = self.database.apply(batch, self.at, self.without);
        }
    }

    /// The worker begins anew, and knows nothing. Its commit may have been sent.
    fn die(&mut self, worker: usize) {
        let it = &mut self.workers[worker];
        if let Some((batch, None)) = it.sent.take() {
            self.orphans.push(batch);
        }
        if let Doing::Waiting(_, outcome) | Doing::Answered(_, outcome) | Doing::Ending(_, outcome) =
            std::mem::replace(&mut it.doing, Doing::Nothing)
            && let ExchangeOutcome::Granted(answer) = outcome
            && let Some(given) = answer.refresh_token.as_ref().and_then(number)
        {
            self.given.remove(&given.0);
        }
    }

    /// Sends a commit, which a fault may keep under way.
    fn commit(&mut self, worker: usize, batch: Batch) {
        let made = (self.quiet || self.chance.u32(..100) < 70)
            .then(|| self.database.apply(batch.clone(), self.at, self.without));
        self.workers[worker].sent = Some((batch, made));
    }

    /// The worker's next step; where a commit is under way, it is settled: what has not arrived never will.
    fn step(&mut self, worker: usize) -> Result<(), String> {
        if let Some((_, made)) = self.workers[worker].sent.take() {
            self.committed(worker, made.unwrap_or(Err(Refusal::Away)));
            return Ok(());
        }
        let (at, boot, now) = (self.at, self.workers[worker].boot(self.at), self.workers[worker].now(self.at));
        let next = match std::mem::replace(&mut self.workers[worker].doing, Doing::Nothing) {
            Doing::Nothing if !self.quiet && self.is_due(worker) => Doing::Claiming(boot),
            Doing::Claiming(asked) => match self.database.claim(worker, at) {
                // The answer may be lost.
                Some(fence) if self.chance.u32(..10) > 0 => Doing::Claimed(fence, asked + COUNTED),
                _ => Doing::Nothing,
            },
            Doing::Claimed(fence, good_until) => self.prepare(worker, fence, good_until),
            Doing::Intended(mut exchange) => {
                exchange.looked_at = boot;
                // The very last thing before the request is written.
                if !self.keeps(Rule::Look) || boot + TIMEOUT <= exchange.good_until {
                    Doing::Looked(exchange)
                } else {
                    self.seen.looked_away += 1;
                    Doing::Answered(exchange, ExchangeOutcome::NotSent { detail: String::new() })
                }
            }
            Doing::Looked(exchange) => self.write(worker, exchange)?,
            Doing::Waiting(exchange, outcome) => Doing::Answered(exchange, outcome),
            Doing::Answered(exchange, outcome) => self.end(worker, exchange, outcome, now),
            other => other,
        };
        self.workers[worker].doing = next;
        Ok(())
    }

    fn is_due(&self, worker: usize) -> bool {
        let now = self.workers[worker].now(self.at);
        due(self.situation(&self.database.grant, worker), 0.5).is_some_and(|due| due <= now.wall)
    }

    fn situation<'b>(&'b self, grant: &'b Grant, worker: usize) -> Situation<'b> {
        let (intent, now) = (self.database.intent.as_ref(), self.workers[worker].now(self.at));
        Situation { grant, intent, policy: &self.policy, fleet: Fleet::default(), now, boot_id: boot_id(worker) }
    }

    /// Under a claim: reads the grant, and decides.
    fn prepare(&mut self, worker: usize, fence: u64, good_until: u64) -> Doing {
        let now = self.workers[worker].now(self.at);
        let mut grant = self.database.grant.clone();
        let give_back = batch(worker, fence);
        if let Some(open) = self.database.intent.clone().filter(|_| self.keeps(Rule::Doubt))
            && crashed(&mut grant, &open, now.wall).is_some()
        {
            self.seen.doubts += 1;
            self.commit(worker, Batch { grant: Some(grant), ..give_back });
            return Doing::Doubting;
        }
        if !self.quiet && self.chance.u32(..20) == 0 {
            // The customer has given consent anew.
            let fresh = self.fresh();
            grant.spent.push(grant.fingerprint);
            grant = Grant { fingerprint: fresh, state: State::Active, access: None, refusals: None, ..grant };
            self.commit(worker, Batch { grant: Some(grant), note: Note::Close, ..give_back });
            return Doing::GivingBack;
        }
        let in_doubt = matches!(grant.state, State::InDoubt(_));
        let refused = in_doubt && may_try(self.situation(&grant, worker)) == DoubtfulTry::No;
        if refused || !self.is_due(worker) {
            self.commit(worker, give_back);
            return Doing::GivingBack;
        }
        let intent = match self.database.intent.clone().filter(|open| open.fingerprint == grant.fingerprint) {
            Some(open) => Intent { attempt: open.attempt + 1, ..open },
            None => Intent {
                grant: grant.id,
                fingerprint: grant.fingerprint,
                attempt: 1,
                first_at: now.wall,
                first_boot: now.boot,
                boot_id: boot_id(worker),
            },
        };
        let boot = self.workers[worker].boot(self.at);
        self.commit(worker, Batch { note: Note::Open(intent.clone()), prolong: true, ..give_back });
        let good_until = good_until.max(boot + COUNTED);
        Doing::Intending(Exchange {
            fence,
            good_until,
            looked_at: 0,
            sent: grant.fingerprint,
            intent,
            asked: now,
            in_doubt,
        })
    }

    /// The request leaves, and the issuer takes it.
    fn write(&mut self, worker: usize, exchange: Exchange) -> Result<Doing, String> {
        self.seen.exchanges += 1;
        let fault = if self.quiet { 9 } else { self.chance.u32(..10) };
        if fault == 0 {
            return Ok(Doing::Waiting(exchange, ExchangeOutcome::NotSent { detail: String::new() }));
        }
        if !self.valid.remove(&exchange.sent.0) {
            self.seen.replays += 1;
            // Stopped between the look and the write for longer than the look makes sure of: that is what rule 6 is for.
            let was_stopped = self.workers[worker].boot(self.at) > exchange.looked_at + TIMEOUT;
            if !exchange.in_doubt && !was_stopped {
                return Err(format!("token {} was sent again", exchange.sent.0[0]));
            }
            return Ok(Doing::Waiting(exchange, ExchangeOutcome::Refused { detail: String::new() }));
        }
        let fresh = self.fresh();
        if fault == 1 {
            let silence = ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: String::new() };
            return Ok(Doing::Waiting(exchange, silence));
        }
        self.given.insert(fresh.0);
        let mut granted = answer(Some(&format!("rt-{}", fresh.0[0])));
        if let ExchangeOutcome::Granted(answer) = &mut granted {
            answer.expires_in = Some(Duration::from_mins(1));
        }
        Ok(Doing::Waiting(exchange, granted))
    }

    /// The issuer makes another token that it takes.
    fn fresh(&mut self) -> Fingerprint {
        self.newest = self.newest.checked_add(1).expect("a life is short");
        let fresh = token(self.newest);
        self.valid.insert(fresh.0);
        fresh
    }

    /// What came back is carried over into the grant as it is stored now.
    fn end(&mut self, worker: usize, exchange: Exchange, outcome: ExchangeOutcome, now: Now) -> Doing {
        let mut grant = self.database.grant.clone();
        let open = self.database.intent.clone();
        let given = match &outcome {
            ExchangeOutcome::Granted(answer) => answer.refresh_token.as_ref().and_then(number),
            _ => None,
        };
        let first_at = grant.refusals.map_or(now.wall, |refusals| refusals.first_at);
        let facts = Ended {
            asked: exchange.asked,
            sent: exchange.sent,
            given,
            since_refusal: now.wall.since(first_at),
            intent: Some(&exchange.intent),
            open: open.as_ref(),
            boot_id: boot_id(worker),
            ..ended(&outcome, None)
        };
        let was_doubtful = matches!(grant.state, State::InDoubt(_));
        let verdict = exchange_ended(&mut grant, &facts, &self.policy, now);
        let is_doubtful = matches!(grant.state, State::InDoubt(_));
        let is_unsent = matches!(outcome, ExchangeOutcome::NotSent { .. });
        self.seen.unfounded += u32::from(is_unsent && was_doubtful && !is_doubtful);
        let closes_own = closes(&verdict, Some(&exchange.intent), open.as_ref());
        let closes = if self.keeps(Rule::CloseOwn) { closes_own } else { verdict.close_intent };
        let stray = verdict.stray.and(given);
        self.seen.strays += u32::from(stray.is_some());
        let note = if closes { Note::Close } else { Note::Leave };
        self.commit(worker, Batch { grant: Some(grant), note, stray, ..batch(worker, exchange.fence) });
        Doing::Ending(exchange, outcome)
    }

    fn committed(&mut self, worker: usize, made: Result<(), Refusal>) {
        let boot = self.workers[worker].boot(self.at);
        let next = match (std::mem::replace(&mut self.workers[worker].doing, Doing::Nothing), made) {
            (Doing::Intending(exchange), Ok(())) => Doing::Intended(exchange),
            (Doing::Ending(exchange, outcome), Err(Refusal::Away)) => Doing::Answered(exchange, outcome),
            (Doing::Ending(mut exchange, outcome), Err(Refusal::Fenced)) if self.keeps(Rule::Merge) => {
                // The claim is another's: it is waited for.
                self.seen.late += 1;
                if let Some(fence) = self.database.claim(worker, self.at) {
                    exchange.fence = fence;
                    exchange.good_until = boot + COUNTED;
                }
                Doing::Answered(exchange, outcome)
            }
            // What is left undone is done by whoever claims next.
            _ => Doing::Nothing,
        };
        self.workers[worker].doing = next;
    }
}

/// Gives the claim up and writes nothing.
fn batch(worker: usize, fence: u64) -> Batch {
    Batch { worker, fence, grant: None, note: Note::Leave, stray: None, prolong: false }
}

fn boot_id(worker: usize) -> u128 {
    worker as u128 + 1
}

fn number(token_text: &Secret) -> Option<Fingerprint> {
    token_text.expose().strip_prefix("rt-")?.parse().ok().map(token)
}

/// The first life that goes wrong with one of the rules left out.
fn goes_wrong(without: Option<Rule>, lives: u64, seen: &mut Seen) -> Option<String> {
    (0..lives).find_map(|number| {
        let ending = Life::new(number, without, seen).live();
        ending.err().map(|wrong| format!("life {number}: {wrong}"))
    })
}

#[test]
fn no_token_is_sent_twice_but_as_doubt_allows_and_no_answer_is_lost() {
    let mut seen = Seen::default();
    assert_eq!(goes_wrong(None, 2000, &mut seen), None);
    let Seen { exchanges, doubts, replays, looked_away, unfounded, late, strays } = seen;
    let all = [exchanges, doubts, replays, looked_away, unfounded, late, strays];
    assert!(all.iter().all(|times| *times > 0), "not all of it has happened: {all:?}");
}

#[test]
fn each_of_the_rules_is_needed() {
    for rule in [Rule::Fence, Rule::Look, Rule::Doubt, Rule::Merge, Rule::CloseOwn] {
        assert!(goes_wrong(Some(rule), 20_000, &mut Seen::default()).is_some(), "nothing went wrong without {rule:?}");
    }
}
