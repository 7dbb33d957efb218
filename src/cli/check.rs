mod database;

use std::{os::unix::fs::FileTypeExt, path::Path, sync::Arc};

use clap::Args;
use serde::Serialize;
use url::{Host, Url};

use super::{
    Exit, Failure, Global,
    print::{self, Out, Tone},
    status,
};
use crate::{
    client::{Client, ClientError},
    clock::{Clock, SharedClock, SystemClock},
    config::{Config, Kind, ResponseMode, redirect_uri},
    notice,
    provider::{Finding, Provider, Severity},
    vault::{Identity, Recipient, ScheduledBackups, Vault, VaultError, recipients_differ},
    wire::Status,
};

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 with nothing worse than warnings, 1 with an error, 78 with a bad configuration.")]
pub(super) struct CheckArgs {
    /// Also ask each provider's discovery and token endpoint, without any customer's credential, and each webhook's host,
    /// without any event
    #[arg(long)]
    online: bool,
}

/// `consentry check`
pub(super) async fn check(global: &Global, args: CheckArgs, out: &mut Out) -> Result<Exit, Failure> {
    let located = global.locate()?;
    let mut findings = Findings::default();
    let config = match Config::load(&located) {
        Ok(config) => config,
        Err(error) => {
            for line in error.to_string().lines() {
                findings.error(line, "");
            }
            findings.tell(global.json, out)?;
            return Ok(Exit::Configuration);
        }
    };
    findings.ok(format!("configuration {} is read", located.file.display()));
    for remark in config.remarks() {
        findings.warn(remark, "");
    }
    check_consent_pages(&config, &mut findings);
    check_identity(&config, &mut findings);
    let socket = global.socket.clone().unwrap_or_else(|| config.socket.path.clone());
    check_vault(&config, &global.client_of(socket), &mut findings).await;
    check_backups(&config, &mut findings);
    check_providers(&config, args.online, &mut findings).await;
    check_webhooks(&config, args.online, &mut findings).await;
    findings.tell(global.json, out)?;
    Ok(if findings.has_errors() { Exit::Failed } else { Exit::Done })
}

fn check_identity(config: &Config, findings: &mut Findings) {
    match Identity::read(&config.vault.identity_file) {
        Ok(identity) => {
            let file = config.vault.identity_file.display();
            findings.ok(format!("identity {file} opens what is encrypted to {}", identity.recipient()));
            if identity.permissions_too_open() {
                findings
                    .warn(format!("identity {file} can be read by others than its owner"), format!("chmod 600 {file}"));
            }
            if config.vault.recipients.is_empty() {
                findings.warn(
                    "no recovery key: if the identity is lost, so is the vault",
                    "add the age recipient of a key that is kept offline to vault.recipients, or keep a copy of the identity",
                );
            }
        }
        Err(error) => findings.error(error.to_string(), ""),
    }
}

/// Asks the worker that has the vault open; where none runs, looks at the files.
async fn check_vault(config: &Config, client: &Client, findings: &mut Findings) {
    match client.status().await {
        Ok(status) => {
            findings.ok(format!(
                "the worker at {} is up, version {}, with {} records in its vault",
                client.socket().display(),
                status.version,
                status.vault.records
            ));
            if status.version != env!("CARGO_PKG_VERSION") {
                findings.warn(
                    format!("the worker is version {} and this is {}", status.version, env!("CARGO_PKG_VERSION")),
                    "restart the worker after an upgrade",
                );
            }
            if let Some(problem) = &status.vault.rekey_problem {
                findings.warn(
                    format!("records are not sealed anew under data key {}: {problem}", status.vault.data_key),
                    "it is taken up again when the worker starts; the older keys are kept until then",
                );
            }
            if let Some(postgres) = &config.vault.postgres {
                database::check(config, postgres, false, findings).await;
            }
            // Only an admin is told.
            if let Ok(found) = client.recipients().await {
                let found = found.recipients.into_iter();
                let found: Vec<_> = found.map(|one| Recipient { key: one.recipient, own: one.own }).collect();
                check_recipients(config, &found, findings);
            }
            for provider in status.providers.iter().filter(|provider| status::is_short(provider)) {
                findings.warn(status::budget_warning(provider), "");
            }
            check_strays(&status, findings);
            for provider in status.providers.iter().filter(|provider| provider.circuit != "closed") {
                findings.warn(
                    format!(
                        "{}: its circuit is {}; no consent's state changes until it recovers",
                        provider.name, provider.circuit
                    ),
                    "look at the worker's log for the reason",
                );
            }
        }
        Err(ClientError::NotRunning { .. }) => {
            match &config.vault.postgres {
                Some(postgres) => database::check(config, postgres, true, findings).await,
                None => check_vault_at_rest(config, findings),
            }
            check_socket_place(client.socket(), findings);
        }
        Err(error) => findings.warn(format!("the worker was not asked: {error}"), ""),
    }
}

/// Answers that could not take their place hold a token that nothing else has.
fn check_strays(status: &Status, findings: &mut Findings) {
    if status.vault.strays == 0 {
        return;
    }
    let mut named: Vec<String> = status.strays.iter().map(status::stray_in_words).collect();
    let unnamed = status.vault.strays.saturating_sub(named.len() as u64);
    if unnamed > 0 {
        named.push(format!("{unnamed} more"));
    }
    findings.warn(
        format!("{} answers could not take their place and are not served: {}", status.vault.strays, named.join("; ")),
        "look at these organizations with `consentry org show`; each may need a new consent",
    );
}

fn check_vault_at_rest(config: &Config, findings: &mut Findings) {
    let path = config.vault.path.display();
    // Why it cannot be read has been told already.
    let Ok(identity) = Identity::read(&config.vault.identity_file) else { return };
    match Vault::inspect(&config.vault, &identity) {
        Ok(found) => {
            findings.ok(format!("the vault in {path} opens, and all of its {} records; no worker runs", found.records));
            if found.data_keys > 1 {
                findings
                    .warn("not all records are sealed under the new data key yet", "that goes on when the worker runs");
            }
            check_recipients(config, &found.recipients, findings);
        }
        Err(error @ VaultError::InUse { .. }) => findings.warn(
            format!("{error}, and no worker answers at the socket"),
            "it may still be starting; if it listens elsewhere, name its socket with --socket",
        ),
        Err(error) => findings.error(Failure::of_vault(&error, &config.vault.path).to_string(), ""),
    }
}

/// The configured recipients count when the vault is made; later changes are made by command.
fn check_recipients(config: &Config, found: &[Recipient], findings: &mut Findings) {
    for difference in recipients_differ(&config.vault.recipients, found) {
        findings.warn(difference.to_string(), difference.remedy());
    }
}

/// How old the newest scheduled backup is.
fn check_backups(config: &Config, findings: &mut Findings) {
    let Some(folder) = &config.vault.backup_dir else { return };
    let now = SystemClock::new().now().wall;
    match ScheduledBackups::new(folder.clone(), config.vault.backup_keep).newest(now) {
        Ok(Some(newest)) => {
            let age = print::span(now.since(newest).as_secs());
            findings.ok(format!("the newest backup in {} is {age} old", folder.display()));
        }
        Ok(None) if config.schedule.backup.is_empty() => {}
        Ok(None) => findings.warn(
            format!("there is no backup in {} yet", folder.display()),
            "the worker makes the first one when it starts; its log says what keeps it from that",
        ),
        Err(error) => findings.warn(format!("the backups cannot be looked at: {error}"), ""),
    }
}

/// Whether a worker could make its socket here: what is told when it starts, told before.
fn check_socket_place(socket: &Path, findings: &mut Findings) {
    let folder = match socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        findings.error(
            format!("the socket's folder {} is not there, so the worker could not start", folder.display()),
            "make it, owned by the worker's user; consentry init does",
        );
        return;
    }
    let Ok(found) = socket.symlink_metadata() else { return };
    if !found.file_type().is_socket() {
        findings.error(
            format!("{} is there and is not a socket, so the worker could not start", socket.display()),
            "remove it, or choose another path in [socket]",
        );
    }
}

async fn check_providers(config: &Config, online: bool, findings: &mut Findings) {
    let clock: SharedClock = Arc::new(SystemClock::new());
    for provider in config.providers.values() {
        let offline = Provider::offline_findings(provider);
        let told = offline.iter().any(|finding| finding.severity == Severity::Error);
        findings.add(&provider.name, offline);
        match Provider::new(provider.clone(), config.refresh.timeout, Arc::clone(&clock)) {
            Ok(endpoint) if online => findings.add(&provider.name, endpoint.findings().await),
            // What keeps it from being set up is as a rule among the findings already.
            Err(error) if !told => findings.error(error.to_string(), ""),
            _ => {}
        }
    }
}

/// Each webhook's signing secret; and online, whether its host answers. Nothing is posted: what a receiver is sent it acts upon.
async fn check_webhooks(config: &Config, online: bool, findings: &mut Findings) {
    for webhook in &config.webhooks {
        let name = notice::name(&webhook.url);
        let file = webhook.secret_file.display();
        match notice::check_secret_file(webhook) {
            Err(problem) => findings.error(
                format!("webhook {name}: secret_file {file}: {problem}"),
                "the worker does not start before this file can be used",
            ),
            Ok(mode) if mode.world => findings.warn(
                format!("webhook {name}: secret_file {file} is open to every user of the machine"),
                "chmod 0600 it, or set defaultMode: 0400 on a Kubernetes secret",
            ),
            Ok(mode) if mode.group => findings.warn(
                format!("webhook {name}: secret_file {file} is open to its group"),
                "chmod 0600 it, unless the worker reads it through that group (fsGroup)",
            ),
            Ok(_) => {}
        }
        if online {
            match notice::connect(&webhook.url).await {
                Ok(()) => findings.ok(format!("webhook {name}: its host answers; no event was sent to it")),
                Err(detail) => findings.error(
                    format!("webhook {name}: its host cannot be reached: {detail}"),
                    "events wait for it, and are given up after three days",
                ),
            }
        }
    }
}

/// The pages on which people give consent, and what has to be registered for them.
fn check_consent_pages(config: &Config, findings: &mut Findings) {
    let consents = || config.providers.values().filter(|provider| provider.kind != Kind::DineroPersonal);
    let Some(url) = &config.consent.public_url else {
        if consents().next().is_some() {
            findings.warn(
                "no consent pages: consents cannot be renewed with a link",
                "set consent.public_url and consent.listen",
            );
        }
        return;
    };
    match config.consent.listen {
        Some(listen) => findings.ok(format!("consent pages are served at {listen}, which the world reaches as {url}")),
        None => findings.warn(
            format!("links lead to {url}, and no pages are served here: consent.listen is not set"),
            "set consent.listen",
        ),
    }
    // A redirect URI on the operator's own machine works for nobody else, and the issuer's portal may refuse it.
    if is_on_this_machine(url) {
        findings.warn(
            format!("consent.public_url {url} is on this machine: customers cannot reach it"),
            "set it to the address at which the world reaches consent.listen",
        );
    }
    for provider in consents() {
        let registered = redirect_uri(url, &provider.name);
        findings.ok(format!("{}: the redirect URI to register at the issuer is {registered}", provider.name));
        if !provider.pkce {
            findings.warn(
                format!("{}: pkce is off, so that a code that leaks on its way can be used by others", provider.name),
                "switch it on here and at the issuer",
            );
        }
        if url.scheme() == "http" && provider.response_mode == Some(ResponseMode::FormPost) {
            findings.warn(
                format!(
                    "{}: browsers send no cookie along with a form that another site posts to {url}",
                    provider.name
                ),
                "leave response_mode out, or use an https public_url",
            );
        }
    }
}

fn is_on_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Ipv6(address)) => address.is_loopback() || address.is_unspecified(),
        None => false,
    }
}

#[derive(Debug, Default, Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

impl Findings {
    fn push(&mut self, severity: Severity, what: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(Finding { severity, what: what.into(), hint: hint.into() });
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.push(Severity::Ok, what, "");
    }

    fn warn(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.push(Severity::Warn, what, hint);
    }

    fn error(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.push(Severity::Error, what, hint);
    }

    /// A provider's findings, each with its name unless it is there already.
    fn add(&mut self, provider: &impl ToString, more: Vec<Finding>) {
        let provider = provider.to_string();
        self.findings.extend(more.into_iter().map(|finding| {
            let named = finding.what.contains(&provider);
            let what = if named { finding.what } else { format!("{provider}: {}", finding.what) };
            Finding { what, ..finding }
        }));
    }

    fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    fn tell(&self, json: bool, out: &mut Out) -> Result<(), Failure> {
        if json {
            return out.json(&self.findings);
        }
        let style = out.style();
        for Finding { severity, what, hint } in &self.findings {
            let (tone, mark) = match severity {
                Severity::Ok => (Tone::Good, "✓ "),
                Severity::Warn => (Tone::Warning, "! "),
                Severity::Error => (Tone::Bad, "✗ "),
            };
            let hint = if hint.is_empty() { String::new() } else { format!(" — {hint}") };
            out.line(format_args!("{}{what}{}", style.paint(tone, mark), style.paint(Tone::Quiet, hint)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_providers_findings_carry_its_name_once() {
        let mut findings = Findings::default();
        let finding = |what: &str| Finding { severity: Severity::Warn, what: what.into(), hint: String::new() };
        findings.add(&"visma", vec![finding("no offline_access"), finding("providers.visma: odd client id")]);
        let said: Vec<_> = findings.findings.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(said, ["visma: no offline_access", "providers.visma: odd client id"]);
        assert!(!findings.has_errors());
    }
}
