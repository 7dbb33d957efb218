use std::time::Duration;

use super::{MAX_RETRY_AFTER, Policy, REFUSED_INTERVAL, backoff, retry_in_grace};
use crate::{
    clock::Now,
    model::{
        AccessToken, Answer, BootMoment, Credential, DoubtReason, ExchangeOutcome, FailingReason, Fingerprint, Grant,
        Intent, MAX_SPENT, Refusals, State, Timestamp, Usage,
    },
};

/// So many refusals, spread over [`LOST_AFTER`], prove a grant dead where no other grant's success does.
pub const LOST_REFUSALS: u32 = 3;
/// Over at least this long.
pub const LOST_AFTER: Duration = Duration::from_hours(1);
/// How soon after its first refusal a credential is tried again, so that one bad moment of an issuer proves nothing.
pub const REFUSED_AGAIN: Duration = Duration::from_mins(1);
/// Two refusals at least so far apart prove a grant dead if the provider has answered another well since the first.
/// A little less than [`REFUSED_AGAIN`], which is counted from the end of one exchange to the start of the next.
pub const REFUSALS_APART: Duration = Duration::from_secs(50);

/// The life taken for an access token whose answer did not tell: short, because a token refreshed too early costs
/// one exchange and one refreshed too late costs the customer.
pub(super) const UNTOLD_LIFETIME: Duration = Duration::from_mins(5);

/// How an exchange ended, with what the rules must know besides.
#[derive(Debug)]
pub struct Ended<'a> {
    /// When the request left: an access token's life is counted from here, since it cannot have begun earlier.
    pub asked: Now,
    /// What came back.
    pub outcome: &'a ExchangeOutcome,
    /// Fingerprint of the credential that was sent.
    pub sent: Fingerprint,
    /// Whether it was sent as a one-time token, with an intent.
    pub one_time: bool,
    /// Fingerprint of the answer's refresh token, where it has one.
    pub given: Option<Fingerprint>,
    /// The client id that was sent.
    pub client_id: &'a str,
    /// How long ago the provider last answered another grant well, on the boot-time clock; `None` if it has not since
    /// this process began.
    pub others_answered: Option<Duration>,
    /// How long ago the first of the refusals came that the grant has counted, on the boot-time clock as far as it
    /// reaches; zero where it has counted none.
    pub since_refusal: Duration,
    /// The provider's circuit is open: nothing is declared lost.
    pub frozen: bool,
    /// The vault's epoch.
    pub epoch: u32,
    /// The intent of this exchange, if it had one.
    pub intent: Option<&'a Intent>,
    /// The intent that is stored now: another's where another worker has taken the grant over and has an exchange of its own.
    pub open: Option<&'a Intent>,
    /// This boot of the machine.
    pub boot_id: u128,
    /// Uniform in `[0, 1)`.
    pub chance: f64,
}

/// What is to be told about a grant; the event's name in the contract is `consent.` and the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The issuer refused it; not yet proven dead.
    Refused,
    /// The issuer says it is dead.
    Lost,
    /// A one-time token's fate is unknown.
    InDoubt,
    /// It works again.
    Recovered,
}

/// What is to be done besides writing the grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is to be told.
    pub notice: Option<Notice>,
    /// The answer must be kept as a stray for this reason, since it cannot take its place in the grant.
    pub stray: Option<&'static str>,
    /// Whether the intent is closed: the token that it names is spent for good, or is known not to be.
    pub close_intent: bool,
}

impl Verdict {
    const fn quiet(close_intent: bool) -> Self {
        Self { notice: None, stray: None, close_intent }
    }
}

/// Carries the end of an exchange over into the grant as it is stored now.
pub fn exchange_ended(grant: &mut Grant, ended: &Ended<'_>, policy: &Policy, now: Now) -> Verdict {
    if grant.fingerprint != ended.sent {
        // Somebody replaced the credential meanwhile: whatever this says, it says of the old one.
        let stray = matches!(ended.outcome, ExchangeOutcome::Granted(_))
            .then_some("the credential had been replaced when its answer came");
        return Verdict { notice: None, stray, close_intent: true };
    }
    match ended.outcome {
        ExchangeOutcome::Granted(answer) => granted(grant, ended, answer, now.wall),
        ExchangeOutcome::Refused { .. } => refused(grant, ended, now.wall),
        ExchangeOutcome::ClientRefused { .. } => {
            harmless_failure(grant, ended, FailingReason::ClientRefused, None, now.wall)
        }
        ExchangeOutcome::RateLimited { retry_after } => {
            harmless_failure(grant, ended, FailingReason::RateLimited, *retry_after, now.wall)
        }
        ExchangeOutcome::Unavailable { retry_after } => {
            harmless_failure(grant, ended, FailingReason::ProviderUnavailable, *retry_after, now.wall)
        }
        ExchangeOutcome::Unknown { .. } if ended.one_time => unknown(grant, ended, policy, now),
        ExchangeOutcome::NotSent { .. } | ExchangeOutcome::Unknown { .. } => {
            harmless_failure(grant, ended, FailingReason::ProviderUnavailable, None, now.wall)
        }
    }
}

fn granted(grant: &mut Grant, ended: &Ended<'_>, answer: &Answer, now: Timestamp) -> Verdict {
    let another_subject = matches!((&grant.subject, &answer.subject), (Some(ours), Some(theirs)) if ours != theirs);
    let another_client = answer.client_id.as_deref().is_some_and(|id| id != ended.client_id);
    if another_subject || another_client {
        let stray =
            if another_subject { "the answer names another subject" } else { "the answer names another client" };
        return set_aside(grant, ended, stray, now);
    }

    let lifetime = answer
        .expires_in
        .or_else(|| grant.access.as_ref().map(AccessToken::lifetime).filter(|life| !life.is_zero()))
        .unwrap_or(UNTOLD_LIFETIME);
    grant.access = Some(AccessToken {
        token: answer.access_token.clone(),
        token_type: answer.token_type.clone(),
        scope: answer.scope.clone(),
        issued_at: ended.asked.wall,
        expires_at: ended.asked.wall + lifetime,
        issued_boot: Some(BootMoment { boot_id: ended.boot_id, at: ended.asked.boot }),
    });
    if let (Some(token), Some(given)) = (&answer.refresh_token, ended.given) {
        if given == ended.sent {
            show(grant, Usage::Reuse);
        } else {
            remember_spent(&mut grant.spent, ended.sent);
            grant.credential = Credential::RefreshToken(token.clone());
            grant.fingerprint = given;
            show(grant, Usage::OneTime);
        }
    }
    if grant.subject.is_none() {
        grant.subject.clone_from(&answer.subject);
    }
    grant.refreshed_at = Some(now);
    if let Some(grace) = still_doubtful(grant, ended, answer) {
        // What is served is new, and nothing is sent again before that grace is surely over.
        grant.retry_at = Some(now + grace);
        return Verdict::quiet(false);
    }
    let was = grant.state;
    set_state(grant, State::Active, now);
    grant.failures = 0;
    grant.retry_at = None;
    grant.refusals = None;
    grant.epoch = ended.epoch;
    let recovered = matches!(was, State::Lost | State::InDoubt(_) | State::Failing(FailingReason::Refused));
    Verdict { notice: recovered.then_some(Notice::Recovered), stray: None, close_intent: true }
}

/// Whether an answer without a refresh token leaves the doubt of an earlier attempt as it was, and for how long the issuer
/// may have taken a spent token: it says that this attempt spent nothing, and within the grace nothing of the one before.
fn still_doubtful(grant: &Grant, ended: &Ended<'_>, answer: &Answer) -> Option<Duration> {
    let again = ended.one_time && ended.intent.is_some_and(|intent| intent.attempt > 1);
    let grace = grant.consent.as_ref().map(|consent| consent.grace).filter(|grace| !grace.is_zero());
    grace.filter(|_| again && answer.refresh_token.is_none() && matches!(grant.state, State::InDoubt(_)))
}

/// The answer cannot take its place in the grant, whose own token is in doubt now. Where the answer rotated, that token
/// is spent for certain: it is remembered as such, so that it is never sent again by itself.
pub fn set_aside(grant: &mut Grant, ended: &Ended<'_>, why: &'static str, now: Timestamp) -> Verdict {
    let rotated = ended.given.is_some_and(|given| given != ended.sent);
    let was_doubtful = matches!(grant.state, State::InDoubt(_));
    fail(grant, FailingReason::ProviderUnavailable, None, ended.chance, now);
    if rotated {
        remember_spent(&mut grant.spent, ended.sent);
        show(grant, Usage::OneTime);
    }
    let doubtful = (ended.one_time || rotated) && grant.state != State::Lost;
    if doubtful {
        set_state(grant, State::InDoubt(DoubtReason::NoAnswer), now);
    }
    let notice = (doubtful && !was_doubtful).then_some(Notice::InDoubt);
    Verdict { notice, stray: Some(why), close_intent: false }
}

/// A record with the answer's access token is more than the vault takes: the refresh token, which cannot be had again,
/// is kept with the access token that was there `before`, and the next exchange is put off like after a failure.
pub fn without_new_access(grant: &mut Grant, before: &Grant, chance: f64, now: Timestamp) {
    grant.access.clone_from(&before.access);
    grant.refreshed_at = before.refreshed_at;
    grant.failures = before.failures;
    if matches!(before.state, State::Failing(_)) {
        (grant.state, grant.since) = (before.state, before.since);
    }
    fail(grant, FailingReason::ProviderUnavailable, None, chance, now);
}

/// One-time is for good: an issuer that has rotated once may do so again.
fn show(grant: &mut Grant, usage: Usage) {
    if let Some(consent) = &mut grant.consent
        && consent.shown != Some(Usage::OneTime)
    {
        consent.shown = Some(usage);
    }
}

/// Keeps the first (the enrolled one, which an operator's file may hold for ever) and the newest others.
fn remember_spent(spent: &mut Vec<Fingerprint>, fingerprint: Fingerprint) {
    if spent.contains(&fingerprint) {
        return;
    }
    spent.push(fingerprint);
    if spent.len() > MAX_SPENT {
        spent.remove(1);
    }
}

fn refused(grant: &mut Grant, ended: &Ended<'_>, now: Timestamp) -> Verdict {
    let first = grant.refusals.is_none() && grant.state != State::Lost;
    let refusals = match grant.refusals {
        // What is refused while the provider fails as a whole proves nothing about one grant.
        before if ended.frozen => before.unwrap_or(Refusals { count: 0, first_at: now }),
        Some(Refusals { count: count @ 1.., first_at }) => Refusals { count: count.saturating_add(1), first_at },
        _ => Refusals { count: 1, first_at: now },
    };
    grant.refusals = Some(refusals);
    grant.failures = grant.failures.saturating_add(1);
    let proven = !ended.frozen && proves_death(refusals.count, ended.since_refusal, ended.others_answered);
    if proven || grant.state == State::Lost {
        let notice = (grant.state != State::Lost).then_some(Notice::Lost);
        grant.retry_at = None;
        set_state(grant, State::Lost, now);
        return Verdict { notice, stray: None, close_intent: true };
    }
    // Only a count that goes on is worth a second try so soon.
    let wait = if refusals.count == 1 && !ended.frozen { REFUSED_AGAIN } else { REFUSED_INTERVAL };
    grant.retry_at = Some(now + wait);
    // A doubtful token that is refused has most likely been spent. To send it again is a replay, so the doubt stays
    // and its rules decide whether that may be, until the refusals are proof.
    let doubtful = ended.one_time && matches!(grant.state, State::InDoubt(_));
    if !doubtful {
        set_state(grant, State::Failing(FailingReason::Refused), now);
    }
    Verdict { notice: first.then_some(Notice::Refused), stray: None, close_intent: !doubtful }
}

/// Whether so many refusals, the first of them so long ago, prove a credential dead: two that are about a minute apart,
/// with another grant answered well since the first, or three over at least an hour.
fn proves_death(count: u32, since_first: Duration, others_answered: Option<Duration>) -> bool {
    let others_since = others_answered.is_some_and(|ago| ago <= since_first);
    (count >= 2 && since_first >= REFUSALS_APART && others_since)
        || (count >= LOST_REFUSALS && since_first >= LOST_AFTER)
}

/// A failure that shows that the credential was not spent by it. A doubt from an earlier attempt stays; that of this very one goes.
fn harmless_failure(
    grant: &mut Grant,
    ended: &Ended<'_>,
    reason: FailingReason,
    retry_after: Option<Duration>,
    now: Timestamp,
) -> Verdict {
    let is_unfounded = has_raised_the_doubt(grant, ended);
    if is_unfounded {
        set_state(grant, State::Failing(reason), now);
    }
    fail(grant, reason, retry_after, ended.chance, now);
    let notice = is_unfounded.then_some(Notice::Recovered);
    Verdict { notice, ..Verdict::quiet(!matches!(grant.state, State::InDoubt(_))) }
}

/// Whether nothing but this exchange's intent has put the grant in doubt: another worker took the grant over while this one stood still,
/// found the intent open, and could not know what was sent under it. Nothing was done under another intent of that token, since that
/// one would be the second.
fn has_raised_the_doubt(grant: &Grant, ended: &Ended<'_>) -> bool {
    let is_first = ended.intent.is_some_and(|intent| intent.attempt == 1);
    grant.state == State::InDoubt(DoubtReason::Crashed) && is_first && ended.intent == ended.open
}

fn fail(grant: &mut Grant, reason: FailingReason, retry_after: Option<Duration>, chance: f64, now: Timestamp) {
    grant.failures = grant.failures.saturating_add(1);
    let wait = backoff(grant.failures, chance).max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
    grant.retry_at = (grant.state != State::Lost).then(|| now + wait);
    if !matches!(grant.state, State::InDoubt(_) | State::Lost) {
        set_state(grant, State::Failing(reason), now);
    }
}

fn unknown(grant: &mut Grant, ended: &Ended<'_>, policy: &Policy, now: Now) -> Verdict {
    if grant.state == State::Lost {
        // An operator had it tried once more. It is as dead as it was, and is not tried by itself.
        grant.failures = grant.failures.saturating_add(1);
        return Verdict::quiet(true);
    }
    let notice = (!matches!(grant.state, State::InDoubt(_))).then_some(Notice::InDoubt);
    grant.failures = grant.failures.saturating_add(1);
    let in_grace = ended.intent.filter(|intent| retry_in_grace(grant, intent, policy, now, ended.boot_id));
    grant.retry_at = match in_grace {
        // At once, but once: an issuer that fails at once must not be hammered until the grace is over.
        Some(Intent { attempt: 1, .. }) => None,
        Some(intent) => Some(now.wall + backoff(intent.attempt, ended.chance)),
        None => Some(now.wall + backoff(grant.failures, ended.chance)),
    };
    set_state(grant, State::InDoubt(DoubtReason::NoAnswer), now.wall);
    Verdict { notice, stray: None, close_intent: false }
}

/// Whether the end of an exchange closes the intent that is stored now. Not where another worker has taken the grant over and has
/// an exchange of its own under way: that one's token may be spent, and its intent says so.
pub fn closes(verdict: &Verdict, own: Option<&Intent>, stored: Option<&Intent>) -> bool {
    verdict.close_intent && own == stored
}

/// At start: the process ended between an intent and the end of its exchange.
pub fn crashed(grant: &mut Grant, intent: &Intent, now: Timestamp) -> Option<Notice> {
    if intent.fingerprint != grant.fingerprint || matches!(grant.state, State::InDoubt(_) | State::Lost) {
        return None;
    }
    set_state(grant, State::InDoubt(DoubtReason::Crashed), now);
    Some(Notice::InDoubt)
}

/// At start: the vault went back to an earlier state, so that a one-time token in it may have been spent since.
pub fn out_of_date(grant: &mut Grant, epoch: u32, reason: DoubtReason, now: Timestamp) -> Option<Notice> {
    if grant.epoch >= epoch || !grant.is_one_time() || grant.state == State::Lost {
        return None;
    }
    grant.epoch = epoch;
    set_state(grant, State::InDoubt(reason), now);
    Some(Notice::InDoubt)
}

/// An operator gives the credential up: it is never exchanged again, unless an operator has it tried.
pub fn abandoned(grant: &mut Grant, now: Timestamp) -> Option<Notice> {
    grant.retry_at = None;
    let notice = (grant.state != State::Lost).then_some(Notice::Lost);
    set_state(grant, State::Lost, now);
    notice
}

/// An operator's pause, which lies over the state and keeps it; false where nothing changes.
pub fn paused(grant: &mut Grant, pause: bool) -> bool {
    std::mem::replace(&mut grant.paused, pause) != pause
}

fn set_state(grant: &mut Grant, state: State, now: Timestamp) {
    if grant.state != state {
        grant.state = state;
        grant.since = now;
    }
}

#[cfg(test)]
pub(crate) mod tests;
