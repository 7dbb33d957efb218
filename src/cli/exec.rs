use std::{ffi::OsString, io, os::unix::process::CommandExt, process::Command, time::Duration};

use clap::Args;

use super::{Exit, Failure, Global, parse, token};
use crate::model::OrganizationId;

/// The child's variable that holds the access token.
const TOKEN_VARIABLE: &str = "CONSENTRY_ACCESS_TOKEN";
/// The child's variable that holds the organization's id.
const ORGANIZATION_VARIABLE: &str = "CONSENTRY_ORGANIZATION";

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  consentry exec 123456 -- sh -c 'curl -H \"Authorization: Bearer $CONSENTRY_ACCESS_TOKEN\" \
    https://api.dinero.dk/v1/organizations'\n\n\
    The command takes this process's place: signals and its exit code are its own. The token is not renewed while it runs."
)]
pub(super) struct ExecArgs {
    /// The organization
    #[arg(value_name = "ORG")]
    organization: OrganizationId,
    /// Refresh first if less than this is left; at most half the token's life
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, default_value = "0s")]
    min_ttl: Duration,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true, num_args = 1..)]
    command: Vec<OsString>,
}

/// `consentry exec`: only returns if the command could not be started.
pub(super) async fn exec(global: &Global, args: ExecArgs) -> Result<Exit, Failure> {
    let fetched = token::fetch(&global.client()?, &args.organization, args.min_ttl).await?;
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::new(Exit::Usage, "name the command to run after --"));
    };
    let error = Command::new(program)
        .args(arguments)
        .env(TOKEN_VARIABLE, &fetched.token.access_token)
        .env(ORGANIZATION_VARIABLE, args.organization.as_str())
        .exec();
    let program = program.display();
    Err(match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::failed(format!("{program}: command not found")).with_hint("check its name and PATH")
        }
        io::ErrorKind::PermissionDenied => Failure::failed(format!("{program}: it is not executable by you")),
        _ => Failure::failed(format!("{program}: cannot be run: {error}")),
    })
}
