//! The baselines: the same exchanges with nothing stored, and what is stored with nothing exchanged.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use consentry::{
    clock::{Clock as _, Now, SystemClock},
    config::{Config, locate},
    model::{Credential, ExchangeOutcome, GrantId, Intent, Secret, Usage},
    provider::{Exchange, Provider, TokenEndpoint as _, install_tls_provider},
    vault::{Change, Vault},
};
use tokio::task::JoinSet;

use crate::common::{
    CLIENT_ID, access_token,
    report::say,
    site::{open, refresh_token},
};

/// Exchanges under way at once; the worker's `refresh.concurrency`.
pub(crate) const IN_FLIGHT: usize = 64;
/// As the worker's own limits.
const TIMEOUT: Duration = Duration::from_secs(10);
const POOL_IDLE: Duration = Duration::from_secs(30);
const POOL_SIZE: usize = 64;
/// What begins a measurement of the vault.
const BEGIN: &str = "begin";

/// Its word between processes.
pub(crate) const fn word(usage: Usage) -> &'static str {
    match usage {
        Usage::Reuse => "re-use",
        Usage::OneTime => "one-time",
    }
}

fn usage(arguments: &[String]) -> Result<Usage> {
    match arguments.get(1).map(String::as_str) {
        Some("re-use") => Ok(Usage::Reuse),
        Some("one-time") => Ok(Usage::OneTime),
        _ => bail!("it takes re-use or one-time"),
    }
}

fn exchanges(arguments: &[String]) -> Result<u64> {
    Ok(arguments.get(2).context("how many exchanges")?.parse()?)
}

/// reqwest as the worker sets it up, but for TLS, which is as reqwest has it by itself. A one-time token gets a connection of its own, as the
/// worker gives it one.
/// `arguments`: a configuration, the usage, how many exchanges, the URL of the token endpoint.
pub(crate) fn reqwest_loop(arguments: &[String]) -> Result<()> {
    let usage = usage(arguments)?;
    let url = arguments.get(3).context("a token endpoint")?.clone();
    install_tls_provider();
    let client = reqwest::Client::builder()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .timeout(TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(if usage == Usage::OneTime { 0 } else { POOL_SIZE })
        .build()?;
    run(exchanges(arguments)?, move |number| {
        let (client, url) = (client.clone(), url.clone());
        async move {
            let token = refresh_token(number, usage, 0);
            let form = [("grant_type", "refresh_token"), ("refresh_token", &token), ("client_id", CLIENT_ID)];
            let response = client.post(url).form(&form).send().await?;
            ensure!(response.status().is_success(), "{}", response.status());
            response.bytes().await?;
            Ok(())
        }
    })
}

/// The worker's own client: everything of an exchange but the vault and the queue. `arguments`: a configuration, the
/// usage, how many exchanges.
pub(crate) fn provider_loop(arguments: &[String]) -> Result<()> {
    let usage = usage(arguments)?;
    let file = PathBuf::from(arguments.first().context("a configuration")?);
    let config = Config::load(&locate(Some(&file))?)?;
    let provider = config.providers.into_values().next().context("a provider")?;
    let provider = Arc::new(Provider::new(provider, TIMEOUT, Arc::new(SystemClock::new()))?);
    run(exchanges(arguments)?, move |number| {
        let provider = Arc::clone(&provider);
        async move {
            let credential = Credential::RefreshToken(Secret::new(refresh_token(number, usage, 0)));
            let fresh_connection = usage == Usage::OneTime;
            let exchange = Exchange { credential: &credential, client: None, fresh_connection, not_after: None };
            match provider.exchange(exchange).await {
                ExchangeOutcome::Granted(_) => Ok(()),
                other => bail!("{other:?}"),
            }
        }
    })
}

/// What is durable of the same exchanges, and nothing else: each record is read, of a one-time token the intent is committed, and then the
/// record with another access token. `arguments`: a configuration whose vault is filled, the usage, how many exchanges.
pub(crate) fn vault_loop(arguments: &[String]) -> Result<()> {
    let usage = usage(arguments)?;
    let file = PathBuf::from(arguments.first().context("a configuration")?);
    let vault = open(&Config::load(&locate(Some(&file))?)?)?;
    let mut grants = Vec::new();
    tokio::runtime::Builder::new_current_thread().build()?.block_on(vault.for_each_grant(&mut |stored| {
        grants.push(stored.value.id);
        Ok(())
    }))?;
    let exchanges = exchanges(arguments)?;
    ensure!(grants.len() as u64 == exchanges, "{} grants instead of {exchanges}", grants.len());
    let grants = Arc::new(grants);
    let clock = Arc::new(SystemClock::new());
    say(BEGIN);
    run(exchanges, move |number| {
        let (vault, grants, clock) = (vault.clone(), Arc::clone(&grants), Arc::clone(&clock));
        async move { store(&vault, grants[usize::try_from(number)?], usage, number, clock.now()).await }
    })
}

async fn store(vault: &Vault, id: GrantId, usage: Usage, number: u64, now: Now) -> Result<()> {
    let mut grant = vault.grant(id).await?.context("the grant is there")?.value;
    let mut changes = Vec::new();
    if usage == Usage::OneTime {
        let fingerprint = grant.fingerprint;
        let intent =
            Intent { grant: id, fingerprint, attempt: 1, first_at: now.wall, first_boot: now.boot, boot_id: 1 };
        vault.commit(vec![Change::PutIntent(intent)]).await?;
        let token = Secret::new(refresh_token(number, usage, 1));
        grant.spent = vec![fingerprint];
        grant.fingerprint = vault.fingerprint(&token);
        grant.credential = Credential::RefreshToken(token);
        changes.push(Change::DeleteIntent(id));
    }
    let access = grant.access.as_mut().context("an access token")?;
    access.token = Secret::new(access_token(&format!("{number:036}"), number));
    access.issued_at = now.wall;
    changes.push(Change::PutGrant(Box::new(grant)));
    vault.commit(changes).await?;
    Ok(())
}

/// Does `exchange` for every number, with [`IN_FLIGHT`] at once.
fn run<F>(exchanges: u64, exchange: impl Fn(u64) -> F + Clone + Send + 'static) -> Result<()>
where
    F: Future<Output = Result<()>> + Send,
{
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..IN_FLIGHT {
            let (next, exchange) = (Arc::clone(&next), exchange.clone());
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= exchanges {
                        return anyhow::Ok(());
                    }
                    exchange(number).await?;
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    })
}
