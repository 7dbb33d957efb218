//! The rules by table and by property, and the HTTP surface as a client meets it.

mod flow;
mod strikes;
mod table;

use std::time::Duration;

use super::{Issuer, SandboxConfig};
use crate::{
    clock::{Clock as _, ManualClock},
    model::{ClientCredentials, Secret, Timestamp},
};

const START: Timestamp = Timestamp::from_millis(1_750_000_000_000);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn client() -> ClientCredentials {
    ClientCredentials { id: "isv_sandbox".to_owned(), secret: Secret::new("sandbox-secret") }
}

fn personal() -> ClientCredentials {
    ClientCredentials { id: "personal_sandbox".to_owned(), secret: Secret::new("personal-secret") }
}

fn issuer(config: &SandboxConfig) -> Issuer {
    let clock = ManualClock::at(START);
    assert_eq!(clock.now().wall, START);
    Issuer::seeded(config, clock, 1)
}
