//! The baselines: the same exchanges with nothing stored.

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
    clock::SystemClock,
    config::{Config, locate},
    model::{Credential, ExchangeOutcome, Secret, Usage},
    provider::{Exchange, Provider, TokenEndpoint as _, install_tls_provider},
};
use tokio::task::JoinSet;

use crate::common::{CLIENT_ID, site::refresh_token};

/// Exchanges under way at once; the worker's `refresh.concurrency`.
pub(crate) const IN_FLIGHT: usize = 64;
/// As the worker's own limits.
const TIMEOUT: Duration = Duration::from_secs(10);
const POOL_IDLE: Duration = Duration::from_secs(30);
const POOL_SIZE: usize = 64;

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

/// reqwest as the worker sets it up. A one-time token gets a connection of its own, as the worker gives it one.
/// `arguments`: a configuration, the usage, the issuer.
pub(crate) fn reqwest_loop(arguments: &[String], exchanges: u64) -> Result<()> {
    let usage = usage(arguments)?;
    let url = format!("http://{}/token", arguments.get(2).context("an issuer")?);
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
    run(exchanges, move |number| {
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
/// usage.
pub(crate) fn provider_loop(arguments: &[String], exchanges: u64) -> Result<()> {
    let usage = usage(arguments)?;
    let file = PathBuf::from(arguments.first().context("a configuration")?);
    let config = Config::load(&locate(Some(&file))?)?;
    let provider = config.providers.into_values().next().context("a provider")?;
    let provider = Arc::new(Provider::new(provider, TIMEOUT, Arc::new(SystemClock::new()))?);
    run(exchanges, move |number| {
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
