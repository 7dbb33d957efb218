//! `consentry connect --all-expiring`: a link for each consent that ends soon, for a mail merge.

mod row;
mod spread;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinSet;

use self::row::{Invitee, Line};
use crate::{
    cli::{
        Exit, Failure, Global,
        again::{again, ends_all},
        parse::{self, Label},
        print::{self, Out},
        sandbox::interrupted,
    },
    client::{Client, ClientError, ListFilter},
    clock::{Clock, SystemClock},
    links::MAX_ALSO,
    model::{ProviderName, Timestamp},
    task,
    wire::{Code, ConsentLink},
};

/// How many are invited at once at most: some 50 MB of memory.
const MAX_INVITED: usize = 100_000;
/// Links that are asked for at once, each on a connection of its own.
const IN_FLIGHT: usize = 16;
/// How often the progress bar moves although nothing happened.
const TICK: Duration = Duration::from_millis(250);

const DAY: Duration = Duration::from_hours(24);

#[derive(Debug, Args)]
pub(in crate::cli) struct BulkArgs {
    /// Links for all whose consent ends within this time, or has ended
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse::duration,
        conflicts_with_all = ["organization", "also", "wait", "revoke", "confirm", "decline"]
    )]
    all_expiring: Option<Duration>,
    /// Print CSV, one line an organization, a column for each label: for a mail merge
    #[arg(long, requires = "all_expiring", conflicts_with_all = ["organization", "json"])]
    csv: bool,
    /// Say on which day to send each, evenly over this time, working days only, the soonest to end first
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = spread_days,
        requires = "all_expiring",
        conflicts_with = "organization"
    )]
    spread: Option<i64>,
    /// Only those with this label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "all_expiring", conflicts_with = "organization")]
    labels: Vec<Label>,
}

/// `4w` in days; less than a day makes no sense.
fn spread_days(text: &str) -> Result<i64, String> {
    let days = i64::try_from(parse::duration(text)?.as_secs() / DAY.as_secs()).unwrap_or(i64::MAX);
    if (1..=spread::MAX_DAYS).contains(&days) {
        Ok(days)
    } else {
        Err(format!("write how many days or weeks, from 1d to {}d, as 4w", spread::MAX_DAYS))
    }
}

/// Prints a link for each consent that ends; those whose link could not be made are told one by one and stop nothing.
pub(super) async fn bulk(
    global: &Global,
    args: BulkArgs,
    provider: Option<ProviderName>,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let client = Arc::new(global.client()?);
    let now = SystemClock::new().now().wall;
    let filter = ListFilter {
        provider,
        expires_within: args.all_expiring,
        labels: parse::labels(args.labels)?,
        ..ListFilter::default()
    };
    let mut invitees = invitees(&client, filter).await?;
    // Who ends first is invited first; an id decides between equals, so that running it again gives the same.
    invitees.sort_by(|a, b| (a.expires_at, &a.organization).cmp(&(b.expires_at, &b.organization)));
    if let Some(days) = args.spread {
        let ends: Vec<_> = invitees.iter().map(Invitee::ends_on).collect();
        let sent = spread::spread(&ends, row::date_of(now), days);
        for (invitee, day) in invitees.iter_mut().zip(sent) {
            invitee.send_on = Some(day);
        }
    }
    if let Some(last) = invitees.last() {
        // One link ahead of all, so that what stands in the way of every link is told once and before anything is printed.
        match link(&client, last).await {
            Ok(link) => outlive(&link, last, now)?,
            Err(error) if error.code() == Some(Code::BadRequest) || ends_all(&error) => return Err(error.into()),
            Err(_) => {}
        }
    }
    let form = if global.json {
        Form::Json
    } else if args.csv {
        Form::Csv(invitees.iter().flat_map(|invitee| invitee.labels.keys().cloned()).collect())
    } else {
        Form::Text
    };
    if let Form::Csv(labels) = &form {
        out.line(row::header(labels, args.spread.is_some()))?;
    }
    let progress = Progress::new(invitees.len());
    let printed = tokio::select! {
        printed = print_links(&client, &invitees, &form, now, &progress, out) => printed,
        signal = interrupted() => Err(signal.err().unwrap_or_else(|| Failure::failed("interrupted"))),
    };
    progress.bar.finish_and_clear();
    let failed = printed?;
    if invitees.is_empty() {
        print::tell("no consent ends within that time");
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

/// Refuses a plan whose last invitation would go out with a link that ends before its reader gets to it. All links are made now, so
/// that each ends a `consent.link_lifetime` from now; it is looked at before anything is printed, with the link that is sent last.
fn outlive(link: &ConsentLink, last: &Invitee, now: Timestamp) -> Result<(), Failure> {
    let Some(sent) = last.send_on else { return Ok(()) };
    let days = |until: jiff::civil::Date| i64::from(row::date_of(now).until(until).map_or(0, |span| span.get_days()));
    let needed = days(sent) + spread::SAFE_DAYS;
    if days(row::date_of(link.expires_at)) >= needed {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the last invitation would be sent on {sent}, and its link ends at {}",
        link.expires_at
    ))
    .with_hint(format!(
        "set consent.link_lifetime = \"{needed}d\" or longer and reload the worker, or spread over less"
    )))
}

/// Everybody to invite. Of several organizations that one consent serves the first gets a link, which renews it for all.
async fn invitees(client: &Client, filter: ListFilter) -> Result<Vec<Invitee>, Failure> {
    let mut pages = client.list(filter);
    let mut invitees = Vec::new();
    let mut covered = HashSet::new();
    while let Some(page) = pages.next().await? {
        for organization in page {
            if covered.remove(&organization.organization) {
                continue;
            }
            let Some(mut invitee) = Invitee::of(organization) else { continue };
            invitee.also.truncate(MAX_ALSO);
            // The list is in order of ids: those before this one were not in it, and will not come.
            covered.extend(invitee.also.iter().filter(|also| **also > invitee.organization).cloned());
            invitees.push(invitee);
        }
        if invitees.len() > MAX_INVITED {
            return Err(Failure::failed(format!("more than {MAX_INVITED} consents end within that time"))
                .with_hint("invite fewer at once, with --provider, --label or a shorter time"));
        }
    }
    Ok(invitees)
}

/// How a link is printed.
enum Form {
    Json,
    /// With these labels as columns.
    Csv(BTreeSet<String>),
    Text,
}

/// Makes the links, some at a time, and prints them in order; gives how many could not be made.
async fn print_links(
    client: &Arc<Client>,
    invitees: &[Invitee],
    form: &Form,
    now: Timestamp,
    progress: &Progress,
    out: &mut Out,
) -> Result<u64, Failure> {
    let mut failed = 0;
    for some in invitees.chunks(IN_FLIGHT) {
        let mut asked = JoinSet::new();
        for (place, invitee) in some.iter().enumerate() {
            let (client, invitee) = (Arc::clone(client), invitee.clone());
            asked.spawn(task::boxed(async move { (place, link(&client, &invitee).await) }));
        }
        let mut links: Vec<_> = asked.join_all().await;
        links.sort_by_key(|(place, _)| *place);
        for (invitee, (_, link)) in some.iter().zip(links) {
            match link {
                Ok(link) => progress.suspend(|| print_one(invitee, &link, form, now, out))?,
                Err(error) if ends_all(&error) => return Err(error.into()),
                Err(error) => {
                    failed += 1;
                    progress.suspend(|| print::tell(&format!("{}: {error}", invitee.organization)));
                }
            }
            progress.bar.inc(1);
        }
    }
    Ok(failed)
}

fn print_one(invitee: &Invitee, link: &ConsentLink, form: &Form, now: Timestamp, out: &mut Out) -> Result<(), Failure> {
    match form {
        Form::Json => {
            let json = serde_json::to_string(&Line::of(invitee, link, now));
            out.line(json.map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?)
        }
        Form::Csv(labels) => out.line(row::csv(invitee, link, labels, now)),
        Form::Text => {
            let send_on = invitee.send_on.map(|day| format!("send on {day}  ")).unwrap_or_default();
            let ends = print::relative(Some(invitee.expires_at), now);
            out.line(format_args!("{}  ends {ends}  {send_on}{}", invitee.organization, link.url))
        }
    }
}

async fn link(client: &Client, invitee: &Invitee) -> Result<ConsentLink, ClientError> {
    again(|| client.consent_link(&invitee.organization, Some(&invitee.provider), &invitee.also)).await
}

/// A bar on standard error, where a terminal is.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new(count: usize) -> Self {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} links  {eta} left") {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    /// Prints something without the bar in its way.
    fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_must_outlive_the_mail_that_carries_it() {
        let now = "2026-11-22T12:00:00Z".parse().expect("a time");
        let link = |expires_at: &str| ConsentLink { url: "u".into(), expires_at: expires_at.parse().expect("a time") };
        let mut last = row::tests::invitee("7");
        assert!(outlive(&link("2026-11-23T12:00:00Z"), &last, now).is_ok(), "it is sent now");
        last.send_on = Some(jiff::civil::date(2026, 12, 18));
        assert!(outlive(&link("2026-12-25T12:00:00Z"), &last, now).is_ok());
        let short = outlive(&link("2026-12-24T12:00:00Z"), &last, now).expect_err("too short");
        assert!(short.lines().expect("told").1.expect("a hint").contains("\"33d\""), "{short:?}");
    }

    #[test]
    fn a_spread_is_of_whole_days() {
        assert_eq!(spread_days("4w"), Ok(28));
        assert_eq!(spread_days("36h"), Ok(1));
        for wrong in ["1h", "2y", "0s", "soon"] {
            assert!(spread_days(wrong).is_err(), "{wrong}");
        }
    }
}
