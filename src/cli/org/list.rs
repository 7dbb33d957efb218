use std::time::Duration;

use clap::Args;
use comfy_table::Cell;

use crate::{
    cli::{
        Failure, Global,
        parse::{self, Label},
        print::{self, Out, Tone},
    },
    client::ListFilter,
    clock::{Clock, SystemClock},
    model::{GrantKind, ProviderName, Timestamp},
    wire::Organization,
};

/// The width from which on labels are shown in the table.
const WIDTH: usize = 110;

/// Columns of the CSV, in order.
const CSV_HEADER: &str = "organization,provider,kind,state,reason,since,paused,subject,access_token_expires_at,\
    refreshed_at,next_refresh_at,failures,granted_at,consent_expires_at,assumed,usage,last_fetched_at,labels";

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consentry org list --expires-within 30d --csv > renew.csv\n  \
    consentry org list --state failing --provider visma-connect --label plan=gold\n  \
    consentry org list --unused-for 60d")]
pub(in crate::cli) struct ListArgs {
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = ["active", "failing", "in_doubt", "lost", "paused"])]
    state: Option<String>,
    /// Only those whose consent ends within this time, or has ended
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    expires_within: Option<Duration>,
    /// Only those of which no token was fetched for this long, or never
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    unused_for: Option<Duration>,
    /// Only those of this provider
    #[arg(long, value_name = "NAME")]
    provider: Option<ProviderName>,
    /// Only those with this label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// `consentry org list`: printed page by page, so that a million organizations need no more memory than one page.
pub(super) async fn list(global: &Global, args: ListArgs, out: &mut Out) -> Result<(), Failure> {
    let client = global.client()?;
    let filter = ListFilter {
        state: args.state,
        provider: args.provider,
        expires_within: args.expires_within,
        unused_for: args.unused_for,
        labels: parse::labels(args.labels)?,
        page: None,
    };
    let mut pages = client.list(filter);
    let mut form = if global.json {
        Form::Json
    } else if args.csv {
        Form::Csv
    } else {
        Form::Table { now: SystemClock::new().now().wall }
    };
    let mut listed = 0;
    while let Some(page) = pages.next().await? {
        form.page(&page, listed == 0, out)?;
        listed += page.len();
    }
    form.end(listed, out)
}

enum Form {
    Json,
    Csv,
    Table { now: Timestamp },
}

impl Form {
    fn page(&mut self, page: &[Organization], first: bool, out: &mut Out) -> Result<(), Failure> {
        if page.is_empty() {
            return Ok(());
        }
        match self {
            Self::Json => {
                for (place, organization) in page.iter().enumerate() {
                    let json = serde_json::to_string(organization)
                        .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
                    let before = if first && place == 0 { "[\n" } else { ",\n" };
                    out.raw(format!("{before}{json}").as_bytes())?;
                }
            }
            Self::Csv => {
                if first {
                    out.line(CSV_HEADER)?;
                }
                for organization in page {
                    out.line(csv(organization))?;
                }
            }
            Self::Table { now } => {
                let header =
                    ["organization", "provider", "state", "token ends", "consent ends", "last fetch", "labels"];
                // What does not fit beside the rest is left to `org show`.
                let narrow = out.size().is_some_and(|(columns, _)| columns < WIDTH);
                let columns = if narrow { header.len() - 1 } else { header.len() };
                let mut table = out.table(header.into_iter().take(columns));
                for organization in page {
                    table.add_row(row(organization, *now, out).into_iter().take(columns));
                }
                // State and labels are words, and may be broken between them.
                print::keep_whole(&mut table, &[2, 6]);
                out.show(&table)?;
            }
        }
        Ok(())
    }

    fn end(&self, listed: usize, out: &mut Out) -> Result<(), Failure> {
        match (self, listed) {
            (Self::Json, 0) => out.line("[]"),
            (Self::Json, _) => out.line("\n]"),
            (Self::Csv, 0) => out.line(CSV_HEADER),
            (Self::Table { .. }, 0) => {
                print::tell("no organization fits");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn row(organization: &Organization, now: Timestamp, out: &Out) -> Vec<Cell> {
    let style = out.style();
    let ends = match &organization.consent {
        None => style.cell(Tone::Quiet, "api key"),
        Some(consent) => {
            let tone = match consent.expires_at {
                Some(at) if at <= now => Tone::Bad,
                Some(_) if !consent.warned.is_empty() => Tone::Warning,
                _ => Tone::Quiet,
            };
            let assumed = if consent.assumed { " (assumed)" } else { "" };
            style.cell(tone, format_args!("{}{assumed}", print::relative(consent.expires_at, now)))
        }
    };
    vec![
        style.cell(Tone::Strong, &organization.organization),
        Cell::new(&organization.provider),
        style.cell(print::tone_of_state(shown_state(organization)), state_in_full(organization)),
        Cell::new(print::relative(organization.access_token_expires_at, now)),
        ends,
        style.cell(Tone::Quiet, print::relative(organization.last_fetched_at, now)),
        style.cell(Tone::Quiet, print::plain(&labels(organization))),
    ]
}

/// The state, or `paused`, which lies over it.
pub(super) fn shown_state(organization: &Organization) -> &str {
    if organization.paused { "paused" } else { &organization.state }
}

/// The state with its reason and what lies over it.
pub(super) fn state_in_full(organization: &Organization) -> String {
    let reason = organization.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let paused = if organization.paused { "paused, " } else { "" };
    format!("{paused}{}{reason}", organization.state)
}

/// `key=value key=value`
pub(super) fn labels(organization: &Organization) -> String {
    organization.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn csv(organization: &Organization) -> String {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
    let consent = organization.consent.as_ref();
    let kind = match organization.kind {
        GrantKind::Consent => "consent",
        GrantKind::ApiKey => "api-key",
    };
    let usage = consent.map(|consent| match consent.usage {
        crate::model::Usage::Reuse => "reuse",
        crate::model::Usage::OneTime => "one-time",
    });
    [
        print::csv(organization.organization.as_str()),
        print::csv(organization.provider.as_str()),
        kind.to_owned(),
        print::csv(&organization.state),
        print::csv(organization.reason.as_deref().unwrap_or_default()),
        time(Some(organization.since)),
        organization.paused.to_string(),
        print::csv_text(organization.subject.as_deref().unwrap_or_default()),
        time(organization.access_token_expires_at),
        time(organization.refreshed_at),
        time(organization.next_refresh_at),
        organization.failures.to_string(),
        time(consent.map(|consent| consent.granted_at)),
        time(consent.and_then(|consent| consent.expires_at)),
        consent.map(|consent| consent.assumed.to_string()).unwrap_or_default(),
        usage.unwrap_or_default().to_owned(),
        time(organization.last_fetched_at),
        print::csv_text(&labels(organization)),
    ]
    .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::org::show::tests::organization;

    #[test]
    fn a_csv_line_has_a_field_for_every_column() {
        let mut organization = organization();
        organization.labels.insert("note".into(), "plain".into());
        assert_eq!(csv(&organization).split(',').count(), CSV_HEADER.split(',').count());
    }

    #[test]
    fn a_pause_is_shown_over_the_state() {
        let mut organization = organization();
        organization.paused = true;
        assert_eq!(shown_state(&organization), "paused");
        assert_eq!(state_in_full(&organization), "paused, active");
    }
}
