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

/// The life taken for an access token whose answer did not tell: short, because a token refreshed too early costs
/// one exchange and one refreshed too late costs the customer.
const UNTOLD_LIFETIME: Duration = Duration::from_mins(5);

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
    /// The provider has answered another grant well around this time.
    pub provider_answers_others: bool,
    /// The provider's circuit is open: nothing is declared lost.
    pub frozen: bool,
    /// The vault's epoch.
    pub epoch: u32,
    /// The open intent, if any.
    pub intent: Option<&'a Intent>,
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
#[derive(Debug, PartialEq, Eq)]
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
        fail(grant, FailingReason::ProviderUnavailable, None, ended.chance, now);
        if ended.one_time {
            set_state(grant, State::InDoubt(DoubtReason::NoAnswer), now);
        }
        return Verdict { notice: ended.one_time.then_some(Notice::InDoubt), stray: Some(stray), close_intent: false };
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
    let was = grant.state;
    set_state(grant, State::Active, now);
    grant.refreshed_at = Some(now);
    grant.failures = 0;
    grant.retry_at = None;
    grant.refusals = None;
    grant.epoch = ended.epoch;
    let recovered = matches!(was, State::Lost | State::InDoubt(_) | State::Failing(FailingReason::Refused));
    Verdict { notice: recovered.then_some(Notice::Recovered), stray: None, close_intent: true }
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
    let refusals = match grant.refusals {
        Some(Refusals { count, first_at }) => Refusals { count: count.saturating_add(1), first_at },
        None => Refusals { count: 1, first_at: now },
    };
    grant.refusals = Some(refusals);
    let spread = refusals.count >= LOST_REFUSALS && now.since(refusals.first_at) >= LOST_AFTER;
    if !ended.frozen && (ended.provider_answers_others || spread) {
        let notice = (grant.state != State::Lost).then_some(Notice::Lost);
        grant.failures = grant.failures.saturating_add(1);
        grant.retry_at = None;
        set_state(grant, State::Lost, now);
        return Verdict { notice, stray: None, close_intent: true };
    }
    let notice = (refusals.count == 1).then_some(Notice::Refused);
    grant.failures = grant.failures.saturating_add(1);
    grant.retry_at = Some(now + REFUSED_INTERVAL);
    if grant.state != State::Lost {
        set_state(grant, State::Failing(FailingReason::Refused), now);
    }
    Verdict { notice, stray: None, close_intent: true }
}

/// A failure that shows that the credential was not spent by it. A doubt from an earlier attempt stays.
fn harmless_failure(
    grant: &mut Grant,
    ended: &Ended<'_>,
    reason: FailingReason,
    retry_after: Option<Duration>,
    now: Timestamp,
) -> Verdict {
    fail(grant, reason, retry_after, ended.chance, now);
    Verdict::quiet(!matches!(grant.state, State::InDoubt(_)))
}

fn fail(grant: &mut Grant, reason: FailingReason, retry_after: Option<Duration>, chance: f64, now: Timestamp) {
    grant.failures = grant.failures.saturating_add(1);
    let wait = backoff(grant.failures, chance).max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
    grant.retry_at = Some(now + wait);
    if !matches!(grant.state, State::InDoubt(_) | State::Lost) {
        set_state(grant, State::Failing(reason), now);
    }
}

fn unknown(grant: &mut Grant, ended: &Ended<'_>, policy: &Policy, now: Now) -> Verdict {
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
pub(super) mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{
        config::{InDoubtPolicy, KeepWarm},
        model::{Consent, GrantId, NoAnswer, Secret},
    };

    pub(in crate::lifecycle) fn now() -> Now {
        Now { wall: Timestamp::from_millis(1_800_000_000_000), boot: Duration::from_secs(100_000) }
    }

    pub(in crate::lifecycle) fn policy() -> Policy {
        Policy {
            refresh_at: 0.75,
            keep_warm: KeepWarm::Always,
            timeout: Duration::from_secs(10),
            idle_lifetime: None,
            in_doubt: InDoubtPolicy::RetryWhenHarmless,
        }
    }

    pub(in crate::lifecycle) fn key_grant() -> Grant {
        let now = now().wall;
        Grant {
            id: GrantId::from_bytes([7; 16]),
            provider: "dinero-personal".parse().expect("valid"),
            credential: Credential::ApiKey(Secret::new("key")),
            fingerprint: Fingerprint([1; 16]),
            spent: vec![],
            client: None,
            access: Some(AccessToken {
                token: Secret::new("at-0"),
                token_type: "Bearer".into(),
                scope: None,
                issued_at: now,
                expires_at: now + Duration::from_hours(1),
                issued_boot: None,
            }),
            state: State::Active,
            since: now,
            paused: false,
            subject: None,
            consent: None,
            refreshed_at: Some(now),
            failures: 0,
            retry_at: None,
            refusals: None,
            last_fetched_at: None,
            organizations: vec!["org".parse().expect("valid")],
            epoch: 1,
        }
    }

    pub(in crate::lifecycle) fn consent_grant() -> Grant {
        let mut grant = key_grant();
        grant.credential = Credential::RefreshToken(Secret::new("rt-0"));
        grant.subject = Some("alice".into());
        grant.consent = Some(Consent {
            granted_at: now().wall,
            expires_at: None,
            assumed: true,
            expected: Usage::Reuse,
            shown: None,
            grace: Duration::ZERO,
            warned: vec![],
        });
        grant
    }

    pub(in crate::lifecycle) fn answer(refresh_token: Option<&str>) -> ExchangeOutcome {
        ExchangeOutcome::Granted(Box::new(Answer {
            access_token: Secret::new("at-1"),
            token_type: "Bearer".into(),
            expires_in: Some(Duration::from_mins(10)),
            scope: None,
            refresh_token: refresh_token.map(Secret::new),
            subject: Some("alice".into()),
            client_id: Some("isv_x".into()),
        }))
    }

    pub(in crate::lifecycle) fn ended(outcome: &ExchangeOutcome, given: Option<u8>) -> Ended<'_> {
        Ended {
            asked: now(),
            outcome,
            sent: Fingerprint([1; 16]),
            one_time: true,
            given: given.map(|byte| Fingerprint([byte; 16])),
            client_id: "isv_x",
            provider_answers_others: false,
            frozen: false,
            epoch: 1,
            intent: None,
            boot_id: 1,
            chance: 0.5,
        }
    }

    fn detail() -> String {
        "as it was".into()
    }

    #[test]
    fn a_changed_refresh_token_takes_the_old_ones_place_and_makes_the_grant_one_time_for_good() {
        let mut grant = consent_grant();
        let verdict = exchange_ended(&mut grant, &ended(&answer(Some("rt-1")), Some(2)), &policy(), now());
        assert_eq!(verdict, Verdict { notice: None, stray: None, close_intent: true });
        assert_eq!(grant.credential.secret().expose(), "rt-1");
        assert_eq!(
            (grant.fingerprint, grant.spent.as_slice()),
            (Fingerprint([2; 16]), [Fingerprint([1; 16])].as_slice())
        );
        let same = answer(Some("rt-1"));
        let again = Ended { sent: Fingerprint([2; 16]), ..ended(&same, Some(2)) };
        exchange_ended(&mut grant, &again, &policy(), now());
        assert!(grant.is_one_time(), "an issuer that has rotated once may do so again");
    }

    #[test]
    fn the_same_refresh_token_given_back_shows_that_it_can_be_used_again() {
        let mut grant = consent_grant();
        assert!(grant.is_one_time(), "one-time until shown otherwise, whatever was expected");
        exchange_ended(&mut grant, &ended(&answer(Some("rt-0")), Some(1)), &policy(), now());
        assert!(!grant.is_one_time());
    }

    #[test]
    fn an_answer_without_a_refresh_token_keeps_the_one_that_is_there() {
        let mut grant = consent_grant();
        exchange_ended(&mut grant, &ended(&answer(None), None), &policy(), now());
        assert_eq!(grant.credential.secret().expose(), "rt-0");
        assert!(grant.is_one_time(), "nothing was shown");
        assert_eq!(grant.state, State::Active);
    }

    #[test]
    fn the_enrolled_token_is_remembered_longest() {
        let mut spent = vec![];
        for byte in 1..=9 {
            remember_spent(&mut spent, Fingerprint([byte; 16]));
        }
        assert_eq!(spent, [1, 7, 8, 9].map(|byte| Fingerprint([byte; 16])));
    }

    #[rstest]
    #[case::another_subject(Some("bob"), Some("isv_x"))]
    #[case::another_client(Some("alice"), Some("isv_y"))]
    fn an_answer_that_is_anothers_is_kept_aside(#[case] subject: Option<&str>, #[case] client: Option<&str>) {
        let ExchangeOutcome::Granted(mut given) = answer(Some("rt-1")) else { unreachable!() };
        given.subject = subject.map(Into::into);
        given.client_id = client.map(Into::into);
        let mut grant = consent_grant();
        let verdict = exchange_ended(&mut grant, &ended(&ExchangeOutcome::Granted(given), Some(2)), &policy(), now());
        assert!(verdict.stray.is_some());
        assert_eq!(grant.access.expect("kept").token.expose(), "at-0");
        assert_eq!(grant.state, State::InDoubt(DoubtReason::NoAnswer));
    }

    #[test]
    fn an_answer_to_a_replaced_credential_is_kept_aside_and_changes_nothing() {
        let mut grant = consent_grant();
        grant.fingerprint = Fingerprint([9; 16]);
        let before = format!("{grant:?}");
        let verdict = exchange_ended(&mut grant, &ended(&answer(Some("rt-1")), Some(2)), &policy(), now());
        assert!(verdict.stray.is_some());
        assert_eq!(format!("{grant:?}"), before);
    }

    #[rstest]
    #[case(ExchangeOutcome::ClientRefused { detail: detail() }, FailingReason::ClientRefused)]
    #[case(ExchangeOutcome::RateLimited { retry_after: None }, FailingReason::RateLimited)]
    #[case(ExchangeOutcome::Unavailable { retry_after: None }, FailingReason::ProviderUnavailable)]
    #[case(ExchangeOutcome::NotSent { detail: detail() }, FailingReason::ProviderUnavailable)]
    fn what_does_not_spend_a_one_time_token_leaves_no_doubt(
        #[case] outcome: ExchangeOutcome,
        #[case] reason: FailingReason,
    ) {
        let mut grant = consent_grant();
        let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
        assert_eq!(grant.state, State::Failing(reason));
        assert!(verdict.close_intent);
        assert!(grant.retry_at.is_some());
        assert_eq!(grant.credential.secret().expose(), "rt-0");
    }

    #[rstest]
    #[case(ExchangeOutcome::ClientRefused { detail: detail() })]
    #[case(ExchangeOutcome::RateLimited { retry_after: None })]
    #[case(ExchangeOutcome::NotSent { detail: detail() })]
    fn a_doubt_survives_failures_that_tell_nothing_about_it(#[case] outcome: ExchangeOutcome) {
        let mut grant = consent_grant();
        grant.state = State::InDoubt(DoubtReason::Crashed);
        let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
        assert_eq!(grant.state, State::InDoubt(DoubtReason::Crashed));
        assert!(!verdict.close_intent);
    }

    #[test]
    fn silence_after_a_one_time_token_is_doubt_and_after_a_key_is_not() {
        let outcome = ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: detail() };
        let mut grant = consent_grant();
        let verdict = exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
        assert_eq!(verdict, Verdict { notice: Some(Notice::InDoubt), stray: None, close_intent: false });
        assert_eq!(grant.state, State::InDoubt(DoubtReason::NoAnswer));
        let mut key = key_grant();
        exchange_ended(&mut key, &Ended { one_time: false, ..ended(&outcome, None) }, &policy(), now());
        assert_eq!(key.state, State::Failing(FailingReason::ProviderUnavailable));
    }

    #[test]
    fn within_the_grace_the_first_silence_is_followed_up_at_once_and_the_next_ones_ever_later() {
        let outcome = ExchangeOutcome::Unknown { why: NoAnswer::ServerError, detail: detail() };
        let mut grant = consent_grant();
        grant.consent.as_mut().expect("consent").grace = Duration::from_mins(1);
        let waits = [1, 2, 3].map(|attempt| {
            let intent = Intent {
                grant: grant.id,
                fingerprint: grant.fingerprint,
                attempt,
                first_at: now().wall,
                first_boot: now().boot,
                boot_id: 1,
            };
            let silent = Ended { intent: Some(&intent), chance: 1.0, ..ended(&outcome, None) };
            exchange_ended(&mut grant, &silent, &policy(), now());
            grant.retry_at.map(|at| at.since(now().wall).as_secs())
        });
        assert_eq!(waits, [None, Some(4), Some(8)]);
    }

    #[test]
    fn a_refusal_is_not_proof_until_others_are_answered_or_an_hour_has_passed() {
        let outcome = ExchangeOutcome::Refused { detail: detail() };
        let mut alone = key_grant();
        let mut at = now();
        let first = exchange_ended(&mut alone, &ended(&outcome, None), &policy(), at);
        assert_eq!((first.notice, alone.state), (Some(Notice::Refused), State::Failing(FailingReason::Refused)));
        for _ in 0..2 {
            at.wall = at.wall + Duration::from_mins(15);
            exchange_ended(&mut alone, &ended(&outcome, None), &policy(), at);
            assert_eq!(alone.state, State::Failing(FailingReason::Refused), "three within an hour prove nothing");
        }
        at.wall = at.wall + Duration::from_mins(30);
        let last = exchange_ended(&mut alone, &ended(&outcome, None), &policy(), at);
        assert_eq!((last.notice, alone.state), (Some(Notice::Lost), State::Lost));

        let mut among_others = key_grant();
        let proof = Ended { provider_answers_others: true, ..ended(&outcome, None) };
        assert_eq!(exchange_ended(&mut among_others, &proof, &policy(), now()).notice, Some(Notice::Lost));
        assert_eq!(among_others.credential.secret().expose(), "key", "a lost grant keeps its secret");
    }

    #[test]
    fn nothing_is_lost_while_the_circuit_is_open() {
        let outcome = ExchangeOutcome::Refused { detail: detail() };
        let mut grant = key_grant();
        let proof = Ended { provider_answers_others: true, frozen: true, ..ended(&outcome, None) };
        exchange_ended(&mut grant, &proof, &policy(), now());
        assert_eq!(grant.state, State::Failing(FailingReason::Refused));
    }

    #[test]
    fn retry_after_is_honoured_up_to_an_hour() {
        let mut grant = key_grant();
        let outcome = ExchangeOutcome::RateLimited { retry_after: Some(Duration::from_mins(2)) };
        exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
        assert_eq!(grant.retry_at, Some(now().wall + Duration::from_mins(2)));
        let outcome = ExchangeOutcome::RateLimited { retry_after: Some(Duration::from_hours(24)) };
        exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
        assert_eq!(grant.retry_at, Some(now().wall + MAX_RETRY_AFTER));
    }

    #[test]
    fn an_answer_that_tells_no_lifetime_is_given_the_last_one_or_a_short_one() {
        let ExchangeOutcome::Granted(mut given) = answer(None) else { unreachable!() };
        given.expires_in = None;
        given.client_id = None;
        let outcome = ExchangeOutcome::Granted(given);
        let mut grant = consent_grant();
        exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
        assert_eq!(grant.access.as_ref().expect("granted").lifetime(), Duration::from_hours(1));
        grant.access = None;
        exchange_ended(&mut grant, &ended(&outcome, None), &policy(), now());
        assert_eq!(grant.access.expect("granted").lifetime(), UNTOLD_LIFETIME);
    }

    #[test]
    fn a_crash_during_an_exchange_is_doubt_unless_the_token_has_changed_since() {
        let mut grant = consent_grant();
        let mut intent = Intent {
            grant: grant.id,
            fingerprint: Fingerprint([9; 16]),
            attempt: 1,
            first_at: now().wall,
            first_boot: now().boot,
            boot_id: 1,
        };
        assert_eq!(crashed(&mut grant, &intent, now().wall), None);
        intent.fingerprint = grant.fingerprint;
        assert_eq!(crashed(&mut grant, &intent, now().wall), Some(Notice::InDoubt));
        assert_eq!(grant.state, State::InDoubt(DoubtReason::Crashed));
    }
}
