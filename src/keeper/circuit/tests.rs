use super::*;
use crate::model::NoAnswer;

fn observe(circuit: &Circuit, outcome: &ExchangeOutcome, grant: u8, at: u64) -> Option<Change> {
    circuit.observe(&Observation {
        outcome,
        grant: GrantId::from_bytes([grant; 16]),
        subject: grant.into(),
        own_client: false,
        doubtful: false,
        grants: 10,
        boot: Duration::from_secs(at),
    })
}

fn granted() -> ExchangeOutcome {
    ExchangeOutcome::Granted(Box::new(crate::model::Answer {
        access_token: crate::model::Secret::new("at"),
        token_type: "Bearer".into(),
        expires_in: None,
        scope: None,
        refresh_token: None,
        subject: None,
        client_id: None,
    }))
}

fn silence() -> ExchangeOutcome {
    ExchangeOutcome::Unknown { why: NoAnswer::Timeout, detail: String::new() }
}

fn refused() -> ExchangeOutcome {
    ExchangeOutcome::Refused { detail: String::new() }
}

#[test]
fn three_silences_in_a_row_freeze_and_an_answer_thaws() {
    let circuit = Circuit::default();
    assert_eq!(observe(&circuit, &silence(), 1, 0), None);
    assert_eq!(observe(&circuit, &granted(), 2, 1), None);
    assert_eq!(observe(&circuit, &silence(), 1, 2), None);
    assert_eq!(observe(&circuit, &silence(), 1, 3), None);
    assert_eq!(observe(&circuit, &silence(), 1, 4), Some(Change::Opened("provider_unavailable")));
    assert_eq!(observe(&circuit, &silence(), 1, 5), None, "one alarm for one cause");
    assert_eq!(circuit.frozen(), Some("provider_unavailable"));
    assert_eq!(observe(&circuit, &granted(), 1, 6), Some(Change::Closed));
    assert_eq!(circuit.frozen(), None);
}

#[test]
fn a_refused_client_freezes_at_once_but_not_for_a_grants_own_client() {
    let circuit = Circuit::default();
    let outcome = ExchangeOutcome::ClientRefused { detail: String::new() };
    let own = Observation {
        outcome: &outcome,
        grant: GrantId::from_bytes([1; 16]),
        subject: 1,
        own_client: true,
        doubtful: false,
        grants: 1,
        boot: Duration::ZERO,
    };
    assert_eq!(circuit.observe(&own), None);
    assert_eq!(observe(&circuit, &outcome, 1, 0), Some(Change::Opened("client_refused")));
}

#[test]
fn refusals_of_many_subjects_within_an_hour_freeze() {
    let circuit = Circuit::default();
    for at in 0..10 {
        assert_eq!(observe(&circuit, &refused(), 1, at), None, "one subject, however often");
    }
    assert_eq!(observe(&circuit, &refused(), 2, 20), None);
    assert_eq!(observe(&circuit, &refused(), 3, 21), None);
    assert_eq!(observe(&circuit, &refused(), 4, 22), Some(Change::Opened("refused")));
    let spread = Circuit::default();
    for grant in 1..20 {
        assert_eq!(observe(&spread, &refused(), grant, u64::from(grant) * 1300), None);
    }
}

#[test]
fn another_grants_success_is_proof_and_ones_own_is_not() {
    let circuit = Circuit::default();
    let [one, two] = [1, 2].map(|byte| GrantId::from_bytes([byte; 16]));
    observe(&circuit, &granted(), 1, 100);
    let ago = |grant, at| circuit.answered_others(grant, Duration::from_secs(at));
    assert_eq!(ago(one, 101), None);
    assert_eq!(ago(two, 101), Some(Duration::from_secs(1)));
    observe(&circuit, &granted(), 2, 110);
    observe(&circuit, &granted(), 2, 120);
    assert_eq!((ago(one, 130), ago(two, 130)), (Some(Duration::from_secs(10)), Some(Duration::from_secs(30))));
}

#[test]
fn probes_are_single_and_spread() {
    let circuit = Circuit::default();
    observe(&circuit, &ExchangeOutcome::ClientRefused { detail: String::new() }, 1, 100);
    let at = Duration::from_secs;
    assert_eq!(circuit.until_probe(at(100)), at(2));
    assert_eq!(circuit.until_probe(at(102)), Duration::ZERO);
    assert_eq!(circuit.until_probe(at(102)), at(4));
    for _ in 0..10 {
        let wait = circuit.until_probe(at(5000));
        assert!(wait <= LAST_PROBE);
    }
    assert_eq!(circuit.probed(&silence(), at(5000)), None);
    assert_eq!(circuit.probed(&refused(), at(5000)), Some(Change::Closed));
}

#[test]
fn a_refused_probe_does_not_show_that_mass_refusals_are_over() {
    let circuit = Circuit::default();
    let at = Duration::from_secs;
    for grant in 1..=4 {
        observe(&circuit, &refused(), grant, 0);
    }
    assert_eq!(circuit.probed(&refused(), at(2)), None);
    assert_eq!(circuit.probed(&silence(), at(40)), None);
    assert_eq!(circuit.probed(&refused(), at(40)), Some(Change::Closed), "a trial after a rest");
    assert_eq!(observe(&circuit, &refused(), 5, 41), Some(Change::Opened("refused")), "which one refusal ends");
    assert_eq!(circuit.probed(&refused(), at(41 + 59)), None, "the next rest is longer");
    assert_eq!(circuit.probed(&refused(), at(41 + 60)), Some(Change::Closed));
    assert_eq!(observe(&circuit, &granted(), 6, 102), None);
    assert_eq!(observe(&circuit, &refused(), 7, 103), None, "well again");
}

#[test]
fn an_issuer_that_refuses_the_probes_client_is_there_all_the_same() {
    let circuit = Circuit::default();
    for _ in 0..3 {
        observe(&circuit, &silence(), 1, 0);
    }
    let outcome = ExchangeOutcome::ClientRefused { detail: String::new() };
    assert_eq!(circuit.probed(&outcome, Duration::from_secs(2)), Some(Change::Closed));
    observe(&circuit, &outcome, 1, 3);
    assert_eq!(circuit.probed(&outcome, Duration::from_secs(6)), None);
    assert_eq!(circuit.probed(&refused(), Duration::from_secs(6)), Some(Change::Closed));
}

#[test]
fn an_outage_that_only_real_credentials_meet_is_tried_ever_less_often() {
    let circuit = Circuit::default();
    let at = Duration::from_secs;
    for _ in 0..3 {
        observe(&circuit, &silence(), 1, 0);
    }
    assert_eq!(circuit.probed(&refused(), at(2)), Some(Change::Closed), "a made-up credential is answered");
    assert!(circuit.is_on_trial());
    assert_eq!(observe(&circuit, &silence(), 2, 12), Some(Change::Opened("provider_unavailable")), "one is enough");
    assert_eq!(circuit.probed(&refused(), at(12 + 59)), None);
    assert_eq!(circuit.probed(&refused(), at(12 + 60)), Some(Change::Closed));
    assert_eq!(observe(&circuit, &granted(), 3, 73), None);
    assert!(!circuit.is_on_trial());
    assert_eq!(observe(&circuit, &silence(), 4, 74), None, "well again: three in a row are needed");
}

#[test]
fn a_grant_with_a_client_of_its_own_tells_nothing_of_the_providers() {
    let circuit = Circuit::default();
    observe(&circuit, &ExchangeOutcome::ClientRefused { detail: String::new() }, 1, 0);
    for outcome in [granted(), refused()] {
        let own = Observation {
            outcome: &outcome,
            grant: GrantId::from_bytes([2; 16]),
            subject: 2,
            own_client: true,
            doubtful: false,
            grants: 10,
            boot: Duration::from_secs(1),
        };
        assert_eq!(circuit.observe(&own), None);
    }
    assert_eq!((circuit.frozen_for(true), circuit.frozen_for(false)), (None, Some("client_refused")));
    assert_eq!(observe(&circuit, &granted(), 3, 2), Some(Change::Closed));
}

#[test]
fn what_one_worker_finds_out_another_follows() {
    let (one, two) = (Circuit::default(), Circuit::default());
    let at = Duration::from_secs;
    let heard = |from: &Circuit| Standing::read(&from.standing().words()).expect("it was written by this version");
    for _ in 0..3 {
        observe(&one, &silence(), 1, 10);
    }
    observe(&two, &silence(), 2, 2010);
    assert_eq!(two.follow(heard(&one), at(2011)), Some(Change::Opened(UNAVAILABLE)));
    assert_eq!((two.standing(), two.follow(heard(&one), at(2012))), (one.standing(), None));
    assert!(!two.until_probe(at(2011)).is_zero(), "by its own clock");

    assert_eq!(two.probed(&refused(), at(2015)), Some(Change::Closed));
    assert_eq!(one.follow(heard(&two), at(15)), Some(Change::Closed));
    assert!(one.is_on_trial());
    assert_eq!(observe(&one, &silence(), 1, 16), Some(Change::Opened(UNAVAILABLE)), "the trial is everybody's");
    assert_eq!(two.follow(heard(&one), at(2016)), Some(Change::Opened(UNAVAILABLE)));
    assert_eq!(two.probed(&refused(), at(2017)), None, "and so is the longer rest");

    assert_eq!(observe(&two, &granted(), 5, 2100), Some(Change::Closed));
    assert_eq!(one.follow(heard(&two), at(100)), Some(Change::Closed));
    assert_eq!((one.standing(), observe(&one, &silence(), 4, 101)), (Standing::default(), None), "well again");
    assert_eq!(one.follow(Standing::default(), at(102)), None);
}

#[test]
fn where_there_is_no_client_to_probe_with_being_reached_is_enough() {
    let circuit = Circuit::default();
    for _ in 0..3 {
        observe(&circuit, &silence(), 1, 0);
    }
    assert_eq!(circuit.reached(false, Duration::from_secs(2)), None);
    assert_eq!(circuit.reached(true, Duration::from_secs(6)), Some(Change::Closed));
}
