use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Exit, Failure, print::Out};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  consentry completions bash > /usr/share/bash-completion/completions/consentry")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// `consentry completions`
pub(super) fn completions(args: &CompletionsArgs, out: &mut Out) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "consentry", &mut script);
    out.raw(&script)?;
    Ok(Exit::Done)
}

/// `consentry man`: every page, one after the other, the whole program first.
pub(super) fn man(out: &mut Out) -> Result<Exit, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    render(&command, &mut pages)?;
    out.raw(&pages)?;
    Ok(Exit::Done)
}

fn render(command: &Command, pages: &mut Vec<u8>) -> Result<(), Failure> {
    // Built commands carry a display name such as `consentry-org-add`, which is also the page's title.
    clap_mangen::Man::new(command.clone()).render(pages)?;
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        render(below, pages)?;
    }
    Ok(())
}
