use super::*;
use crate::{
    clock::{Clock as _, ManualClock},
    config::VaultConfig,
    model::OpenDelivery,
    tests::AtOnce as _,
    vault::Identity,
};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const HOOK: ReceiverId = ReceiverId(1);
const OTHER: ReceiverId = ReceiverId(2);

struct Bench {
    outbox: Outbox,
    vault: Vault,
    clock: Arc<ManualClock>,
    folder: tempfile::TempDir,
}

fn config(folder: &tempfile::TempDir) -> (VaultConfig, std::path::PathBuf) {
    let identity_file = folder.path().join("identity.txt");
    let config = VaultConfig {
        path: folder.path().join("vault"),
        identity_file: identity_file.clone(),
        recipients: vec![],
        cache_bytes: 8 << 20,
        backup_dir: None,
        backup_keep: 14,
        postgres: None,
    };
    (config, identity_file)
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, file) = config(&folder);
        Vault::create(&config, &Identity::create(&file).unwrap()).unwrap();
        Self::open(folder, ManualClock::at(NOW))
    }

    fn open(folder: tempfile::TempDir, clock: Arc<ManualClock>) -> Self {
        let (config, file) = config(&folder);
        let vault = Vault::open(&config, &Identity::read(&file).unwrap(), Metrics::new(&[])).unwrap();
        let outbox = Outbox::open(&vault, clock.clone(), Metrics::new(&[])).at_once();
        Self { outbox, vault, clock, folder }
    }

    /// As after a process that died.
    fn reopened(self) -> Self {
        let Self { outbox, vault, clock, folder } = self;
        drop(outbox);
        drop(vault);
        Self::open(folder, clock)
    }

    fn event(&self, number: u64, kind: EventKind) -> Event {
        let id = self.outbox.id(kind, &[&number.to_le_bytes()]);
        Event { reason: Some(number.to_string().into()), ..Event::new(id, self.clock.now().wall, kind) }
    }

    async fn told(&self, numbers: std::ops::Range<u64>) -> Vec<Event> {
        let events: Vec<Event> = numbers.map(|number| self.event(number, EventKind::ConsentLost)).collect();
        self.outbox.post(events.clone()).await.unwrap();
        events
    }
}

fn hook(id: ReceiverId, events: &[&str]) -> Receiver {
    Receiver { id, name: "hook".into(), events: events.iter().map(|event| (*event).to_owned()).collect() }
}

fn same(found: &[Arc<Event>], expected: &[Event]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(found, expected)| **found == *expected)
}

#[tokio::test]
async fn what_was_told_is_there_after_a_restart_and_whoever_comes_back_gets_what_it_missed() {
    let bench = Bench::new();
    let events = bench.told(0..3).await;
    let bench = bench.reopened();
    assert!(same(&bench.outbox.after(None), &events));
    assert!(same(&bench.outbox.after(Some(&events[0].id)), &events[1..]));
    let later = bench.told(3..5).await;
    assert!(same(&bench.outbox.after(Some(&events[2].id)), &later), "numbers go on after a restart");
    assert!(same(&bench.outbox.after(Some(&EventId::from_bytes([9; 16]))), &[events, later].concat()));
}

#[tokio::test]
async fn the_same_happening_is_told_once_and_has_the_same_id_for_the_vaults_whole_life() {
    let bench = Bench::new();
    let events = bench.told(0..2).await;
    bench.told(0..2).await;
    let bench = bench.reopened();
    assert_eq!(bench.event(1, EventKind::ConsentLost).id, events[1].id);
    assert_ne!(bench.event(1, EventKind::ConsentInDoubt).id, events[1].id);
    bench.told(0..2).await;
    assert!(same(&bench.outbox.after(None), &events));
}

#[tokio::test]
async fn events_are_seen_in_the_order_of_their_numbers_whichever_commit_ends_first() {
    let bench = Bench::new();
    let [one, two, three] = [1, 2, 3].map(|number| bench.event(number, EventKind::ConsentLost));
    let (first, _) = bench.outbox.prepare(vec![one.clone()]);
    let (second, _) = bench.outbox.prepare(vec![two.clone()]);
    let (third, _) = bench.outbox.prepare(vec![three.clone()]);
    second.written();
    assert!(bench.outbox.after(None).is_empty(), "whoever resumed after it would miss the first");
    first.written();
    assert!(same(&bench.outbox.after(None), &[one.clone(), two.clone()]));
    // One whose commit failed holds nobody up, and can be told again.
    let (fourth, _) = bench.outbox.prepare(vec![bench.event(4, EventKind::ConsentLost)]);
    fourth.written();
    drop(third);
    assert_eq!(bench.outbox.after(Some(&two.id)).len(), 1);
    bench.outbox.post(vec![three.clone()]).await.unwrap();
    assert_eq!(bench.outbox.after(None).last().map(|event| event.id), Some(three.id));
}

#[tokio::test]
async fn a_follower_gets_what_was_and_what_comes_without_a_gap_and_is_told_when_it_is_too_slow() {
    let bench = Bench::new();
    let events = bench.told(0..3).await;
    let mut follower = bench.outbox.follow(Some(&events[0].id));
    let mut slow = bench.outbox.follow(None);
    let more = bench.told(3..5).await;
    bench.outbox.live(async || vec![bench.event(9, EventKind::TokenRefreshed)]).await;
    for expected in events[1..].iter().chain(&more) {
        assert_eq!(*follower.next().await.unwrap(), *expected);
    }
    assert_eq!(follower.next().await.unwrap().kind, EventKind::TokenRefreshed);
    assert!(bench.outbox.after(None).iter().all(|event| event.kind != EventKind::TokenRefreshed));
    let many = u64::try_from(MAX_BEHIND).unwrap() + 10;
    bench.told(10..10 + many).await;
    let mut seen = 0;
    while slow.next().await.is_ok() {
        seen += 1;
    }
    assert!(seen < many, "it has missed some, and knows");
}

#[tokio::test]
async fn each_receiver_gets_what_it_wants_until_it_has_taken_it() {
    let bench = Bench::new();
    bench.outbox.set_receivers(vec![hook(HOOK, &["consent.*"]), hook(OTHER, &["provider.failing"])]);
    let events = bench.told(0..2).await;
    bench.outbox.post(vec![bench.event(7, EventKind::ProviderFailing)]).await.unwrap();
    assert_eq!(bench.outbox.pending(), 3);
    let due = bench.outbox.due(NOW, 10, Whose::Everybodys);
    let to = |due: &[Delivery]| due.iter().map(|due| (due.receiver, due.attempts)).collect::<Vec<_>>();
    assert_eq!(to(&due), [(HOOK, 0), (HOOK, 0), (OTHER, 0)]);
    assert!(bench.outbox.due(NOW, 10, Whose::Everybodys).is_empty(), "each is handed out once");
    bench.outbox.delivered(&events[0].id, HOOK).await;
    let later = NOW + Duration::from_hours(1);
    bench.outbox.put_off(&events[1].id, HOOK, later).await;
    assert_eq!(bench.outbox.pending(), 2);

    let bench = bench.reopened();
    bench.outbox.set_receivers(vec![hook(HOOK, &["consent.*"]), hook(OTHER, &["provider.failing"])]);
    assert_eq!(bench.outbox.pending(), 2, "what was not taken is still to be delivered");
    assert_eq!(to(&bench.outbox.due(NOW, 10, Whose::Everybodys)), [(OTHER, 0)]);
    let due = bench.outbox.due(later, 10, Whose::Everybodys);
    // The other one was handed out before, and nobody has said what became of it.
    assert_eq!((to(&due), due[1].event.id, due[1].first_at), (vec![(OTHER, 0), (HOOK, 1)], events[1].id, NOW));
    bench.outbox.give_up(&events[1].id, HOOK).await;
    bench.outbox.set_receivers(vec![hook(HOOK, &["*"])]);
    assert_eq!(
        (bench.outbox.pending(), bench.outbox.next_due(Whose::Everybodys)),
        (0, None),
        "the other is not configured any more"
    );
    let bench = bench.reopened();
    assert_eq!(bench.outbox.pending(), 1, "it may be again when the worker starts anew");
}

#[tokio::test]
async fn an_alarm_about_the_vault_needs_no_vault() {
    let bench = Bench::new();
    bench.outbox.set_receivers(vec![hook(HOOK, &["vault.*"])]);
    bench.vault.clone().close().unwrap();
    bench.outbox.vault_failing("the disk is full");
    bench.outbox.vault_failing("the disk is full");
    let due = bench.outbox.due(NOW, 10, Whose::Own);
    assert_eq!(due.len(), 1, "one alarm, that no other worker knows of");
    assert_eq!(
        (due[0].event.kind, due[0].event.reason.as_deref()),
        (EventKind::VaultFailing, Some("the disk is full"))
    );
    bench.outbox.delivered(&due[0].event.id, HOOK).await;
    assert_eq!(bench.outbox.pending(), 0);
    bench.outbox.post(vec![bench.event(1, EventKind::ConsentLost)]).await.unwrap_err();
    assert_eq!(bench.outbox.after(None).len(), 1, "what is not durable is not told");
}

#[tokio::test]
async fn old_events_go_and_the_newest_and_the_last_digest_stay() {
    let bench = Bench::new();
    bench.outbox.post(vec![bench.event(1, EventKind::ConsentsDigest)]).await.unwrap();
    bench.told(0..10).await;
    bench.clock.advance(TOLD_KEPT + Duration::from_secs(1));
    bench.outbox.prune().await;
    let bench = bench.reopened();
    let kinds: Vec<EventKind> = bench.outbox.after(None).iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::ConsentsDigest, EventKind::ConsentLost]);
    assert_eq!(bench.outbox.last(EventKind::ConsentsDigest).map(|event| event.kind), Some(EventKind::ConsentsDigest));
    assert_eq!(bench.vault.stats().records, 2);
}

fn plain(number: u64) -> Event {
    Event::new(EventId::from_bytes(u128::from(number).to_be_bytes()), NOW, EventKind::ConsentLost)
}

fn reserve_and_show(rows: &mut Rows, numbers: std::ops::Range<u64>) -> (usize, u64) {
    let (mut forgotten, mut given_up) = (0, 0);
    for number in numbers {
        let reserved = rows.reserve(vec![plain(number)], NOW, true);
        forgotten += reserved.forgotten.len();
        given_up += reserved.given_up;
        rows.settle(reserved.number.unwrap(), true);
    }
    (forgotten, given_up)
}

#[test]
fn no_more_is_kept_than_fits() {
    let most = u64::try_from(MAX_TOLD).unwrap();
    let mut rows = Rows::of(Vec::new());
    let (forgotten, _) = reserve_and_show(&mut rows, 0..most + 100);
    assert!((90..=100).contains(&forgotten), "{forgotten}");
    assert!(rows.after(None).len() <= MAX_TOLD + 1);
    assert_eq!(rows.newest(), Some(plain(most + 99).id));
}

#[test]
fn no_more_deliveries_wait_than_may_and_the_oldest_are_given_up() {
    let most = u64::try_from(MAX_OPEN).unwrap();
    let mut rows = Rows::of(Vec::new());
    rows.set_receivers(vec![hook(HOOK, &["*"])]);
    let (_, given_up) = reserve_and_show(&mut rows, 0..most + 10);
    assert_eq!(given_up, 9, "each is shown after room was made for it");
    assert_eq!(rows.pending(), most + 1);
    assert_eq!(rows.due(NOW, 1, Whose::Everybodys)[0].event.id, plain(9).id);
}

#[test]
fn two_stored_rows_never_share_a_number() {
    let row = |id: u64, number: u64| OutboxRow {
        number,
        event: Arc::new(plain(id)),
        deliveries: vec![OpenDelivery { receiver: HOOK, attempts: 3, first_at: NOW, next_at: NOW }],
    };
    let rows = Rows::of(vec![row(1, 5), row(2, 5), row(3, 4)]);
    let ids: Vec<EventId> = rows.after(None).iter().map(|event| event.id).collect();
    assert_eq!((ids.len(), rows.pending(), rows.newest()), (3, 3, ids.last().copied()));
}

#[tokio::test]
async fn what_another_worker_has_forgotten_is_forgotten_here_too() {
    let bench = Bench::new();
    bench.outbox.set_receivers(vec![hook(HOOK, &["*"])]);
    let told = bench.told(1..4).await;
    assert_eq!(bench.outbox.pending(), 3);
    bench.outbox.forgotten(&told[1].id);
    bench.outbox.forgotten(&told[1].id);
    assert!(same(&bench.outbox.after(None), &[told[0].clone(), told[2].clone()]));
    assert_eq!((bench.outbox.pending(), bench.outbox.is_open(&told[1].id, HOOK)), (2, false));
}

#[tokio::test]
async fn what_another_worker_told_and_delivered_is_heard_of_once() {
    let (here, there) = (Bench::new(), Bench::new());
    for bench in [&here, &there] {
        bench.outbox.set_receivers(vec![hook(HOOK, &["consent.*"]), hook(OTHER, &["consent.*"])]);
    }
    let row = |bench: &Bench, id: &EventId| {
        let rows = bench.outbox.rows();
        rows.number(id).and_then(|number| rows.stored(number)).expect("it is there")
    };
    let mut follower = here.outbox.follow(None);
    let own = here.told(0..1).await;
    let told = there.told(1..3).await;
    let ids = told.iter().map(|event| event.id).collect::<Vec<_>>();
    here.outbox.heard(ids.iter().map(|id| row(&there, id)).collect());
    here.outbox.heard(vec![row(&there, &ids[0]), row(&here, &own[0].id)]);
    assert!(same(&here.outbox.after(Some(&own[0].id)), &told), "after what was there, and once");
    for expected in own.iter().chain(&told) {
        assert_eq!(*follower.next().await.expect("it keeps up"), *expected);
    }
    assert_eq!(here.outbox.pending(), 6);
    let whose = |whose| (here.outbox.next_due(whose), here.outbox.due(NOW, 10, whose).len());
    assert_eq!(whose(Whose::Own), (None, 0), "another may be the one that delivers them");

    // What is handed out here, or over, stays so whatever is heard late.
    let before = row(&there, &ids[0]);
    assert_eq!(here.outbox.due(NOW, 10, Whose::Everybodys).len(), 6);
    here.outbox.delivered(&ids[0], OTHER).await;
    here.outbox.heard(vec![before]);
    assert_eq!((here.outbox.pending(), here.outbox.due(NOW, 10, Whose::Everybodys).len()), (5, 0));

    // The other worker delivers.
    there.outbox.delivered(&ids[0], HOOK).await;
    there.outbox.put_off(&ids[1], HOOK, NOW + Duration::from_hours(1)).await;
    here.outbox.heard(ids.iter().map(|id| row(&there, id)).collect());
    assert!(!here.outbox.is_open(&ids[0], HOOK) && here.outbox.is_open(&ids[1], HOOK));
    let due = here.outbox.due(NOW + Duration::from_hours(1), 10, Whose::Everybodys);
    let put_off = due.iter().find(|due| due.event.id == ids[1] && due.receiver == HOOK).expect("still open");
    assert_eq!(put_off.attempts, 1, "they count together");
}
