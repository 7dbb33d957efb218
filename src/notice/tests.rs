//! Deliveries out of a real outbox, on a clock that is moved by hand, to receivers that answer over a real socket. Signatures
//! are verified by the integration tests, with the specification's own library.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

use super::*;
use crate::{
    clock::{Clock as _, ManualClock},
    config::{VaultConfig, WebhookConfig},
    model::{Event, EventId, EventKind, Timestamp},
    tests::AtOnce as _,
    vault::{Duty, Identity, Vault},
};

const SECRET: &str = "whsec_aHVzaC1zaWduaW5nLXNlY3JldC1udW1iZXItb25l";
/// How often a test looks whether what it waits for is so, five milliseconds apart, before it gives up.
const PATIENCE: usize = 12_000;

/// Somebody who is posted to: remembers what came, and answers as it is told.
#[derive(Clone)]
struct Hook {
    server: Arc<MockServer>,
    answers: Answers,
}

#[derive(Clone)]
struct Answers {
    answer: Arc<Mutex<ResponseTemplate>>,
    got: Arc<Mutex<Vec<Post>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Post {
    id: String,
    seconds: String,
    signature: String,
    body: Vec<u8>,
}

impl Respond for Answers {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let header = |name: &str| {
            let value = request.headers.get(name).unwrap_or_else(|| panic!("{name} is missing"));
            value.to_str().expect("text").to_owned()
        };
        let (id, seconds, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
        self.got.lock().expect("whole").push(Post { id, seconds, signature, body: request.body.clone() });
        self.answer.lock().expect("whole").clone()
    }
}

impl Hook {
    async fn start() -> Self {
        let server = Arc::new(MockServer::start().await);
        let answer = Arc::new(Mutex::new(ResponseTemplate::new(204)));
        let answers = Answers { answer, got: Arc::default() };
        Mock::given(any()).respond_with(answers.clone()).mount(&server).await;
        Self { server, answers }
    }

    fn answers(&self, answer: ResponseTemplate) {
        *self.answers.answer.lock().expect("whole") = answer;
    }

    fn got(&self) -> Vec<Post> {
        self.answers.got.lock().expect("whole").clone()
    }

    fn ids(&self) -> Vec<String> {
        self.got().into_iter().map(|post| post.id).collect()
    }
}

struct World {
    notice: Notice,
    outbox: Outbox,
    vault: Vault,
    clock: Arc<ManualClock>,
    metrics: Metrics,
    folder: tempfile::TempDir,
}

impl World {
    fn to(hooks: &[&Hook]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = VaultConfig {
            path: folder.path().join("vault"),
            identity_file: folder.path().join("identity.txt"),
            recipients: vec![],
            cache_bytes: 8 << 20,
            backup_dir: None,
            backup_keep: 14,
            postgres: None,
        };
        let identity = Identity::create(&config.identity_file).expect("made");
        Vault::create(&config, &identity).expect("made");
        let metrics = Metrics::new(&[]);
        let vault = Vault::open(&config, &identity, metrics.clone()).expect("opens");
        let clock = ManualClock::at(Timestamp::from_millis(1_800_000_000_000));
        let outbox = Outbox::open(&vault, clock.clone(), metrics.clone()).at_once();
        let duty = Duty::always();
        let parts = Parts { outbox: outbox.clone(), clock: clock.clone(), metrics: metrics.clone(), duty };
        fs::write(folder.path().join("webhook.key"), SECRET).expect("written");
        let notice = Notice::start(receivers(&folder, hooks, &clock), parts);
        Self { notice, outbox, vault, clock, metrics, folder }
    }

    /// Something happens to that organization; gives the event's id.
    async fn happens(&self, organization: &str, number: u8) -> String {
        let id = EventId::from_bytes([number; 16]);
        let mut event = Event::new(id, self.clock.now().wall, EventKind::ConsentExpired);
        event.organization = Some(organization.parse().expect("valid"));
        event.provider = Some("test".parse().expect("valid"));
        self.outbox.post(vec![event]).await.expect("stored");
        id.to_string()
    }

    /// Moves the clocks, and wakes whoever sleeps until then.
    fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.outbox.changed().notify_waiters();
    }

    /// Waits for something while time stands still; what sleeps is woken again and again.
    async fn until(&self, what: impl Fn() -> bool) {
        for _ in 0..PATIENCE {
            if what() {
                return;
            }
            self.outbox.changed().notify_waiters();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came to that");
    }

    /// How long until the next delivery.
    fn due_in(&self) -> Option<Duration> {
        self.outbox.next_due(Whose::Everybodys).map(|next| next.since(self.clock.now().wall))
    }

    fn given_up(&self) -> u64 {
        let text = self.metrics.render();
        let line =
            text.lines().find(|line| line.starts_with("consentry_webhook_deliveries_total{result=\"given_up\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("it is always there")
    }
}

fn receivers(folder: &tempfile::TempDir, hooks: &[&Hook], clock: &Arc<ManualClock>) -> Receivers {
    let config = |hook: &&Hook| WebhookConfig {
        url: hook.server.uri().parse().expect("a URL"),
        secret_file: folder.path().join("webhook.key"),
        events: vec!["*".into()],
    };
    let clock: SharedClock = clock.clone();
    Receivers::open(&hooks.iter().map(config).collect::<Vec<_>>(), &clock).expect("usable")
}

#[tokio::test]
async fn a_delivery_is_tried_ten_times_over_days_with_fresh_signatures_and_then_given_up() {
    let hook = Hook::start().await;
    hook.answers(ResponseTemplate::new(500));
    let world = World::to(&[&hook]);
    let id = world.happens("org-a", 1).await;
    for attempt in 1..=10 {
        world.until(|| hook.got().len() == attempt).await;
        if attempt < 10 {
            // Until the failure is noted, the delivery is lent out for a while that is no such wait.
            let (least, most) = (schedule::WAITS[attempt - 1], schedule::WAITS[attempt - 1].mul_f64(1.2));
            world.until(|| world.due_in().is_some_and(|wait| least <= wait && wait <= most)).await;
            world.advance(most);
        }
    }
    world.until(|| world.outbox.pending() == 0).await;
    assert_eq!(world.given_up(), 1);

    let got = hook.got();
    assert!(got.iter().all(|post| post.id == id && post.body == got[0].body), "the same event in the same bytes");
    let moments: Vec<i64> = got.iter().map(|post| post.seconds.parse().expect("whole seconds")).collect();
    assert!(moments.is_sorted() && moments[9] - moments[0] > 3 * 24 * 3600, "{moments:?}");
    assert!(got.windows(2).all(|two| two[0].signature != two[1].signature), "each moment is signed anew");
    world.advance(Duration::from_hours(1000));
    assert_eq!(hook.got().len(), 10);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_sent_nothing_more_until_it_is_configured_anew() {
    let hook = Hook::start().await;
    hook.answers(ResponseTemplate::new(410));
    let world = World::to(&[&hook]);
    let first = world.happens("org-a", 1).await;
    world.until(|| world.given_up() == 1).await;
    hook.answers(ResponseTemplate::new(200));
    world.happens("org-b", 2).await;
    world.until(|| world.given_up() == 2).await;
    assert_eq!((hook.ids(), world.outbox.pending()), (vec![first], 0));

    world.notice.replace(receivers(&world.folder, &[&hook], &world.clock)).await;
    let third = world.happens("org-c", 3).await;
    world.until(|| hook.ids().contains(&third)).await;
    world.until(|| world.outbox.pending() == 0).await;
    assert_eq!(hook.got().len(), 2);
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_nobody_but_itself() {
    let (slow, quick) = (Hook::start().await, Hook::start().await);
    slow.answers(ResponseTemplate::new(200).set_delay(Duration::from_mins(10)));
    let world = World::to(&[&slow, &quick]);
    for number in 0..20 {
        world.happens(&format!("org-{number}"), number).await;
    }
    world.until(|| quick.got().len() == 20).await;
    world.until(|| world.outbox.pending() == 20).await;
    assert!(slow.got().len() <= 4, "a few at once and no more");
}

#[tokio::test]
async fn the_events_of_one_organization_arrive_in_their_order() {
    let hook = Hook::start().await;
    hook.answers(ResponseTemplate::new(200).set_delay(Duration::from_millis(20)));
    let world = World::to(&[&hook]);
    let mut expected = Vec::new();
    for number in 0..8 {
        expected.push(world.happens("org-a", number).await);
        world.advance(Duration::from_secs(1));
    }
    world.until(|| world.outbox.pending() == 0).await;
    assert_eq!(hook.ids(), expected);
}

#[tokio::test]
async fn a_receiver_that_asks_for_peace_gets_it_for_everything_that_waits() {
    let hook = Hook::start().await;
    hook.answers(ResponseTemplate::new(429).insert_header("retry-after", "1800"));
    let world = World::to(&[&hook]);
    world.happens("org-a", 1).await;
    world.until(|| world.due_in() == Some(Duration::from_mins(30))).await;
    hook.answers(ResponseTemplate::new(200));
    world.happens("org-b", 2).await;
    world.advance(Duration::from_mins(29));
    // Whatever would be sent now was sent before the next event is stored and taken in.
    world.happens("org-c", 3).await;
    assert_eq!(hook.got().len(), 1, "it is not half an hour yet");

    world.advance(Duration::from_mins(2));
    world.until(|| world.outbox.pending() == 0).await;
    assert_eq!(hook.got().len(), 4);
}

#[tokio::test]
async fn an_alarm_of_the_vault_needs_no_vault_and_what_it_cannot_note_is_not_sent_twice() {
    let hook = Hook::start().await;
    hook.answers(ResponseTemplate::new(200).set_delay(Duration::from_millis(300)));
    let world = World::to(&[&hook]);
    world.happens("org-a", 1).await;
    world.until(|| hook.got().len() == 1).await;
    let vault = world.vault.clone();
    tokio::task::spawn_blocking(move || vault.poison_for_test()).await.expect("poisoned");
    world.outbox.vault_failing("no space left on device");
    world.until(|| world.outbox.pending() == 0).await;
    let got = hook.got();
    let alarm: serde_json::Value = serde_json::from_slice(&got[1].body).expect("JSON");
    assert_eq!(
        (&alarm["type"], &alarm["data"]["reason"]),
        (&"vault.failing".into(), &"no space left on device".into())
    );
    world.advance(Duration::from_hours(1));
    world.notice.stop().await;
    assert_eq!(hook.got().len(), 2);
}

#[tokio::test]
async fn what_waits_survives_the_exchange_of_receivers() {
    let (stays, comes) = (Hook::start().await, Hook::start().await);
    stays.answers(ResponseTemplate::new(503).insert_header("retry-after", "60"));
    let world = World::to(&[&stays]);
    world.happens("org-a", 1).await;
    world.until(|| world.due_in() == Some(Duration::from_mins(1))).await;
    let second = world.happens("org-b", 2).await;
    stays.answers(ResponseTemplate::new(200));

    world.notice.replace(receivers(&world.folder, &[&stays, &comes], &world.clock)).await;
    world.until(|| stays.ids().contains(&second)).await;
    let third = world.happens("org-c", 3).await;
    world.until(|| comes.ids() == [third.as_str()] && stays.ids().contains(&third)).await;
    world.advance(Duration::from_mins(2));
    world.until(|| world.outbox.pending() == 0).await;
    assert_eq!(stays.got().len(), 4, "the first twice");
}
