//! The demo's worker and issuer: set up as an operator would, from a configuration file.

use std::{net::SocketAddr, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc, time::Duration};

use tempfile::TempDir;

use crate::{
    cli::{Failure, again::again, print::toml_text, sandbox::providers},
    client::Client,
    clock::{SharedClock, SystemClock},
    config::{Config, Located},
    daemon::{self, Running},
    model::{OrganizationId, Secret, Usage},
    sandbox::{Issuer, Sandbox, SandboxConfig},
    vault::{Identity, Vault},
    wire,
};

/// Short, so that something happens while somebody looks.
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(8);
/// How long the consent that is about to end has been held, of 180 days.
const OLD_CONSENT: Duration = Duration::from_hours(175 * 24);

/// Everything that runs.
pub(super) struct Stage {
    folder: TempDir,
    sandbox: Sandbox,
    running: Running,
    client: Client,
    clock: SharedClock,
}

/// One organization's part.
pub(super) struct Act {
    pub(super) organization: &'static str,
    /// What kind of credential it has, in words.
    pub(super) kind: &'static str,
    provider: &'static str,
    credential: Credential,
    /// How long ago the consent was given.
    age: Duration,
}

#[derive(Clone, Copy)]
enum Credential {
    Consent(&'static str, Usage),
    ApiKey,
}

impl Stage {
    /// Starts the issuer and a worker that is configured for it.
    pub(super) async fn set() -> Result<Self, Failure> {
        let clock: SharedClock = Arc::new(SystemClock::new());
        let folder = tempfile::Builder::new()
            .prefix("consentry-demo-")
            .tempdir()
            .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
        let terms = SandboxConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            access_token_lifetime: TOKEN_LIFETIME,
            ..SandboxConfig::default()
        };
        let sandbox = Sandbox::start(terms.clone(), Arc::clone(&clock))
            .await
            .map_err(|error| Failure::failed(format!("the sandbox issuer cannot start: {error}")))?;
        let file = write_configuration(folder.path(), &sandbox, &terms)
            .map_err(|error| Failure::failed(format!("cannot write into {}: {error}", folder.path().display())))?;
        let config = Config::load(&Located { file })?;
        let failed = |error: crate::vault::VaultError| Failure::failed(error.to_string());
        let identity = Identity::create(&config.vault.identity_file).map_err(failed)?;
        Vault::create(&config.vault, &identity).map_err(failed)?;
        let client = Client::new(&config.socket.path);
        let running = daemon::start(config)
            .await
            .map_err(|error| Failure::failed(format!("the worker cannot start: {error}")))?;
        Ok(Self { folder, sandbox, running, client, clock })
    }

    /// The organizations, in the order in which they are enrolled.
    pub(super) const fn acts() -> [Act; 3] {
        [
            Act {
                organization: "bageriet",
                kind: "re-use",
                provider: "sandbox",
                credential: Credential::Consent("birgit", Usage::Reuse),
                age: OLD_CONSENT,
            },
            Act {
                organization: "cykelsmeden",
                kind: "one-time",
                provider: "sandbox",
                credential: Credential::Consent("anders", Usage::OneTime),
                age: Duration::ZERO,
            },
            Act {
                organization: "doegnkiosken",
                kind: "API key",
                provider: "sandbox-personal",
                credential: Credential::ApiKey,
                age: Duration::ZERO,
            },
        ]
    }

    /// Lets somebody give a credential at the issuer, and enrols it through the worker's socket.
    pub(super) async fn enrol(&self, act: &Act) -> Result<wire::Organization, Failure> {
        let cannot = |why: &dyn std::fmt::Display| Failure::failed(format!("{}: {why}", act.organization));
        let id: OrganizationId = act.organization.parse().map_err(|error| cannot(&error))?;
        let provider = act.provider.parse().map_err(|error| cannot(&error))?;
        let granted_at = self.clock.now().wall - act.age;
        let (refresh_token, api_key, usage): (Option<Secret>, Option<Secret>, _) = match act.credential {
            Credential::Consent(user, usage) => {
                let token = self.issuer().new_consent_at(granted_at, user, usage, &[act.organization]);
                (Some(token), None, Some(usage))
            }
            Credential::ApiKey => (None, Some(self.issuer().new_api_key(act.organization)), None),
        };
        let enrolment = wire::Enrolment {
            provider,
            granted_at: refresh_token.is_some().then_some(granted_at),
            refresh_token,
            api_key,
            client_id: None,
            client_secret: None,
            expires_at: None,
            usage,
            grace: None,
            labels: None,
            verify: None,
        };
        // On a busy machine the worker may listen before it can enrol.
        Ok(again(|| self.client.put(&id, &enrolment)).await?.organization)
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    pub(super) const fn issuer(&self) -> &Issuer {
        self.sandbox.issuer()
    }

    pub(super) fn clock(&self) -> SharedClock {
        Arc::clone(&self.clock)
    }

    pub(super) fn issuer_url(&self) -> String {
        self.sandbox.url().to_string()
    }

    pub(super) const fn http(&self) -> Option<SocketAddr> {
        self.running.http
    }

    /// Stops everything and leaves nothing behind.
    pub(super) async fn strike(self) {
        if let Err(error) = self.running.stop().await {
            tracing::warn!(%error, "the worker did not stop as it should");
        }
        self.sandbox.stop().await;
        drop(self.folder);
    }
}

/// Writes the worker's configuration and the two client secrets; returns the configuration's file.
fn write_configuration(folder: &Path, sandbox: &Sandbox, terms: &SandboxConfig) -> std::io::Result<std::path::PathBuf> {
    let text = |name: &str| toml_text(&folder.join(name).display().to_string());
    let (personal_id, personal_secret) = &terms.personal_client;
    let (secret, personal) = (folder.join("client.secret"), folder.join("personal.secret"));
    for (file, secret) in [(&secret, terms.client_secrets.first()), (&personal, Some(personal_secret))] {
        write_private(file, secret.map(Secret::expose).unwrap_or_default())?;
    }
    let url = sandbox.url();
    let providers = providers(
        url.as_str().trim_end_matches('/'),
        &terms.client_id,
        personal_id,
        (&secret.display().to_string(), &personal.display().to_string()),
    );
    let file = folder.join("consentry.toml");
    let configuration = format!(
        "[vault]\npath = {}\nidentity_file = {}\ncache = \"16MB\"\n\n\
         [socket]\npath = {}\nmode = \"0600\"\n\n[http]\nlisten = \"127.0.0.1:0\"\n\n{providers}\n",
        text("vault"),
        text("identity.txt"),
        text("consentry.sock"),
    );
    write_private(&file, &configuration)?;
    Ok(file)
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?.write_all(text.as_bytes())
}
