//! The command line: what is typed, what is printed, and which number the process ends with.
//!
//! Commands that ask a running worker go through [`crate::client`]; `run`, `demo` and `sandbox` build one. Everything
//! that is printed goes through `print`, every end of a command through [`Exit`].

mod again;
mod backup;
mod bytes;
mod check;
mod connect;
mod demo;
mod exec;
mod exit;
mod import;
mod init;
mod key;
mod org;
mod parse;
mod print;
mod restore;
mod sandbox;
mod shell;
mod status;
mod token;
mod usage;
mod vault;
mod watch;
mod worker;

use std::{
    ffi::OsString,
    future::Future,
    path::PathBuf,
    pin::{Pin, pin},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

pub use self::exit::{Exit, Failure};
use self::print::Out;
use crate::{
    client::{Client, Trust},
    config::{self, Config, Located},
    hardening,
};

/// More threads than this make no refresh faster: the provider's budget is the limit.
const MAX_THREADS: usize = 4;

/// Keeps OAuth consents and API keys alive: refreshes access tokens before they lapse and hands them out on a socket.
#[derive(Debug, Parser)]
#[command(
    name = "consentry",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "See it work, with nothing to set up:\n  consentry demo\n\n\
                  Set it up:\n  consentry init && consentry check && consentry run\n\n\
                  Exit codes: 0 done; 1 failed; 2 wrong usage; 3 unknown organization; 4 consent lost, in doubt or \
                  paused; 5 provider or worker unavailable; 6 not allowed; 78 bad configuration."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help = "Configuration file [default: $CONSENTRY_CONFIG, else config/consentry.toml, else \
                /etc/consentry/consentry.toml]"
    )]
    config: Option<PathBuf>,
    /// Socket of the running worker [default: the configuration's]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Believe a worker that runs as this user, besides root, yourself and the owner of a folder only root could make
    #[arg(long, global = true, value_name = "UID")]
    server_uid: Option<u32>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: a sandbox issuer, three organizations, the worker and a live view, with nothing to set up
    Demo(demo::DemoArgs),
    /// Make the age identity, the vault and a commented configuration; never overwrites
    Init,
    /// Run the worker in the foreground
    Run,
    /// Look for mistakes in configuration, identity, vault and providers
    Check(check::CheckArgs),
    /// Ask whether the worker is ready; for probes
    Health(worker::HealthArgs),
    /// Enrol, list, show, pause and remove organizations
    #[command(subcommand)]
    Org(org::OrgCommand),
    /// Enrol many organizations from JSON Lines
    Import(import::ImportArgs),
    /// Make the link by which a customer gives consent, or gives it anew; or links for all that end soon
    Connect(connect::ConnectArgs),
    /// Print an organization's access token
    Token(token::TokenArgs),
    /// Exchange now, as after the API said 401
    Refresh(token::RefreshArgs),
    /// Run a command with an access token in its environment
    Exec(exec::ExecArgs),
    /// Counts by state, what expires when, providers' health, the vault
    Status,
    /// Follow what happens: consents that end, are lost or renewed, providers that fail
    Watch(watch::WatchArgs),
    /// A new data key, and who can open the vault
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Write an encrypted copy of the vault to a file, while the worker runs
    Backup(backup::BackupArgs),
    /// Bring the vault back from a backup, or take it as it is after an older copy was put back
    Restore(restore::RestoreArgs),
    /// Move the vault to another engine or place
    #[command(subcommand)]
    Vault(vault::VaultCommand),
    /// A stand-in for Visma Connect and Dinero's token endpoints, for development
    Sandbox(sandbox::SandboxArgs),
    /// Print a completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual pages
    Man,
}

/// Parses `arguments`, runs the command, says on standard error what went wrong, and tells how to exit.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage::tell(&error).into(),
    };
    if let Err(error) = hardening::no_core_dumps() {
        print::failure(&Failure::failed(format!("core dumps cannot be switched off: {error}")));
        return Exit::Failed.into();
    }
    match cli.run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            print::failure(&failure);
            failure.exit().into()
        }
    }
}

impl Cli {
    fn run(self) -> Result<Exit, Failure> {
        let Self { global, command } = self;
        let mut out = Out::stdout();
        match command {
            Command::Demo(args) => many_threads(demo::demo(args, &mut out)),
            Command::Init => init::init(&global, &mut out),
            Command::Run => worker::run(&global),
            Command::Check(args) => one_thread(check::check(&global, args, &mut out)),
            Command::Health(args) => one_thread(worker::health(&global, args, &mut out)),
            Command::Org(command) => one_thread(org::org(&global, command, &mut out)),
            Command::Import(args) => many_threads(import::import(&global, args, &mut out)),
            Command::Connect(args) => one_thread(connect::connect(&global, args, &mut out)),
            Command::Token(args) => one_thread(token::token(&global, args, &mut out)),
            Command::Refresh(args) => one_thread(token::refresh(&global, args, &mut out)),
            Command::Exec(args) => one_thread(exec::exec(&global, args)),
            Command::Status => one_thread(status::status(&global, &mut out)),
            Command::Watch(args) => one_thread(watch::watch(&global, args, &mut out)),
            Command::Key(command) => one_thread(key::key(&global, command, &mut out)),
            Command::Backup(args) => one_thread(backup::backup(&global, args, &mut out)),
            Command::Restore(args) => restore::restore(&global, &args, &mut out),
            Command::Vault(command) => one_thread(vault::vault(&global, command, &mut out)),
            Command::Sandbox(args) => many_threads(sandbox::sandbox(args, &global, &mut out)),
            Command::Completions(args) => shell::completions(&args, &mut out),
            Command::Man => shell::man(&mut out),
        }
    }
}

impl Global {
    /// The configuration file that was named, by flag or by environment.
    fn named_config(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(config::FILE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(variable)
    }

    fn locate(&self) -> Result<Located, Failure> {
        // The variable is looked at there, so that an error says who named the file.
        Ok(config::locate(self.config.as_deref())?)
    }

    fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.locate()?)?)
    }

    /// A client of the running worker. With `--socket` the configuration need not be readable.
    fn client(&self) -> Result<Client, Failure> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => match self.load() {
                Ok(config) => config.socket.path,
                Err(failure) => {
                    return Err(failure
                        .with_hint("with --socket PATH, the running worker's socket, no configuration is needed"));
                }
            },
        };
        Ok(self.client_of(socket))
    }

    fn client_of(&self, socket: PathBuf) -> Client {
        let trust = self.server_uid.map_or_else(Trust::default, |uid| Trust::default().uid(uid));
        Client::with_trust(socket, trust)
    }
}

/// Runs a command that waits for one thing at a time.
fn one_thread(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    run_on(&mut tokio::runtime::Builder::new_current_thread(), pin!(command))
}

/// Runs a command that does much at once.
fn many_threads(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    run_on(tokio::runtime::Builder::new_multi_thread().worker_threads(cores.min(MAX_THREADS)), pin!(command))
}

fn run_on(
    builder: &mut tokio::runtime::Builder,
    command: Pin<&mut dyn Future<Output = Result<Exit, Failure>>>,
) -> Result<Exit, Failure> {
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(command);
    // A thread that waits for standard input must not keep the process from ending.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests;
