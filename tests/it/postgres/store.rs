//! The vault over PostgreSQL: what several processes that share one see of each other, and what the database sees of them.

use std::{collections::BTreeMap, path::Path, sync::Arc, thread, time::Duration};

use consentry::{
    clock::SystemClock,
    metrics::Metrics,
    model::{
        AccessToken, Consent, Credential, Fingerprint, Grant, GrantId, Intent, Organization, OrganizationId, Secret,
        State, Timestamp, Usage,
    },
    vault::{
        Change, Expectation, Identity, Stored, Stray, VaultError,
        postgres::{Feed, Gone, Item, Settings, Store},
    },
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    BRIEF,
    bouncer::Bouncer,
    cluster::{Cluster, is_installed},
    settings,
};
use crate::harness::eventually;

/// How long a test waits for a claim that it expects to get.
const PATIENCE: Duration = Duration::from_secs(20);

/// One process's vault, and what its tasks run on.
pub(super) struct Replica {
    pub(super) store: Store,
    pub(super) runtime: Runtime,
}

impl Replica {
    pub(super) fn open(settings: &Settings, identity: &Identity) -> Result<Self, VaultError> {
        let runtime = Runtime::new().expect("a runtime");
        let (clock, metrics) = (Arc::new(SystemClock::new()), Metrics::new(&[]));
        let store = runtime.block_on(Store::open(settings, identity, &[], clock, metrics))?;
        Ok(Self { store, runtime })
    }

    pub(super) fn commit(&self, changes: Vec<Change>) -> Result<u64, VaultError> {
        self.runtime.block_on(self.store.commit(changes))
    }

    /// Changes a grant as a keeper does: holds it, reads it, and commits under the hold.
    fn change(&self, id: u8, change: impl FnOnce(&mut Grant)) -> Result<u64, VaultError> {
        self.runtime.block_on(async {
            let hold = self.store.hold(grant_id(id), PATIENCE).await?;
            let mut grant = self.store.grant(grant_id(id)).await?.expect("it is there").value;
            change(&mut grant);
            self.store.commit_last(vec![hold], vec![put(grant)]).await
        })
    }

    fn grant(&self, id: u8) -> Option<Stored<Grant>> {
        self.runtime.block_on(self.store.grant(grant_id(id))).expect("the database answers")
    }

    fn organization(&self, id: &str) -> Option<Stored<Organization>> {
        self.runtime.block_on(self.store.organization(&organization_id(id))).expect("the database answers")
    }

    fn poll(&self, feed: &mut Feed) -> Vec<Item> {
        let mut items = Vec::new();
        loop {
            let polled = self.runtime.block_on(feed.poll()).expect("news");
            items.extend(polled.items);
            if polled.is_all {
                return items;
            }
        }
    }
}

/// Two replicas of one vault, the second through a pooler.
pub(super) struct Pair {
    pub(super) one: Replica,
    pub(super) other: Replica,
    pub(super) identity: Identity,
    pub(super) cluster: Arc<Cluster>,
    _bouncer: Bouncer,
    _folder: TempDir,
}

impl Pair {
    pub(super) fn open(schema: &str) -> Self {
        let (cluster, folder) = (Cluster::shared(), tempfile::tempdir().expect("a folder"));
        let (bouncer, identity) = (Bouncer::start(&cluster), identity(folder.path()));
        let one = Replica::open(&settings(&cluster.url(), schema), &identity).expect("it opens");
        let other = Replica::open(&settings(&bouncer.url(), schema), &identity).expect("it opens");
        Self { one, other, identity, cluster, _bouncer: bouncer, _folder: folder }
    }
}

fn identity(folder: &Path) -> Identity {
    Identity::create(&folder.join("identity.txt")).expect("an identity")
}

fn grant_id(id: u8) -> GrantId {
    GrantId::from_bytes([id; 16])
}

fn organization_id(id: &str) -> OrganizationId {
    id.parse().expect("an organization's id")
}

pub(super) fn grant(id: u8) -> Grant {
    let at = Timestamp::from_millis(1_800_000_000_000);
    Grant {
        id: grant_id(id),
        provider: "plain-provider".parse().expect("a name"),
        credential: Credential::RefreshToken(Secret::new("plain-refresh-token")),
        fingerprint: Fingerprint([id; 16]),
        spent: Vec::new(),
        client: None,
        access: Some(AccessToken {
            token: Secret::new("plain-access-token"),
            token_type: "Bearer".to_owned(),
            scope: None,
            issued_at: at,
            expires_at: at,
            issued_boot: None,
        }),
        state: State::Active,
        since: at,
        paused: false,
        subject: Some("plain-subject".to_owned()),
        consent: Some(Consent {
            granted_at: at,
            expires_at: Some(at),
            assumed: false,
            expected: Usage::OneTime,
            shown: None,
            grace: Duration::ZERO,
            warned: Vec::new(),
        }),
        refreshed_at: None,
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: vec![organization_id("plain-organization")],
        epoch: 1,
    }
}

pub(super) fn put(grant: Grant) -> Change {
    Change::PutGrant(Box::new(grant))
}

fn organization(id: &str, of: u8) -> Organization {
    let labels = BTreeMap::from([("plain-key".to_owned(), "plain-value".to_owned())]);
    let (id, added_at) = (organization_id(id), Timestamp::from_millis(1_800_000_000_000));
    Organization { id, grant: grant_id(of), labels, added_at }
}

fn put_organization(id: &str, of: u8) -> Change {
    Change::PutOrganization(Box::new(organization(id, of)))
}

fn intent(id: u8) -> Change {
    Change::PutIntent(Intent {
        grant: grant_id(id),
        fingerprint: Fingerprint([id; 16]),
        attempt: 1,
        first_at: Timestamp::from_millis(1_800_000_000_000),
        first_boot: Duration::from_secs(5),
        boot_id: 7,
    })
}

#[test]
fn what_one_replica_commits_the_others_read_and_the_database_cannot() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("shared");
    let (one, other) = (&pair.one, &pair.other);
    let number = one.commit(vec![put(grant(1)), put_organization("plain-organization", 1), intent(1)]).unwrap();
    let read = other.grant(1).expect("it is there");
    assert_eq!((read.sequence, read.value.credential.secret().expose()), (number, "plain-refresh-token"));
    let stored = other.organization("plain-organization").expect("it is there");
    assert_eq!((stored.value, stored.sequence), (organization("plain-organization", 1), number));
    let (with, open) = other.runtime.block_on(other.store.grant_and_intent(grant_id(1))).unwrap();
    assert_eq!((with.map(|stored| stored.sequence), open.map(|intent| intent.attempt)), (Some(number), Some(1)));

    let later = other.change(1, |grant| grant.paused = true).unwrap();
    assert!(later > number && one.grant(1).unwrap().value.paused);
    let stray = Stray {
        grant: grant_id(9),
        at: Timestamp::from_millis(0),
        why: "plain-reason".to_owned(),
        refresh_token: Some(Secret::new("plain-stray")),
        access_token: Secret::new("plain-stray"),
    };
    one.commit(vec![Change::PutStray(Box::new(stray))]).unwrap();
    assert_eq!(one.store.fingerprint(&Secret::new("x")), other.store.fingerprint(&Secret::new("x")));

    let tables =
        pair.cluster.on_primary("SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = 'shared'");
    assert!(tables.contains("records") && tables.contains("vault") && tables.contains("fingerprints"), "{tables}");
    for table in tables.split(' ') {
        // As text, and with every bytea as the characters that it may hold.
        let dump = pair.cluster.on_primary(&format!("SELECT t::text FROM shared.{table} AS t"));
        let clear = dump.contains("plain") || dump.contains(&super::hex(b"plain")) || dump.contains("AGE-SECRET");
        assert!(!clear, "{table}: {dump}");
    }
    let [records, grants] =
        ["records", "work"].map(|table| pair.cluster.on_primary(&format!("SELECT count(*) FROM shared.{table}")));
    assert_eq!((records.as_str(), grants.as_str()), ("5", "1"), "with what the vault keeps about itself");
}

#[test]
fn a_grant_is_changed_by_who_holds_it_and_by_nobody_else() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("held");
    let (one, other) = (&pair.one, &pair.other);
    one.commit(vec![put(grant(1)), put(grant(2))]).unwrap();
    let hold = one.runtime.block_on(one.store.hold(grant_id(1), PATIENCE)).unwrap();
    let refused = other.runtime.block_on(other.store.hold(grant_id(1), Duration::from_millis(200)));
    assert!(matches!(refused, Err(VaultError::Held)), "{refused:?}");
    // Within the process it is shared; and it stays held while it is committed under.
    let same = one.runtime.block_on(one.store.hold(grant_id(1), PATIENCE)).unwrap();
    one.runtime.block_on(one.store.commit_held(&[&hold], vec![intent(1)])).unwrap();
    drop(hold);
    let refused = other.runtime.block_on(other.store.hold(grant_id(1), Duration::ZERO));
    assert!(matches!(refused, Err(VaultError::Held)), "{refused:?}");
    one.runtime.block_on(one.store.commit_last(vec![same], vec![Change::DeleteIntent(grant_id(1))])).unwrap();
    let hold = other.runtime.block_on(other.store.hold(grant_id(1), Duration::ZERO)).expect("it was given up");
    assert_eq!(other.runtime.block_on(other.store.intent(grant_id(1))).unwrap(), None);
    drop(hold);
    one.runtime.block_on(one.store.hold(grant_id(1), PATIENCE)).expect("dropping gives up, too");

    // Without a hold a grant can be made, and nothing else.
    assert!(matches!(one.commit(vec![put(grant(1))]), Err(VaultError::Conflict)));
    assert!(matches!(one.commit(vec![Change::DeleteGrant(grant_id(1))]), Err(VaultError::Engine { .. })));
    assert!(other.grant(1).is_some());
    // Two at once, and both go.
    let both = [1, 2].map(|id| one.runtime.block_on(one.store.hold(grant_id(id), PATIENCE)).unwrap());
    let gone = vec![Change::DeleteGrant(grant_id(1)), Change::DeleteGrant(grant_id(2))];
    one.runtime.block_on(one.store.commit_held(&both.each_ref(), gone)).unwrap();
    assert!(other.grant(1).is_none() && other.grant(2).is_none());
    let nothing = other.runtime.block_on(other.store.hold(grant_id(1), Duration::ZERO)).expect("nobody has it");
    assert!(!nothing.is_of_a_grant());
    let late = other.runtime.block_on(other.store.commit_held(&[&nothing], vec![put(grant(1))]));
    assert!(matches!(late, Err(VaultError::Fenced)), "{late:?}");
}

#[test]
fn who_lost_its_claim_commits_nothing_and_may_claim_again() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("fenced");
    let brief = Settings { lease: BRIEF, ..settings(&pair.cluster.url(), "fenced") };
    let slow = Replica::open(&brief, &pair.identity).expect("it opens");
    slow.commit(vec![put(grant(1))]).unwrap();
    let stale = slow.runtime.block_on(slow.store.hold(grant_id(1), PATIENCE)).unwrap();
    let number = pair.one.change(1, |grant| grant.failures = 7).expect("it ran out");
    let late = slow.runtime.block_on(slow.store.commit_held(&[&stale], vec![put(grant(1)), intent(1)]));
    assert!(matches!(late, Err(VaultError::Fenced)), "{late:?}");
    let (read, open) = slow.runtime.block_on(slow.store.grant_and_intent(grant_id(1))).unwrap();
    assert_eq!(read.map(|read| (read.sequence, read.value.failures)), Some((number, 7)));
    assert_eq!(open, None);
    slow.change(1, |grant| grant.failures += 1).expect("it can be claimed anew, also while the old hold is kept");
    drop(stale);
    assert_eq!(pair.other.grant(1).unwrap().value.failures, 8);
}

#[test]
fn replicas_hear_what_others_write_and_which_records_are_gone() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("heard");
    let (one, other) = (&pair.one, &pair.other);
    let (mut own, mut feed) = (one.store.news(), other.store.news());
    one.commit(vec![put(grant(1)), put_organization("a", 1), intent(1)]).unwrap();
    let items = other.poll(&mut feed);
    let has = |what: &dyn Fn(&Item) -> bool| items.iter().filter(|item| what(item)).count();
    assert_eq!(items.len(), 3, "{items:?}");
    assert_eq!(has(&|item| matches!(item, Item::Grant(stored) if stored.value.id == grant_id(1))), 1);
    assert_eq!(has(&|item| matches!(item, Item::Organization(stored) if stored.value.id.as_str() == "a")), 1);
    assert_eq!(has(&|item| matches!(item, Item::Intent(stored) if stored.value.grant == grant_id(1))), 1);
    assert!(one.poll(&mut own).is_empty(), "whoever wrote it is not told");
    assert!(other.poll(&mut feed).is_empty(), "and nobody twice");

    let hold = one.runtime.block_on(one.store.hold(grant_id(1), PATIENCE)).unwrap();
    let gone = vec![
        Change::DeleteGrant(grant_id(1)),
        Change::DeleteIntent(grant_id(1)),
        Change::DeleteAwaiting(grant_id(1)),
        Change::DeleteOrganization(organization_id("a")),
    ];
    one.runtime.block_on(one.store.commit_held(&[&hold], gone)).unwrap();
    let mut gone: Vec<_> = other
        .poll(&mut feed)
        .into_iter()
        .map(|item| match item {
            Item::Gone(gone, _) => format!("{gone:?}"),
            item => panic!("{item:?}"),
        })
        .collect();
    gone.sort();
    let mut expected = [Gone::Grant(grant_id(1)), Gone::Intent(grant_id(1)), Gone::Organization(organization_id("a"))]
        .map(|gone| format!("{gone:?}"));
    expected.sort();
    assert_eq!(gone, expected, "a consent that never waited is no news");
    // What is there before a replica opens is read and not told; what comes while it loads is.
    one.commit(vec![put_organization("b", 1)]).unwrap();
    let late = Replica::open(&settings(&pair.cluster.url(), "heard"), &pair.identity).expect("it opens");
    one.commit(vec![put_organization("c", 1)]).unwrap();
    let heard = late.poll(&mut late.store.news());
    assert!(heard.iter().any(|item| matches!(item, Item::Organization(stored) if stored.value.id.as_str() == "c")));
    assert!(late.store.news_age() < Duration::from_mins(1));
}

#[test]
fn replicas_that_start_at_once_have_one_set_of_keys() {
    if !is_installed() {
        return;
    }
    let (cluster, folder) = (Cluster::shared(), tempfile::tempdir().unwrap());
    let (identity, bouncer) = (identity(folder.path()), Bouncer::start(&cluster));
    let settings = [cluster.url(), bouncer.url(), cluster.url()].map(|url| settings(&url, "founded"));
    let replicas = thread::scope(|scope| {
        let opening = settings.each_ref().map(|settings| scope.spawn(|| Replica::open(settings, &identity)));
        opening.map(|opening| opening.join().expect("it opens").expect("it opens"))
    });
    for (id, replica) in (1..).zip(&replicas) {
        replica.commit(vec![put(grant(id))]).unwrap();
    }
    for replica in &replicas {
        assert!((1..=3).all(|id| replica.grant(id).is_some()));
    }

    // Who has another identity is told whose it takes.
    let stranger = Identity::create(&folder.path().join("stranger")).unwrap();
    let refused = Replica::open(&settings[0], &stranger).err().expect("it is refused").to_string();
    assert!(refused.contains(&identity.recipient()) && refused.contains(&stranger.recipient()), "{refused}");

    // A change of the keys by one reaches those that seal under the old ones.
    let [one, other, _] = &replicas;
    let (recipients, is_new) = one.runtime.block_on(one.store.add_recipient(&stranger.recipient())).unwrap();
    assert!(is_new && recipients.len() == 2);
    other.commit(vec![put(grant(4))]).expect("it reads the keys again");
    assert_eq!(other.store.recipients(), one.store.recipients());
    let welcome = Replica::open(&settings[0], &stranger).expect("it is let in");
    assert!(welcome.grant(4).is_some());
    let own = one.runtime.block_on(one.store.remove_recipient(&identity.recipient()));
    assert!(matches!(own, Err(VaultError::OwnRecipient { .. })), "{own:?}");
}

#[test]
fn what_a_change_was_based_on_must_still_hold() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("based");
    let (one, other) = (&pair.one, &pair.other);
    let expect = |sequence| Change::Expect(Expectation::Organization(organization_id("a"), sequence));
    let first = one.commit(vec![expect(None), put_organization("a", 1)]).unwrap();
    assert!(matches!(other.commit(vec![expect(None), put_organization("a", 2)]), Err(VaultError::Conflict)));
    let second = other.commit(vec![put_organization("a", 2), expect(Some(first))]).unwrap();
    let stale = one.commit(vec![put_organization("a", 3), put(grant(3)), expect(Some(first))]);
    assert!(matches!(stale, Err(VaultError::Conflict)), "{stale:?}");
    assert!(one.grant(3).is_none(), "all or nothing");
    // Whoever expects nothing writes over it, whatever number it has, as long as it goes up.
    for _ in 0..3 {
        one.commit(vec![put_organization("a", 4)]).unwrap();
        other.commit(vec![put_organization("a", 5)]).unwrap();
    }
    let read = one.organization("a").unwrap();
    assert!(read.sequence > second && read.value.grant == grant_id(5));
    // One that was deleted is not there, and can be made again.
    one.commit(vec![
        Change::DeleteOrganization(organization_id("a")),
        Change::DeleteOrganization(organization_id("z")),
    ])
    .unwrap();
    assert!(other.organization("a").is_none());
    assert!(other.commit(vec![expect(None), put_organization("a", 6)]).unwrap() > read.sequence);
}

#[test]
fn of_two_that_enrol_one_secret_at_once_one_meets_the_other() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("secrets");
    let secret = Fingerprint([77; 16]);
    let enrol = |replica: &Replica, id: u8| {
        let new = Grant { fingerprint: secret, ..grant(id) };
        replica.commit(vec![put(new), Change::Expect(Expectation::NewSecret(secret))])
    };
    let outcomes = thread::scope(|scope| {
        let one = scope.spawn(|| enrol(&pair.one, 1));
        let other = scope.spawn(|| enrol(&pair.other, 2));
        [one, other].map(|enrolling| enrolling.join().expect("it ends"))
    });
    let conflicts = outcomes.iter().filter(|outcome| matches!(outcome, Err(VaultError::Conflict))).count();
    assert_eq!((conflicts, outcomes.iter().filter(|outcome| outcome.is_ok()).count()), (1, 1), "{outcomes:?}");
    // A spent one is remembered as long as its grant is, and by the grave that takes its place.
    let id = if outcomes[0].is_ok() { 1 } else { 2 };
    pair.one
        .change(id, |grant| {
            grant.spent = vec![secret];
            grant.fingerprint = Fingerprint([78; 16]);
        })
        .unwrap();
    assert!(matches!(enrol(&pair.other, 3), Err(VaultError::Conflict)));
    let bury = |grave: Option<Grant>| {
        pair.one.runtime.block_on(async {
            let hold = pair.one.store.hold(grant_id(id), PATIENCE).await?;
            let changes = [Some(Change::DeleteGrant(grant_id(id))), grave.map(put)].into_iter().flatten().collect();
            pair.one.store.commit_held(&[&hold], changes).await
        })
    };
    bury(Some(Grant { fingerprint: secret, ..grant(9) })).unwrap();
    assert!(matches!(enrol(&pair.other, 3), Err(VaultError::Conflict)), "the grave remembers it");
    let grave = pair.one.runtime.block_on(pair.one.store.hold(grant_id(9), PATIENCE)).unwrap();
    pair.one.runtime.block_on(pair.one.store.commit_held(&[&grave], vec![Change::DeleteGrant(grant_id(9))])).unwrap();
    enrol(&pair.other, 3).expect("nobody remembers it any more");
}

#[test]
fn a_replica_that_ends_gives_up_what_it_holds_and_one_that_dies_leaves_it_to_run_out() {
    if !is_installed() {
        return;
    }
    let pair = Pair::open("ended");
    let brief = Settings { lease: Duration::from_millis(300), ..settings(&pair.cluster.url(), "ended") };
    pair.one.commit(vec![put(grant(1))]).unwrap();
    let dying = Replica::open(&brief, &pair.identity).expect("it opens");
    let hold = dying.runtime.block_on(dying.store.hold(grant_id(1), PATIENCE)).unwrap();
    std::mem::forget(hold);
    drop(dying);
    eventually("the claim runs out", || {
        pair.one.runtime.block_on(pair.one.store.hold(grant_id(1), Duration::ZERO)).ok().map(drop)
    });
    let ending = Replica::open(&settings(&pair.cluster.url(), "ended"), &pair.identity).expect("it opens");
    let hold = ending.runtime.block_on(ending.store.hold(grant_id(1), PATIENCE)).unwrap();
    drop(hold);
    ending.runtime.block_on(ending.store.close());
    pair.other.runtime.block_on(pair.other.store.hold(grant_id(1), Duration::ZERO)).expect("it was given up");
}

#[test]
fn how_a_provider_is_goes_sealed_to_all_who_share_the_vault() {
    if !is_installed() {
        return;
    }
    let Pair { one, other, cluster, .. } = &Pair::open("said");
    let [lane, elsewhere] =
        ["visma-connect", "dinero-personal"].map(|name| one.store.lane(&name.parse().expect("a name")));
    assert_eq!(other.store.lane(&"visma-connect".parse().expect("a name")), lane);
    let tell = |replica: &Replica, lane, expected, words: &[u8]| {
        replica.runtime.block_on(replica.store.tell(lane, expected, words)).expect("the database answers")
    };
    let told = |replica: &Replica| {
        let told = replica.runtime.block_on(replica.store.told()).expect("the database answers");
        told.into_iter().map(|told| (told.lane, told.version, told.words)).collect::<Vec<_>>()
    };
    assert_eq!((tell(one, lane, 0, b"frozen"), tell(other, lane, 0, b"well")), (Some(1), None));
    assert_eq!(told(other), [(lane, 1, b"frozen".to_vec())]);
    assert_eq!(tell(other, lane, 1, b"well again"), Some(2));
    assert_eq!(told(one), [(lane, 2, b"well again".to_vec())]);
    let clear = "SELECT count(*) FROM said.lanes WHERE position('well'::bytea IN sealed) > 0";
    assert_eq!(cluster.on_primary(clear), "0", "the database cannot read it");

    // Whoever can write there can make nobody believe what was said of another provider, or earlier.
    cluster.on_primary("UPDATE said.lanes SET version = 1");
    assert!(told(one).is_empty());
    let moved = format!("UPDATE said.lanes SET version = 2, lane = {}", super::bytea(&elsewhere));
    cluster.on_primary(&moved);
    assert!(told(one).is_empty());
}
