use std::time::Duration;

use clap::Args;

use crate::{
    cli::{
        Exit, Failure, Global,
        org::show,
        parse::{self, Label, Source},
        print::Out,
    },
    client::ClientError,
    model::{OrganizationId, ProviderName, Timestamp, Usage},
    wire,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    consentry org add 123456 --provider visma-connect --refresh-token-file token.txt --granted-at 2026-01-31\n  \
    pass show dinero/123456 | consentry org add 123456 --provider dinero-personal --api-key-file -\n\n\
    The first exchange proves the credential before anything is stored or replaced. A secret never goes on the \
    command line: others can read that.")]
pub(in crate::cli) struct AddArgs {
    /// The issuer's id of the organization
    #[arg(value_name = "ORG")]
    organization: OrganizationId,
    /// The configured provider that the credential belongs to
    #[arg(long, value_name = "NAME")]
    provider: ProviderName,
    #[command(flatten)]
    credential: CredentialArgs,
    /// When the person approved [default: now, marked as assumed]
    #[arg(long, value_name = "TIME", value_parser = parse::time, conflicts_with = "api_key_file")]
    granted_at: Option<Timestamp>,
    /// When the consent ends [default: after the provider's `consent_lifetime`]
    #[arg(long, value_name = "TIME", value_parser = parse::time, conflicts_with = "api_key_file")]
    expires_at: Option<Timestamp>,
    /// Whether the refresh token outlives an exchange: reuse or one-time [default: the provider's]
    #[arg(long, value_name = "USAGE", value_parser = parse::usage, conflicts_with = "api_key_file")]
    usage: Option<Usage>,
    /// How long a spent token may be exchanged again [default: the provider's]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, conflicts_with = "api_key_file")]
    grace: Option<Duration>,
    /// A label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
    /// Client id, where the provider's does not hold for this credential
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// File with the client secret that belongs to --client-id; - for standard input
    #[arg(long, value_name = "FILE", requires = "client_id")]
    client_secret_file: Option<Source>,
    /// Store it without an exchange: it is `unverified` until the worker has tried it
    #[arg(long)]
    no_verify: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct CredentialArgs {
    /// File with the refresh token; - for standard input
    #[arg(long, value_name = "FILE")]
    refresh_token_file: Option<Source>,
    /// File with the API key; - for standard input
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<Source>,
}

/// `consentry org add`
pub(super) async fn add(global: &Global, args: AddArgs, out: &mut Out) -> Result<(), Failure> {
    let client = global.client()?;
    let organization = args.organization.clone();
    let enrolled =
        client.put(&organization, &enrolment(args)?).await.map_err(|error| unproved(&organization, error))?;
    if global.json {
        return out.json(&enrolled.organization);
    }
    let done = match (enrolled.created, enrolled.changed) {
        (true, _) => "is enrolled",
        (false, Some(false)) => "was enrolled with this credential already",
        (false, _) => "is enrolled anew",
    };
    out.line(format_args!("{organization} {done}"))?;
    show::card(&enrolled.organization, out)
}

/// What the worker says of a provider that does not answer is about fetching.
fn unproved(organization: &OrganizationId, error: ClientError) -> Failure {
    if error.code() != Some(wire::Code::ProviderUnavailable) {
        return error.into();
    }
    Failure::new(
        Exit::Unavailable,
        format!(
            "{organization} is not enrolled: its provider gives no answer now, so the credential could not be proved"
        ),
    )
    .with_hint("try again later, or store it unproved with --no-verify")
}

fn enrolment(args: AddArgs) -> Result<wire::Enrolment, Failure> {
    let credential = &args.credential;
    let from_stdin = [&credential.refresh_token_file, &credential.api_key_file, &args.client_secret_file]
        .into_iter()
        .filter(|source| **source == Some(Source::Stdin))
        .count();
    if from_stdin > 1 {
        return Err(Failure::new(
            Exit::Usage,
            "only one secret can come from standard input; give the other as a file",
        ));
    }
    let secret = |source: &Option<Source>| source.as_ref().map(Source::secret).transpose();
    Ok(wire::Enrolment {
        provider: args.provider,
        refresh_token: secret(&credential.refresh_token_file)?,
        api_key: secret(&credential.api_key_file)?,
        client_id: args.client_id,
        client_secret: secret(&args.client_secret_file)?,
        granted_at: args.granted_at,
        expires_at: args.expires_at,
        usage: args.usage,
        grace: args.grace.map(|grace| humantime::format_duration(grace).to_string()),
        labels: if args.labels.is_empty() { None } else { Some(parse::labels(args.labels)?) },
        verify: args.no_verify.then_some(false),
    })
}
