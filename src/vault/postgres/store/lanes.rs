//! What the workers that share a vault share of its providers besides the records: turns, and how each provider is.

use super::{
    super::{BudgetId, LaneId, LaneState, Pace, PostgresError, Reserved},
    Store,
};
use crate::vault::{
    VaultError, cipher,
    name::{Kind, Name},
};

/// The longest that is read of how a provider is, sealed, in bytes.
const LONGEST: usize = 1024;

/// How a provider is, as a worker wrote it.
#[derive(Clone, Debug)]
pub struct Told {
    /// Which provider, as [`Store::lane`] says it.
    pub lane: LaneId,
    /// Goes up with each writing.
    pub version: u64,
    /// What was written, in the writer's format.
    pub words: Vec<u8>,
}

impl Store {
    /// Reserves turns of a budget that all workers share.
    pub async fn reserve(&self, budget: BudgetId, most: u32, pace: Pace) -> Result<Reserved, PostgresError> {
        self.0.postgres.reserve(budget, most, pace).await
    }

    /// How every provider is of which that was ever written. What does not open is left out, and said.
    pub async fn told(&self) -> Result<Vec<Told>, VaultError> {
        let mut told = Vec::new();
        for state in self.0.postgres.lane_states().await? {
            let (lane, version) = (state.lane, state.version);
            match self.open_state(state).await {
                Ok(words) => told.push(Told { lane, version, words }),
                Err(error) => tracing::error!(%error, "what another worker says of a provider cannot be read"),
            }
        }
        Ok(told)
    }

    /// Says how a provider is, to all workers, unless another has spoken since that version (0: nobody ever had): the new version, or
    /// `None` where one has.
    pub async fn tell(&self, lane: LaneId, expected: u64, words: &[u8]) -> Result<Option<u64>, VaultError> {
        // Before it is sealed: should the keys change now, the database says so.
        let keyring = self.0.keys_version();
        let sealed = self.0.cipher.seal(&name_of(lane)?, expected + 1, words)?;
        let told = self.0.postgres.put_lane_state(lane, expected, sealed, keyring).await;
        if told == Err(PostgresError::KeysChanged) {
            // Whoever has something to say says it again.
            self.0.read_keys_again().await?;
        }
        Ok(told?)
    }

    async fn open_state(&self, state: LaneState) -> Result<Vec<u8>, VaultError> {
        let LaneState { lane, version, sealed } = state;
        let what = "a provider's state";
        if sealed.len() > LONGEST {
            return Err(VaultError::TooLarge { what, bytes: sealed.len(), limit: LONGEST });
        }
        if cipher::key_number(&sealed).is_some_and(|number| !self.0.cipher.has(number)) {
            self.0.read_keys_again().await?;
        }
        let opened = self.0.cipher.open(&name_of(lane)?, sealed)?;
        if opened.sequence != version {
            let detail = "its version is not that of its seal".to_owned();
            return Err(VaultError::Damaged { what, detail });
        }
        Ok(opened.plaintext.to_vec())
    }
}

/// What it is sealed for: no record has this name, since it is a hash of something else.
pub(super) fn name_of(lane: LaneId) -> Result<Name, VaultError> {
    let none = || VaultError::Engine { detail: "a lane of a name that is none".to_owned() };
    Name::parse(&[&[Kind::Meta.byte()], &lane[..]].concat()).ok_or_else(none)
}
