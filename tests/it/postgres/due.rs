//! What is due, claimed in batches, and what is known of grants in clear.

use std::{collections::BTreeSet, sync::Arc, thread, time::Duration};

use consentry::{
    clock::{Clock as _, SystemClock},
    model::{
        DoubtReason, FailingReason, Fingerprint, Grant, GrantId, Intent, OrganizationId, ProviderName, State, Timestamp,
    },
    vault::{
        Change, Stored, VaultError,
        postgres::{Dates, Hold, Settings},
    },
};

use super::{
    BRIEF, UNSEEN, Worker, bytea,
    cluster::{Cluster, is_installed},
    settings,
    store::{Pair, Replica, grant as any_grant, put},
};
use crate::harness::eventually;

pub(super) const DAY: Duration = Duration::from_hours(24);
pub(super) const HOUR: Duration = Duration::from_hours(1);

pub(super) fn now() -> Timestamp {
    SystemClock::new().now().wall
}

pub(super) fn id(number: u16) -> GrantId {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    GrantId::from_bytes(bytes)
}

pub(super) fn provider() -> ProviderName {
    "plain-provider".parse().expect("a name")
}

pub(super) fn organization_of(number: u16) -> OrganizationId {
    format!("{number}").parse().expect("an organization's id")
}

/// A consent of a person of its own, for one organization, that is due at `retry_at` by [`dates`].
pub(super) fn grant(number: u16, due: Option<Timestamp>) -> Grant {
    let mut fingerprint = [1; 16];
    fingerprint[..2].copy_from_slice(&number.to_be_bytes());
    let mut grant = Grant {
        id: id(number),
        fingerprint: Fingerprint(fingerprint),
        subject: Some(format!("person {number}")),
        organizations: vec![organization_of(number)],
        retry_at: due,
        ..any_grant(1)
    };
    ends(&mut grant, Some(now() + 90 * DAY));
    lapses(&mut grant, now() + HOUR);
    grant
}

pub(super) fn ends(grant: &mut Grant, at: Option<Timestamp>) {
    grant.consent.as_mut().expect("a consent").expires_at = at;
}

pub(super) fn lapses(grant: &mut Grant, at: Timestamp) {
    grant.access.as_mut().expect("an access token").expires_at = at;
}

/// What a keeper would work out, made simple: due when the grant is to be tried again, an open intent is due at its beginning.
fn dates(grant: &Grant, intent: Option<&Intent>) -> Dates {
    Dates {
        due: intent.map(|intent| intent.first_at).or(grant.retry_at),
        warns: grant.consent.as_ref().and_then(|consent| consent.expires_at),
        lapses: grant.access.as_ref().map(|access| access.expires_at),
        every: Some(Duration::from_mins(1)),
    }
}

fn intent(number: u16, first_at: Timestamp) -> Intent {
    Intent {
        grant: id(number),
        fingerprint: Fingerprint([1; 16]),
        attempt: 1,
        first_at,
        first_boot: Duration::from_secs(5),
        boot_id: 7,
    }
}

impl Replica {
    fn dated(self) -> Self {
        self.store.date_by(Arc::new(dates));
        self
    }

    pub(super) fn put_all(&self, grants: impl IntoIterator<Item = Grant>) {
        let grants: Vec<Grant> = grants.into_iter().collect();
        for some in grants.chunks(500) {
            self.commit(some.iter().cloned().map(put).collect()).expect("they are stored");
        }
    }

    fn claim_due(&self, most: u16) -> Vec<(Stored<Grant>, Hold)> {
        self.runtime.block_on(self.store.claim_due(&provider(), most)).expect("an answer")
    }

    fn put_off(&self, hold: Hold, due: Timestamp) {
        let dates = Dates { due: Some(due), ..Dates::default() };
        self.runtime.block_on(self.store.put_off(vec![(hold, dates)])).expect("it is written");
    }

    fn hold_now(&self, number: u16) -> Result<Hold, VaultError> {
        self.runtime.block_on(self.store.hold(id(number), Duration::ZERO))
    }

    /// Changes a grant as a keeper does.
    pub(super) fn amend(&self, number: u16, change: impl FnOnce(&mut Grant)) {
        self.runtime.block_on(async {
            let hold = self.store.hold(id(number), Duration::from_secs(20)).await.expect("nobody has it");
            let mut grant = self.store.grant(id(number)).await.expect("an answer").expect("it is there").value;
            change(&mut grant);
            self.store.commit_last(vec![hold], vec![put(grant)]).await.expect("it is stored");
        });
    }
}

pub(super) fn pair(schema: &str) -> Pair {
    let pair = Pair::open(schema);
    pair.one.store.date_by(Arc::new(dates));
    pair.other.store.date_by(Arc::new(dates));
    pair
}

fn numbers(claimed: &[(Stored<Grant>, Hold)]) -> Vec<GrantId> {
    claimed.iter().map(|(stored, _)| stored.value.id).collect()
}

/// The column of a grant's row, found by its fingerprint.
fn column(pair: &Pair, schema: &str, number: u16, column: &str) -> String {
    let fingerprint = bytea(&grant(number, None).fingerprint.0);
    pair.cluster.on_primary(&format!(
        "SELECT {column} FROM {schema}.work JOIN {schema}.fingerprints USING (name) WHERE fingerprint = {fingerprint}"
    ))
}

#[test]
fn what_is_due_is_claimed_and_read_by_one_replica_each_the_longest_due_first() {
    if !is_installed() {
        return;
    }
    let pair = pair("due");
    let later = now() + HOUR;
    pair.one.put_all((0..300).map(|number| {
        // Every third is not due yet, and every seventh not at all.
        let due = if number % 3 == 0 { later } else { now() - HOUR + Duration::from_secs(u64::from(number)) };
        grant(number, (number % 7 != 0).then_some(due))
    }));
    let due: BTreeSet<GrantId> = (0..300).filter(|number| number % 3 != 0 && number % 7 != 0).map(id).collect();
    let first = pair.one.claim_due(2);
    assert_eq!(numbers(&first), [id(1), id(2)], "the longest due");
    drop(first);

    // Two at once, each as much as it is given.
    let claimed: Vec<_> = thread::scope(|scope| {
        let claiming = [&pair.one, &pair.other].map(|replica| {
            scope.spawn(move || {
                let mut all = Vec::new();
                loop {
                    let some = replica.claim_due(13);
                    if some.is_empty() {
                        return all;
                    }
                    all.extend(some);
                }
            })
        });
        claiming.into_iter().flat_map(|claiming| claiming.join().expect("it claims")).collect()
    });
    // What was dropped above is given up in the background.
    let mut claimed = claimed;
    eventually("all that is due is claimed", || {
        claimed.extend(pair.one.claim_due(13));
        (claimed.len() >= due.len()).then_some(())
    });
    let all = numbers(&claimed);
    assert_eq!((all.len(), all.into_iter().collect::<BTreeSet<_>>()), (due.len(), due), "each once");
    assert!(claimed.iter().all(|(stored, hold)| hold.grant() == stored.value.id && hold.is_of_a_grant()));
}

#[test]
fn a_claim_of_what_is_due_is_the_hold_that_all_in_the_process_share() {
    if !is_installed() {
        return;
    }
    let pair = pair("shared_due");
    pair.one.put_all([grant(1, Some(now() - HOUR))]);
    let (stored, hold) = pair.one.claim_due(9).pop().expect("it is due");
    assert!(matches!(pair.other.hold_now(1), Err(VaultError::Held)));
    assert!(pair.other.claim_due(9).is_empty() && pair.one.claim_due(9).is_empty(), "it is claimed");
    let same = pair.one.hold_now(1).expect("it is this process's");
    assert_eq!(same.good_until(), hold.good_until());

    // Put off while somebody shares it, it is dated and held still; after that it is free.
    pair.one.put_off(hold, now() - HOUR);
    assert!(matches!(pair.other.hold_now(1), Err(VaultError::Held)));
    pair.one.put_off(same, now() + HOUR);
    assert!(pair.other.hold_now(1).is_ok() && pair.other.claim_due(9).is_empty());

    // A commit dates it, too.
    let due = Grant { retry_at: Some(now() - HOUR), ..stored.value };
    pair.other.amend(1, |grant| *grant = due);
    let (_, hold) = pair.one.claim_due(9).pop().expect("it is due again");
    pair.one.runtime.block_on(pair.one.store.commit_last(vec![hold], vec![Change::DeleteGrant(id(1))])).unwrap();
    assert!(pair.other.claim_due(9).is_empty(), "it is gone");
}

#[test]
fn who_lost_its_claim_puts_nothing_off() {
    if !is_installed() {
        return;
    }
    let pair = pair("fenced_due");
    let brief = Settings { lease: BRIEF, ..settings(&pair.cluster.url(), "fenced_due") };
    let slow = Replica::open(&brief, &pair.identity).expect("it opens").dated();
    slow.put_all([grant(1, Some(now() - HOUR))]);
    let (stored, stale) = slow.claim_due(9).pop().expect("it is due");
    let (_, hold) = eventually("the claim runs out", || pair.one.claim_due(9).pop());
    slow.put_off(stale.clone(), now() + HOUR);
    let late = slow.runtime.block_on(slow.store.commit_held(&[&stale], vec![put(stored.value)]));
    assert!(matches!(late, Err(VaultError::Fenced)), "{late:?}");
    drop(hold);
    eventually("it is due still, and free", || pair.other.claim_due(9).pop());
}

#[test]
fn grants_that_nobody_dated_count_as_due_once() {
    if !is_installed() {
        return;
    }
    // Written by whoever works no dates out.
    let pair = Pair::open("undated");
    pair.one.put_all((0..300).map(|number| grant(number, Some(now() + HOUR))));
    pair.one.put_all([grant(900, Some(now() - HOUR)), grant(901, None)]);
    let hold = pair.one.hold_now(901).expect("nobody has it");
    let open = vec![Change::PutIntent(intent(901, now() - HOUR))];
    pair.one.runtime.block_on(pair.one.store.commit_last(vec![hold], open)).expect("it is stored");
    let some = pair.one.claim_due(9);
    assert_eq!(some.len(), 9, "all of them count");
    let put_off = numbers(&some);
    for (_, hold) in some {
        pair.one.put_off(hold, now() + HOUR);
    }
    assert!(pair.one.claim_due(9).iter().all(|(stored, _)| !put_off.contains(&stored.value.id)));

    // Whoever works dates out gets what is really due, the open intent's grant among it, and dates the others.
    pair.other.store.date_by(Arc::new(dates));
    let mut due = Vec::new();
    eventually("all of them are dated", || {
        due.extend(pair.other.claim_due(9));
        (pair.cluster.on_primary("SELECT count(*) FROM undated.work WHERE NOT dated") == "0").then_some(())
    });
    due.extend(pair.other.claim_due(9));
    assert_eq!(numbers(&due).into_iter().collect::<BTreeSet<_>>(), [id(900), id(901)].into());
    assert_eq!(due.len(), 2, "each once");
    let dated = (0..300).find(|number| !put_off.contains(&id(*number))).expect("one of the others");
    assert_eq!(column(&pair, "undated", dated, "organizations || ' ' || every_ms"), "1 60000");

    // An older worker makes that unknown again.
    let at = "SELECT count(*) FROM undated.work WHERE NOT dated AND due IS NULL";
    pair.cluster.on_primary(
        "SELECT undated.commit_1('\\x01', 0::smallint, 1, false, 0, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', \
            ARRAY[name], ARRAY[lane], ARRAY[state], '{NULL}', '{NULL}', ARRAY[person], '{}', '{}', '{}') \
         FROM undated.work, undated.enlist_1('\\x01', 1, false) WHERE organizations = 1 LIMIT 1",
    );
    assert_eq!(pair.cluster.on_primary(at), "1");
}

#[test]
fn a_grant_in_doubt_is_dated_by_its_intent_or_not_at_all() {
    if !is_installed() {
        return;
    }
    let pair = pair("doubts");
    let (early, late) = (now() - HOUR, now() + HOUR);
    pair.one.put_all([grant(1, Some(late)), grant(2, Some(late))]);
    let doubtful = |number| Grant { state: State::InDoubt(DoubtReason::NoAnswer), ..grant(number, Some(late)) };
    // Its intent was written under this very claim.
    let hold = pair.one.hold_now(1).expect("nobody has it");
    let commit = |hold: &Hold, changes| pair.one.runtime.block_on(pair.one.store.commit_held(&[hold], changes));
    commit(&hold, vec![Change::PutIntent(intent(1, late))]).unwrap();
    commit(&hold, vec![put(doubtful(1))]).unwrap();
    assert_eq!(column(&pair, "doubts", 1, "dated"), "t");
    drop(hold);
    // Nobody here knows whether there is one.
    let hold = pair.one.hold_now(2).expect("nobody has it");
    commit(&hold, vec![put(doubtful(2))]).unwrap();
    assert_eq!(column(&pair, "doubts", 2, "dated"), "f");
    drop(hold);
    let intent = vec![Change::PutIntent(intent(2, early))];
    let hold = eventually("it is given up", || pair.other.hold_now(2).ok());
    pair.other.runtime.block_on(pair.other.store.commit_last(vec![hold], intent)).unwrap();
    let due = eventually("its intent is looked at", || pair.one.claim_due(9).pop());
    assert_eq!(due.0.value.id, id(2));
}

#[test]
fn what_cannot_be_read_keeps_nobody_from_what_is_due_after_it() {
    if !is_installed() {
        return;
    }
    let pair = pair("unreadable");
    pair.one.put_all([grant(1, Some(now() - 2 * HOUR)), grant(2, Some(now() - HOUR))]);
    let name = column(&pair, "unreadable", 1, "name");
    pair.cluster.on_primary(&format!("UPDATE unreadable.records SET sealed = '\\x00' WHERE name = '{name}'"));
    assert!(pair.one.claim_due(1).is_empty());
    assert_eq!(numbers(&pair.one.claim_due(1)), [id(2)]);
    assert_eq!(column(&pair, "unreadable", 1, "holder IS NULL AND due > now() + interval '50 minutes'"), "t");
}

#[test]
fn fetches_are_noted_and_an_outage_s_end_brings_its_grants_forward() {
    if !is_installed() {
        return;
    }
    let pair = pair("noted");
    let at = Timestamp::from_millis(now().as_seconds() * 1000);
    let failing = |number, reason| Grant { state: State::Failing(reason), ..grant(number, Some(now() + HOUR)) };
    pair.one.put_all([
        Grant { last_fetched_at: Some(at), ..grant(1, None) },
        failing(2, FailingReason::ProviderUnavailable),
        failing(3, FailingReason::ClientRefused),
        failing(4, FailingReason::Refused),
        Grant { paused: true, ..failing(5, FailingReason::ProviderUnavailable) },
    ]);
    let fetched = [(id(1), at - HOUR), (id(2), at), (id(99), at)];
    pair.one.runtime.block_on(pair.one.store.fetched(&fetched)).expect("they are noted");
    let read = pair.other.runtime.block_on(pair.other.store.grants(&[id(2), id(99), id(1), id(4)])).expect("an answer");
    let last: Vec<_> = read.iter().map(|read| read.as_ref().map(|read| read.value.last_fetched_at)).collect();
    assert_eq!(
        last,
        [Some(Some(at)), None, Some(Some(at)), Some(None)],
        "the later one; and who is not there is not there"
    );

    assert!(pair.one.claim_due(9).is_empty());
    for _ in 0..2 {
        pair.one
            .runtime
            .block_on(pair.one.store.bring_forward(&provider(), Duration::from_millis(1)))
            .expect("an answer");
    }
    let mut due = Vec::new();
    eventually("they are due", || {
        due.extend(pair.other.claim_due(9));
        (due.len() >= 2).then_some(())
    });
    assert_eq!(numbers(&due).into_iter().collect::<BTreeSet<_>>(), [id(2), id(3)].into());
    let of_two = due.iter().find(|(stored, _)| stored.value.id == id(2)).expect("it is due");
    assert_eq!(of_two.0.value.last_fetched_at, Some(at));
}

#[test]
fn a_vault_of_older_workers_is_taken_as_it_is_and_nothing_in_it_is_dated() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let sql = |text: &str| cluster.on_primary(&text.replace("{schema}", "older"));
    sql("CREATE SCHEMA {schema} AUTHORIZATION keeper");
    for migration in [
        include_str!("../../../src/vault/postgres/schema_1.sql"),
        include_str!("../../../src/vault/postgres/schema_2.sql"),
        include_str!("../../../src/vault/postgres/schema_3.sql"),
    ] {
        sql(&format!("SET ROLE keeper; {migration}"));
    }
    sql(
        "SET ROLE keeper; CREATE TABLE {schema}.migrations (one boolean PRIMARY KEY CHECK (one), version int NOT NULL); \
         INSERT INTO {schema}.migrations VALUES (true, 3); \
         INSERT INTO {schema}.work (name, lane, state) \
            SELECT decode('01' || lpad(to_hex(i), 32, '0'), 'hex'), decode(repeat('05', 16), 'hex'), 1 \
            FROM generate_series(1, 300) AS i",
    );
    let worker = Worker::open(&cluster.url(), "older");
    assert_eq!(sql("SELECT version FROM {schema}.migrations"), "5");
    let claim = |most| {
        let claimed = worker.postgres.claim_due([5; 16], 10, most, Duration::from_mins(1), UNSEEN);
        worker.runtime.block_on(claimed).expect("an answer")
    };
    assert_eq!(claim(0).len(), 0, "nothing is known to be due");
    let claimed = claim(250);
    assert!(claimed.len() == 250 && claimed.iter().all(|due| !due.is_dated && due.at.is_none()));
    assert_eq!(claim(250).len(), 50);
}
