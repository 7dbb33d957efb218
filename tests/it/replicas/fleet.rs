//! The workers, and the issuer that judges them.

use std::time::Duration;

use consentry::model::Usage;
use serde_json::{Value, json};

use super::door::Door;
use crate::harness::{
    sandbox::Stand,
    worker::{Setup, Worker},
};

/// The provider's name.
pub(super) const PROVIDER: &str = "one-time";
/// How long a claim lasts: short, so that a worker can be stopped for longer.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// How long an access token lives.
const TOKEN_SECONDS: u64 = 5;
/// How long the request of an exchange may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How many commits each worker makes at once.
const POOL: usize = 4;
/// How long an exchange takes at the issuer, in the middle of which it is noted.
const EXCHANGE: Duration = Duration::from_millis(60);

/// Workers that share a vault.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) workers: Vec<Worker>,
    /// Each worker's door to the issuer.
    pub(super) doors: Vec<Door>,
    pub(super) organizations: Vec<String>,
}

impl Fleet {
    /// A worker for each URL, all on one schema; and organizations, each with a user and a one-time token of its own, enrolled at one
    /// worker after the other.
    pub(super) fn start(stand: &Stand, urls: &[String], schema: &str, organizations: usize) -> Self {
        Self::start_with(stand, urls, schema, organizations, 0)
    }

    /// As [`start`](Self::start), with workers that keep so many grants in memory at most; 0: all.
    pub(super) fn start_with(
        stand: &Stand,
        urls: &[String],
        schema: &str,
        organizations: usize,
        resident: usize,
    ) -> Self {
        let mut workers: Vec<Worker> = Vec::new();
        let doors: Vec<Door> = urls.iter().map(|_| Door::to(stand.addr())).collect();
        for (url, door) in urls.iter().zip(&doors) {
            let setup = setup(stand, door, url, schema, resident);
            let setup = match workers.first() {
                Some(first) => setup.identity_of(first),
                None => setup,
            };
            workers.push(setup.start());
        }
        let organizations = (0..organizations).map(|number| format!("org-{number}")).collect();
        let fleet = Self { workers, doors, organizations };
        for (number, organization) in fleet.organizations.iter().enumerate() {
            let worker = &fleet.workers[number % fleet.workers.len()];
            let answer = worker.enrol(organization, &consent(stand, organization));
            assert_eq!(answer.status, 201, "{answer:?}");
        }
        fleet
    }
}

/// An issuer whose tokens live for seconds, and whose refresh tokens can be used once, without a grace.
pub(super) fn issuer() -> Stand {
    issuer_of(TOKEN_SECONDS)
}

/// One whose tokens live for so many seconds.
pub(super) fn issuer_of(token_seconds: u64) -> Stand {
    Stand::start_with(token_seconds, |config| {
        config.latency = EXCHANGE;
        config.grace = Duration::ZERO;
        config.usage = Usage::OneTime;
    })
}

/// The body with which a new consent of the organization's one user is enrolled.
pub(super) fn consent(stand: &Stand, organization: &str) -> Value {
    let token = stand.consent(organization, Usage::OneTime, &[organization]);
    json!({ "provider": PROVIDER, "refresh_token": token })
}

fn setup(stand: &Stand, door: &Door, url: &str, schema: &str, resident: usize) -> Setup {
    let (issuer, (id, secret), token_url) = (stand.url(), stand.client(), door.token_url());
    let provider = format!(
        "kind = \"visma-connect\"\nissuer = \"{issuer}\"\nclient_id = \"{id}\"\n\
         token_url = \"{token_url}\"\norganizations_url = \"{issuer}/v1/organizations\"\nmax_per_minute = 6000\nusage = \"one-time\"\n\
         in_doubt = \"hold\""
    );
    let database = format!(
        "url = \"{url}\"\nschema = \"{schema}\"\npool_size = {POOL}\nlease = \"{}s\"\npoll = \"100ms\"\nresident = {resident}",
        LEASE.as_secs()
    );
    // Warnings are given by the sweep, and lists are read meanwhile.
    let sweep = if resident > 0 { "sweep = \"* * * * * *\"" } else { "" };
    Setup::default()
        .schedule(sweep)
        .log("level = \"info\"")
        .refresh(&format!("timeout = \"{}s\"", TIMEOUT.as_secs()))
        .provider(PROVIDER, secret, &provider)
        .database(&database)
}
