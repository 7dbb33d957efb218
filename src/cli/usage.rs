use clap::error::ErrorKind;

use super::{Exit, print};

/// Tells what the parser says: help and version as they are, a mistake in a line or two as every other error.
pub(super) fn tell(error: &clap::Error) -> Exit {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A closed pipe is no reason to complain: help was asked for and not read.
        let _printed = error.print();
        return if error.use_stderr() { Exit::Usage } else { Exit::Done };
    }
    let (what, hint) = lines(&error.render().to_string());
    print::complaint(&what, Some(&hint));
    Exit::Usage
}

/// The parser's paragraphs (what is wrong; tips; usage; where help is) as what is wrong and what to do.
fn lines(text: &str) -> (String, String) {
    let on_one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut what = String::new();
    let mut hints = Vec::new();
    for paragraph in text.split("\n\n").map(on_one_line) {
        if what.is_empty() {
            paragraph.strip_prefix("error: ").unwrap_or(&paragraph).clone_into(&mut what);
        } else if let Some(tip) = paragraph.strip_prefix("tip: ") {
            hints.push(tip.to_owned());
        } else if let Some(usage) = paragraph.strip_prefix("Usage: ") {
            hints.push(format!("usage: {usage}"));
        }
    }
    if hints.is_empty() {
        hints.push("--help says what can be given".to_owned());
    }
    (what, hints.join("; "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;
    use crate::cli::Cli;

    #[rstest]
    #[case::nothing_to_read("import", "required arguments were not provided: <FILE>", "usage: consentry import <FILE>")]
    #[case::a_typing_mistake("stauts", "unrecognized subcommand 'stauts'", "'status'")]
    #[case::a_value("token 1 --min-ttl soon", "write a duration as 30s", "--help")]
    #[case::a_secret_in_argv("org add 1 --refresh-token=hunter2", "'--refresh-token'", "'--refresh-token-file'")]
    fn a_mistake_is_told_in_two_lines(#[case] arguments: &str, #[case] what: &str, #[case] hint: &str) {
        let arguments = std::iter::once("consentry").chain(arguments.split(' '));
        let error = Cli::try_parse_from(arguments).expect_err("wrong usage");
        let (said, hinted) = lines(&error.render().to_string());
        assert!(said.contains(what) && !said.starts_with("error") && !said.contains('\n'), "{said}");
        assert!(hinted.contains(hint) && !hinted.contains('\n'), "{hinted}");
        assert!(!format!("{said}{hinted}").contains("hunter2"));
    }
}
