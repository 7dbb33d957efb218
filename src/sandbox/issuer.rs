use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom as _, SystemRandom};

use super::{
    config::SandboxConfig,
    fault::Fault,
    record::{Entry, RECORD_CAPACITY},
    rules::{Approval, Denied, Granted, Request, Rules, Standing},
};
use crate::{
    clock::SharedClock,
    model::{ClientCredentials, Secret, Timestamp, Usage},
};

/// The issuer itself: a cheap handle on the rules, for use without HTTP and for asking what really happened.
///
/// Every call is one step of a state machine and waits for nothing but its mutex. Steps that depend on time are told
/// it; only [`new_consent`](Self::new_consent) asks the clock.
#[derive(Clone, Debug)]
pub struct Issuer {
    rules: Arc<Mutex<Rules>>,
    clock: SharedClock,
}

impl Issuer {
    /// An issuer with the system's randomness; it fails only where that does.
    pub fn new(config: &SandboxConfig, clock: SharedClock) -> std::io::Result<Self> {
        let name = config.public_url.as_ref().map_or_else(|| format!("http://{}", config.listen), ToString::to_string);
        Self::named(config, clock, name.trim_end_matches('/'))
    }

    /// An issuer of which every token and every struck fault follows from `seed`, for simulations that replay.
    pub fn seeded(config: &SandboxConfig, clock: SharedClock, seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut key = [0; 32];
        chance.fill(&mut key);
        let name = format!("http://{}", config.listen);
        Self { rules: Arc::new(Mutex::new(Rules::new(config.clone(), name, &key, chance))), clock }
    }

    pub(super) fn named(config: &SandboxConfig, clock: SharedClock, name: &str) -> std::io::Result<Self> {
        let (mut key, mut seed) = ([0; 32], [0; 8]);
        let random = SystemRandom::new();
        random
            .fill(&mut key)
            .and_then(|()| random.fill(&mut seed))
            .map_err(|_| std::io::Error::other("the operating system gave no random bytes"))?;
        let chance = fastrand::Rng::with_seed(u64::from_ne_bytes(seed));
        let rules = Rules::new(config.clone(), name.to_owned(), &key, chance);
        Ok(Self { rules: Arc::new(Mutex::new(rules)), clock })
    }

    /// Gives a consent without a browser, now; the organizations are added to those that the user owns, and any consent
    /// of the user reaches all of them. Returns the refresh token.
    pub fn new_consent(&self, user: &str, usage: Usage, organizations: &[&str]) -> Secret {
        self.new_consent_at(self.clock.now().wall, user, usage, organizations)
    }

    /// [`new_consent`](Self::new_consent), given at another time.
    pub fn new_consent_at(&self, at: Timestamp, user: &str, usage: Usage, organizations: &[&str]) -> Secret {
        self.rules().new_consent(at, user, usage, organizations)
    }

    /// Makes an API key of an organization; it may have several.
    pub fn new_api_key(&self, organization: &str) -> Secret {
        self.rules().new_api_key(organization)
    }

    /// Gives the authorization code that a person's approval is worth.
    pub fn new_code(&self, now: Timestamp, approval: Approval) -> Secret {
        self.rules().new_code(now, approval)
    }

    /// `grant_type=refresh_token` (RFC 6749 section 6).
    pub fn exchange_refresh(
        &self,
        now: Timestamp,
        client: &ClientCredentials,
        token: &Secret,
    ) -> Result<Granted, Denied> {
        self.exchange(now, client, &Request::Refresh(token), None)
    }

    /// Dinero's `grant_type=password` with an API key.
    pub fn exchange_password(
        &self,
        now: Timestamp,
        client: &ClientCredentials,
        api_key: &Secret,
    ) -> Result<Granted, Denied> {
        self.exchange(now, client, &Request::ApiKey(api_key), None)
    }

    /// `grant_type=authorization_code` (RFC 6749 section 4.1.3, RFC 7636 section 4.5).
    pub fn exchange_code(
        &self,
        now: Timestamp,
        client: &ClientCredentials,
        code: &Secret,
        redirect_uri: &str,
        verifier: Option<&str>,
    ) -> Result<Granted, Denied> {
        self.exchange(now, client, &Request::Code { code, redirect_uri, verifier }, None)
    }

    /// Any exchange, with the fault that strikes it on its way back, for the record. Whoever plays the network asks
    /// [`next_fault`](Self::next_fault) first, and calls [`not_processed`](Self::not_processed) instead where the
    /// fault does not [process](Fault::processes).
    pub fn exchange(
        &self,
        now: Timestamp,
        client: &ClientCredentials,
        request: &Request<'_>,
        fault: Option<&Fault>,
    ) -> Result<Granted, Denied> {
        self.rules().exchange(now, client, request, fault)
    }

    /// Notes an exchange that a fault kept from the issuer.
    pub fn not_processed(&self, now: Timestamp, client: &str, request: Option<&Request<'_>>, fault: &Fault) {
        self.rules().not_processed(now, client, request, fault);
    }

    pub(super) fn reject(&self, now: Timestamp, client: &str, denied: Denied) {
        self.rules().reject(now, client, denied);
    }

    /// Revokes a refresh token and its authorization (RFC 7009); a token that is not known is no error there.
    pub fn revoke(&self, now: Timestamp, client: &ClientCredentials, token: &Secret) -> Result<(), Denied> {
        self.rules().revoke(now, client, token)
    }

    /// A user withdraws every consent; false where nobody has that name.
    pub fn withdraw(&self, now: Timestamp, user: &str) -> bool {
        self.rules().withdraw(now, user)
    }

    /// Deletes every API key of an organization; returns how many.
    pub fn delete_api_keys(&self, now: Timestamp, organization: &str) -> usize {
        self.rules().delete_api_keys(now, organization)
    }

    /// Replaces the client's secrets, as its owner would in the portal.
    pub fn set_client_secrets(&self, secrets: Vec<Secret>) {
        self.rules().set_client_secrets(secrets);
    }

    /// Adds a fault; of several that concern an exchange, the one added first strikes.
    pub fn set_fault(&self, fault: Fault) {
        self.rules().set_fault(fault);
    }

    /// Ends every fault.
    pub fn clear_faults(&self) {
        self.rules().clear_faults();
    }

    /// The faults that can still strike.
    pub fn faults(&self) -> Vec<Fault> {
        self.rules().faults()
    }

    /// The fault that strikes this exchange (`None`: a request that makes no sense); it counts as struck.
    pub fn next_fault(&self, request: Option<&Request<'_>>) -> Option<Fault> {
        self.rules().next_fault(request)
    }

    pub(super) fn next_fault_elsewhere(&self) -> Option<Fault> {
        self.rules().next_fault_elsewhere()
    }

    /// What happened, the oldest first: the last [`RECORD_CAPACITY`] entries.
    pub fn record(&self) -> Vec<Entry> {
        self.last_entries(RECORD_CAPACITY)
    }

    /// The last `limit` entries, the oldest first.
    pub fn last_entries(&self, limit: usize) -> Vec<Entry> {
        self.rules().record(limit)
    }

    /// How many entries the record has lost to newer ones.
    pub fn record_dropped(&self) -> u64 {
        self.rules().record_dropped()
    }

    /// How many calls of the token endpoints have reached the rules, however they ended.
    pub fn exchanges(&self) -> u64 {
        self.rules().exchanges()
    }

    /// How often a spent one-time token was presented outside its grace: in a worker that is right, never.
    pub fn replays(&self) -> u64 {
        self.rules().replays()
    }

    /// Whether a refresh token could be exchanged, a spent one within its grace included.
    pub fn is_alive(&self, now: Timestamp, token: &Secret) -> bool {
        matches!(self.standing(now, token), Standing::Live | Standing::InGrace)
    }

    /// How a refresh token would fare if it were exchanged; asking changes nothing.
    pub fn standing(&self, now: Timestamp, token: &Secret) -> Standing {
        self.rules().standing(now, token.expose())
    }

    /// Whether an API key would be accepted.
    pub fn key_is_alive(&self, api_key: &Secret) -> bool {
        self.rules().key_lives(api_key.expose())
    }

    /// The organizations that an access token reaches; `None` where it is dead or none of ours.
    pub fn reach(&self, now: Timestamp, access_token: &Secret) -> Option<Vec<Arc<str>>> {
        self.rules().reach(now, access_token.expose())
    }

    pub(super) fn people(&self, limit: usize) -> Vec<(Arc<str>, Vec<Arc<str>>)> {
        self.rules().people(limit)
    }

    pub(super) fn knows_user(&self, user: &str) -> bool {
        self.rules().knows_user(user)
    }

    pub(super) fn terms(&self) -> SandboxConfig {
        self.rules().terms().clone()
    }

    /// A panic elsewhere leaves the rules between two steps at worst: they go on.
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
