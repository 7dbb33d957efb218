use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Args;
use url::Url;

use super::{
    Exit, Failure, Global,
    parse::{self, Lifetime, Source},
    print::{Out, Tone, toml_text as text},
};
use crate::{
    clock::SystemClock,
    model::Usage,
    sandbox::{Sandbox, SandboxConfig},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consentry sandbox\n  \
    consentry sandbox --usage one-time --grace 30s --access-token-lifetime 2m --latency 200ms\n\n\
    It forgets everything when it ends. It is a toy: whoever reaches it controls it.")]
pub(super) struct SandboxArgs {
    /// Where to listen; port 0 takes any that is free [default: 127.0.0.1:9480]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Listen on an address that other machines can reach
    #[arg(long)]
    allow_remote: bool,
    /// How long an access token lives [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    access_token_lifetime: Option<Duration>,
    /// How long a new consent holds, or none [default: 180d]
    #[arg(long, value_name = "DURATION", value_parser = parse::lifetime)]
    consent_lifetime: Option<Lifetime>,
    /// A refresh token that is not exchanged for longer ends, or none [default: none]
    #[arg(long, value_name = "DURATION", value_parser = parse::lifetime)]
    idle_lifetime: Option<Lifetime>,
    /// How long a spent one-time token may be exchanged again [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    grace: Option<Duration>,
    /// What a new consent gets: reuse or one-time [default: reuse]
    #[arg(long, value_name = "USAGE", value_parser = parse::usage)]
    usage: Option<Usage>,
    /// The client id
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// File with the client secret [default: a secret that is printed]
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<Source>,
    /// How clients reach it, if not at the address it listens on
    #[arg(long, value_name = "URL")]
    public_url: Option<Url>,
    /// How long a call of a token endpoint takes [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    latency: Option<Duration>,
}

/// `consentry sandbox`: until Ctrl-C.
pub(super) async fn sandbox(args: SandboxArgs, global: &Global, out: &mut Out) -> Result<Exit, Failure> {
    let mut config = SandboxConfig::default();
    // The default secret guards nothing and is printed; one of the operator's own is not.
    let printed_secret = args.client_secret_file.is_none();
    apply(args, &mut config)?;
    let sandbox = Sandbox::start(config.clone(), Arc::new(SystemClock::new()))
        .await
        .map_err(|error| Failure::failed(format!("the sandbox cannot listen on {}: {error}", config.listen)))?;
    let url = sandbox.url().as_str().trim_end_matches('/').to_owned();
    if global.json {
        out.json(&serde_json::json!({ "url": url, "address": sandbox.addr(), "client_id": config.client_id }))?;
    } else {
        explain(&url, &config, printed_secret, out)?;
    }
    interrupted().await?;
    if !global.json {
        let issuer = sandbox.issuer();
        out.line(format_args!("\n{} exchanges, {} replays", issuer.exchanges(), issuer.replays()))?;
    }
    sandbox.stop().await;
    Ok(Exit::Done)
}

fn apply(args: SandboxArgs, config: &mut SandboxConfig) -> Result<(), Failure> {
    fn set<T>(place: &mut T, value: Option<T>) {
        if let Some(value) = value {
            *place = value;
        }
    }
    set(&mut config.listen, args.listen);
    config.allow_remote = args.allow_remote;
    set(&mut config.access_token_lifetime, args.access_token_lifetime);
    set(&mut config.consent_lifetime, args.consent_lifetime.map(|Lifetime(lifetime)| lifetime));
    set(&mut config.idle_lifetime, args.idle_lifetime.map(|Lifetime(lifetime)| lifetime));
    set(&mut config.grace, args.grace);
    set(&mut config.usage, args.usage);
    set(&mut config.client_id, args.client_id);
    if let Some(file) = args.client_secret_file {
        config.client_secrets = vec![file.secret()?];
    }
    config.public_url = args.public_url;
    set(&mut config.latency, args.latency);
    Ok(())
}

/// What to do next, with a provider's configuration to copy.
fn explain(url: &str, config: &SandboxConfig, printed_secret: bool, out: &mut Out) -> Result<(), Failure> {
    let style = out.style();
    out.line(format_args!("{} {url}", style.paint(Tone::Strong, "The sandbox issuer listens at")))?;
    out.line("It stands in for Visma Connect and for Dinero's API keys, and forgets everything when it ends.\n")?;
    out.line(style.paint(Tone::Quiet, "# Secrets of the toy, one file each:"))?;
    if let (true, Some(secret)) = (printed_secret, config.client_secrets.first()) {
        out.line(format_args!("printf '%s\\n' '{}' > sandbox.secret", secret.expose()))?;
    }
    let (personal_id, personal_secret) = &config.personal_client;
    out.line(format_args!("printf '%s\\n' '{}' > sandbox-personal.secret\n", personal_secret.expose()))?;
    out.line(style.paint(Tone::Quiet, "# Providers for consentry.toml:"))?;
    out.line(format_args!(
        "{}\n",
        providers(url, &config.client_id, personal_id, ("sandbox.secret", "sandbox-personal.secret"))
    ))?;
    out.line(style.paint(Tone::Quiet, "# A consent and an API key to enrol:"))?;
    out.line(format_args!(
        "curl -s {url}/sandbox/consents -H 'content-type: application/json' -d '{{\"user\":\"birgit\",\"organizations\":[\"481001\"]}}' \\\n  \
         | sed 's/.*\"refresh_token\":\"\\([^\"]*\\)\".*/\\1/' | consentry org add 481001 --provider sandbox --refresh-token-file -\n\
         curl -s {url}/sandbox/api-keys -H 'content-type: application/json' -d '{{\"organization\":\"482001\"}}' \\\n  \
         | sed 's/.*\"api_key\":\"\\([^\"]*\\)\".*/\\1/' | consentry org add 482001 --provider sandbox-personal --api-key-file -\n"
    ))?;
    out.line(format_args!("What really happened: {url}/sandbox/record. Ctrl-C ends it."))
}

/// Both of the sandbox's registrations as the configuration of the worker; the demo uses the same.
pub(super) fn providers(url: &str, client_id: &str, personal_id: &str, secret_files: (&str, &str)) -> String {
    format!(
        "[providers.sandbox]\nkind = \"visma-connect\"\nclient_id = {}\nclient_secret_file = {}\nissuer = {}\n\
         organizations_url = {}\n\n\
         [providers.sandbox-personal]\nkind = \"dinero-personal\"\nclient_id = {}\nclient_secret_file = {}\n\
         token_url = {}\norganizations_url = {}",
        text(client_id),
        text(secret_files.0),
        text(url),
        text(&format!("{url}/v1/organizations")),
        text(personal_id),
        text(secret_files.1),
        text(&format!("{url}/dineroapi/oauth/token")),
        text(&format!("{url}/v1/organizations")),
    )
}

/// Until Ctrl-C or SIGTERM.
pub(super) async fn interrupted() -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::failed(format!("cannot wait for signals: {error}"));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(cannot)?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt.map_err(cannot),
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_to_be_copied_is_a_configuration() {
        let text = providers("http://127.0.0.1:1", "isv_x", "me", ("/a \"b\"", "/c"));
        let needed = "[vault]\npath = \"/v\"\nidentity_file = \"/i\"\n[socket]\npath = \"/s\"\n";
        let config = Config::parse(&format!("{needed}{text}")).expect("a configuration");
        assert_eq!(config.providers["sandbox"].client_secret_file, Some("/a \"b\"".into()));
        let token_url = config.providers["sandbox-personal"].token_url.as_ref().map(Url::as_str);
        assert_eq!(token_url, Some("http://127.0.0.1:1/dineroapi/oauth/token"));
    }
}
