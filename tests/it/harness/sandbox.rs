//! The stand-in issuer in this process, on a runtime of its own, for tests that block.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use consentry::{
    clock::{SharedClock, SystemClock},
    model::{Secret, Timestamp, Usage},
    sandbox::{Fault, Issuer, Sandbox, SandboxConfig},
};
use tokio::runtime::{self, Runtime};

/// The name of the provider that takes consents at the sandbox.
pub(crate) const CONSENTS: &str = "consents";
/// The name of the provider that takes API keys at the sandbox.
pub(crate) const KEYS: &str = "api-keys";
/// The client secrets that the sandbox has unless a test says otherwise.
const CLIENT_SECRET: &str = "hush-consents-client-secret";
const PERSONAL_SECRET: &str = "hush-personal-client-secret";

/// The running sandbox; ends when dropped.
#[derive(Debug)]
pub(crate) struct Stand {
    sandbox: Sandbox,
    clock: SharedClock,
    config: SandboxConfig,
    /// Last, since the sandbox lives on it.
    _runtime: Runtime,
}

impl Stand {
    /// Starts it with access tokens that live for `access_token_seconds`.
    pub(crate) fn start(access_token_seconds: u64) -> Self {
        Self::start_with(access_token_seconds, |_| {})
    }

    /// As [`start`](Self::start), with settings of the test's own.
    pub(crate) fn start_with(access_token_seconds: u64, set: impl FnOnce(&mut SandboxConfig)) -> Self {
        Self::start_on(access_token_seconds, Arc::new(SystemClock::new()), set)
    }

    /// As [`start_with`](Self::start_with), on a clock of the test's own.
    pub(crate) fn start_on(
        access_token_seconds: u64,
        clock: SharedClock,
        set: impl FnOnce(&mut SandboxConfig),
    ) -> Self {
        let mut config = SandboxConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            access_token_lifetime: Duration::from_secs(access_token_seconds),
            client_secrets: vec![Secret::new(CLIENT_SECRET)],
            personal_client: ("personal_sandbox".to_owned(), Secret::new(PERSONAL_SECRET)),
            ..SandboxConfig::default()
        };
        set(&mut config);
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let sandbox = runtime
            .block_on(Sandbox::start(config.clone(), Arc::clone(&clock)))
            .expect("the sandbox listens on a free port");
        Self { sandbox, clock, config, _runtime: runtime }
    }

    /// The issuer behind it, which is judge of what really happened.
    pub(crate) fn issuer(&self) -> &Issuer {
        self.sandbox.issuer()
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.sandbox.addr()
    }

    /// How the worker reaches it, without a slash at the end.
    pub(crate) fn url(&self) -> String {
        self.sandbox.url().as_str().trim_end_matches('/').to_owned()
    }

    /// The client that takes consents: its id and its first secret.
    pub(crate) fn client(&self) -> (&str, &str) {
        (&self.config.client_id, self.config.client_secrets[0].expose())
    }

    /// The client that takes API keys: its id and its secret.
    pub(crate) fn personal_client(&self) -> (&str, &str) {
        (&self.config.personal_client.0, self.config.personal_client.1.expose())
    }

    /// Lets `user` consent; gives the refresh token, which reaches these organizations.
    pub(crate) fn consent(&self, user: &str, usage: Usage, organizations: &[&str]) -> String {
        self.issuer().new_consent(user, usage, organizations).expose().to_owned()
    }

    /// Makes an API key of the organization.
    pub(crate) fn api_key(&self, organization: &str) -> String {
        self.issuer().new_api_key(organization).expose().to_owned()
    }

    /// Whether the API would take this access token now.
    pub(crate) fn takes(&self, access_token: &str) -> bool {
        self.issuer().reach(self.now(), &Secret::new(access_token)).is_some()
    }

    /// Lets this go wrong from now on.
    pub(crate) fn fault(&self, fault: Fault) {
        self.issuer().set_fault(fault);
    }

    /// The sandbox's time.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now().wall
    }
}
