use std::time::Duration;

use clap::Args;

use super::{
    Exit, Failure, Global, parse,
    print::{self, Out},
};
use crate::{
    client::{Client, Fetched},
    model::OrganizationId,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consentry token 123456 --min-ttl 5m\n  \
    consentry token 123456 --header | curl -H @- https://api.dinero.dk/v1/organizations")]
pub(super) struct TokenArgs {
    /// The organization
    #[arg(value_name = "ORG")]
    organization: OrganizationId,
    /// Refresh first if less than this is left; at most half the token's life
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, default_value = "0s")]
    min_ttl: Duration,
    /// Print a whole `Authorization: Bearer …` header
    #[arg(long, conflicts_with = "json")]
    header: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  consentry refresh 123456\n\n\
    Callers may force an exchange once in 10 seconds; the worker refreshes by itself before a token lapses.")]
pub(super) struct RefreshArgs {
    /// The organization
    #[arg(value_name = "ORG")]
    organization: OrganizationId,
    /// Entity tag of the token that the API rejected: a newer one that is there already is then given instead
    #[arg(long, value_name = "ETAG")]
    rejected: Option<String>,
}

/// `consentry token`
pub(super) async fn token(global: &Global, args: TokenArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = global.client()?;
    let fetched = fetch(&client, &args.organization, args.min_ttl).await?;
    if global.json {
        out.json(&fetched.token)?;
    } else if args.header {
        out.line(format_args!("Authorization: {} {}", fetched.token.token_type, fetched.token.access_token))?;
    } else {
        out.line(&fetched.token.access_token)?;
    }
    Ok(Exit::Done)
}

/// `consentry refresh`: tells that it went well; the token itself is printed by `token`, or as JSON.
pub(super) async fn refresh(global: &Global, args: RefreshArgs, out: &mut Out) -> Result<Exit, Failure> {
    let fetched = global.client()?.refresh(&args.organization, args.rejected.as_deref()).await?;
    warn_if_degraded(&fetched);
    if global.json {
        out.json(&fetched.token)?;
    } else {
        let left = print::span(fetched.token.expires_in);
        out.line(format_args!(
            "{}: the access token now ends {} (in {left})",
            args.organization,
            print::time(Some(fetched.token.expires_at))
        ))?;
    }
    Ok(Exit::Done)
}

/// Fetches a token, and says on standard error when it is the last one for now.
pub(super) async fn fetch(
    client: &Client,
    organization: &OrganizationId,
    min_ttl: Duration,
) -> Result<Fetched, Failure> {
    let fetched = client.token(organization, min_ttl).await?;
    warn_if_degraded(&fetched);
    Ok(fetched)
}

fn warn_if_degraded(fetched: &Fetched) {
    if let Some(reason) = &fetched.token.degraded {
        print::tell(&format!(
            "warning: refreshing fails ({reason}); this token still lives for {}",
            print::span(fetched.token.expires_in)
        ));
    }
}
