use std::{collections::BTreeMap, time::Duration};

use crate::model::{OrganizationId, ProviderName, Timestamp};

/// Every state that an organization is counted under.
pub const STATES: [&str; 5] = ["active", "failing", "in_doubt", "lost", "paused"];

/// What is to be counted over all grants at one moment.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Every configured provider, and every one that a stored grant names.
    pub providers: BTreeMap<ProviderName, ProviderCensus>,
    /// Consents inside the longest warning, or whose grant is not active; the soonest to end first; bounded.
    pub expiring: Vec<ExpiringSeries>,
    /// How many did not fit in `expiring`.
    pub expiring_dropped: u64,
}

/// One provider's counts.
#[derive(Debug, Clone, Default)]
pub struct ProviderCensus {
    /// Organizations by state, a paused one counted as `paused` and nowhere else: active, failing, `in_doubt`, lost, paused.
    pub states: BTreeMap<&'static str, u64>,
    /// For each configured warning, how many consents end within it; the expired are not counted.
    pub expiring_within: Vec<(Duration, u64)>,
    /// Consents past their end.
    pub expired: u64,
    /// Consents whose end was assumed.
    pub end_assumed: u64,
    /// Consents that an operator has to confirm.
    pub awaiting: u64,
    /// Access tokens past the moment they should have been refreshed.
    pub overdue: u64,
    /// Grants not lost, not paused, kept warm, whose access token has lapsed.
    pub access_expired: u64,
    /// Whether the provider is frozen.
    pub circuit_open: bool,
    /// Exchanges a minute that are allowed.
    pub budget_per_minute: u32,
    /// Exchanges a minute that its grants need to stay warm, rounded up.
    pub needed_per_minute: u32,
}

/// One organization whose consent wants attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiringSeries {
    /// Its provider.
    pub provider: ProviderName,
    /// The organization.
    pub organization: OrganizationId,
    /// When the consent ends.
    pub expires_at: Timestamp,
}
