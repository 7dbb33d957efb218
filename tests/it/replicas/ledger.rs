//! Every refresh token that was given whole to a living worker is accounted for.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use consentry::{
    clock::SystemClock,
    metrics::Metrics,
    model::Secret,
    vault::{
        Vault,
        postgres::{Settings, Store},
    },
};
use tokio::runtime::Runtime;

use super::{
    door::{Call, Stage},
    fleet::Fleet,
};
use crate::harness::{eventually, worker::Worker};

/// The vault, opened beside the workers.
pub(super) struct Ledger {
    vault: Vault,
    runtime: Runtime,
}

/// An answer that is kept and not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) refresh_token: String,
    pub(super) why: String,
}

impl Ledger {
    /// Opens the vault that this worker has.
    pub(super) fn of(worker: &Worker) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (config, identity) = worker.vault_config();
        let settings = Settings::of(config.postgres.as_ref().expect("it is in PostgreSQL")).expect("settings");
        let opening = Store::open(&settings, &identity, &[], Arc::new(SystemClock::new()), Metrics::new(&[]));
        let vault = Vault::from(runtime.block_on(opening).expect("the vault opens"));
        Self { vault, runtime }
    }

    /// Every stray.
    pub(super) fn strays(&self) -> Vec<Kept> {
        let strays = Mutex::new(Vec::new());
        let mut note = |stored: consentry::vault::Stored<consentry::vault::Stray>| {
            let stray = stored.value;
            let token = stray.refresh_token.as_ref().map_or("", Secret::expose).to_owned();
            strays.lock().expect("whole").push(Kept { refresh_token: token, why: stray.why.clone() });
            Ok(())
        };
        self.runtime.block_on(self.vault.for_each_stray(&mut note)).expect("they can be read");
        strays.into_inner().expect("whole")
    }

    /// Waits until each refresh token that arrived at a worker until now has been sent since, or is known to the vault as a grant's, or is
    /// kept as a stray; gives how many arrived. All of the workers must live, since what one had when it was killed is gone.
    pub(super) fn accounts_for_all(&self, fleet: &Fleet) -> usize {
        let calls = || fleet.doors.iter().flat_map(super::door::Door::calls);
        let arrived: Vec<Call> = calls().filter(|call| call.stage == Stage::Arrived && call.given.is_some()).collect();
        eventually("every answer that arrived is kept", || {
            let sent: BTreeSet<String> = calls().map(|call| call.sent).collect();
            let strays: BTreeSet<String> = self.strays().into_iter().map(|kept| kept.refresh_token).collect();
            let mut open = arrived
                .iter()
                .filter_map(|call| call.given.as_ref())
                .filter(|given| !sent.contains(*given) && !strays.contains(*given) && !self.knows(given));
            open.next().is_none().then_some(())
        });
        arrived.len()
    }

    /// Whether a grant has or had that token.
    fn knows(&self, token: &str) -> bool {
        let fingerprint = self.vault.fingerprint(&Secret::new(token));
        self.runtime.block_on(self.vault.holder(fingerprint)).expect("the database answers").is_some()
    }
}
