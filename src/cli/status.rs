use super::{
    Exit, Failure, Global,
    print::{self, Out, Tone},
};
use crate::wire::{Awaiting, ForecastWeek, ProviderStatus, Status, Stray};

/// The longest bar of the forecast, in characters.
const BAR: u64 = 40;
/// What a bar is drawn with: consents whose end is known, and those whose end is assumed.
const KNOWN_MARK: &str = "█";
const ASSUMED_MARK: &str = "▒";
/// What stands beside a bar besides the provider's name: the week, the count and the gaps, in characters.
const BESIDE_BAR: usize = 25;

/// `consentry status`
pub(super) async fn status(global: &Global, out: &mut Out) -> Result<Exit, Failure> {
    let status = global.client()?.status().await?;
    if global.json {
        out.json(&status)?;
    } else {
        show(&status, out)?;
    }
    Ok(Exit::Done)
}

fn show(status: &Status, out: &mut Out) -> Result<(), Failure> {
    out.line(format_args!("consentry {}, up {}\n", status.version, print::span(status.uptime_seconds)))?;
    show_states(status, out)?;
    show_providers(&status.providers, out)?;
    show_forecast(status, out)?;
    let vault = &status.vault;
    let backup = vault.last_backup_at.map_or_else(|| "never".to_owned(), |at| print::time(Some(at)));
    out.line(format_args!(
        "vault: {} records, {}, data key {}, last backup {backup}",
        vault.records,
        print::bytes(vault.bytes),
        vault.data_key
    ))?;
    if let Some(progress) = vault.rekey_progress {
        out.line(format_args!("sealing records anew under data key {}: {:.0} %", vault.data_key, progress * 100.0))?;
    }
    if let Some(problem) = &vault.rekey_problem {
        let style = out.style();
        out.line(style.paint(Tone::Bad, format_args!("it has stopped, and both keys are kept: {problem}")))?;
    }
    if vault.strays > 0 {
        let told = format_args!("strays: {} answers could not take their place and are not served", vault.strays);
        out.line(out.style().paint(Tone::Bad, told))?;
        for stray in &status.strays {
            out.line(format_args!("  {}", stray_in_words(stray)))?;
        }
    }
    if !status.awaiting.is_empty() {
        let told = "consents that wait; `consentry connect ORG --confirm` or `--decline` decides:";
        out.line(out.style().paint(Tone::Warning, told))?;
        for awaiting in &status.awaiting {
            out.line(format_args!("  {}", awaiting_in_words(awaiting)))?;
        }
    }
    if status.webhooks.pending > 0 {
        out.line(format_args!("webhooks: {} deliveries pending", status.webhooks.pending))?;
    }
    if status.webhooks.given_up > 0 {
        let told = format_args!(
            "webhooks: {} deliveries given up since the start; the log names them",
            status.webhooks.given_up
        );
        out.line(out.style().paint(Tone::Bad, told))?;
    }
    Ok(())
}

fn show_states(status: &Status, out: &mut Out) -> Result<(), Failure> {
    let total: u64 = status.organizations.values().sum();
    let style = out.style();
    let counts = status.organizations.iter().map(|(state, count)| {
        let tone = if *count == 0 { Tone::Quiet } else { print::tone_of_state(state) };
        style.paint(tone, format_args!("{count} {state}"))
    });
    let counts = counts.collect::<Vec<_>>().join(", ");
    out.line(format_args!("organizations: {total} ({counts})"))
}

fn show_providers(providers: &[ProviderStatus], out: &mut Out) -> Result<(), Failure> {
    if providers.is_empty() {
        return out.line("providers: none is configured; add one below [providers]\n");
    }
    out.line("")?;
    let mut table = out.table(["provider", "circuit", "organizations", "overdue", "needed/min", "allowed/min"]);
    let style = out.style();
    for provider in providers {
        let circuit = if provider.circuit == "closed" { Tone::Good } else { Tone::Bad };
        let overdue = if provider.overdue == 0 { Tone::Quiet } else { Tone::Warning };
        let needed = if is_short(provider) { Tone::Bad } else { Tone::Quiet };
        table.add_row(vec![
            style.cell(Tone::Strong, &provider.name),
            style.cell(circuit, &provider.circuit),
            comfy_table::Cell::new(provider.organizations),
            style.cell(overdue, provider.overdue),
            style.cell(needed, provider.needed_per_minute),
            comfy_table::Cell::new(provider.budget_per_minute),
        ]);
    }
    print::keep_whole(&mut table, &[]);
    out.show(&table)?;
    for provider in providers.iter().filter(|provider| is_short(provider)) {
        out.line(style.paint(Tone::Warning, budget_warning(provider)))?;
    }
    out.line("")
}

/// One stray: whose it is, since when, and why.
pub(super) fn stray_in_words(stray: &Stray) -> String {
    let organization = stray.organization.as_ref().map_or("of a grant that is gone", |id| id.as_str());
    format!("{organization}, {}: {}", print::time(Some(stray.at)), print::plain(&stray.why))
}

/// One consent that waits: for whom, by whom, since when, and why.
fn awaiting_in_words(awaiting: &Awaiting) -> String {
    let why = match &*awaiting.reason {
        "first_connection" => "a first connection: say whether it is theirs",
        "another_person" => "another person than before: say whether it is theirs",
        "unknown_person" => "an unknown person: say whether it is theirs",
        "unfinished" => "the issuer could not be asked yet; this goes on by itself",
        other => other,
    };
    let subject = awaiting.subject.as_deref().map_or_else(|| "unknown".to_owned(), print::plain);
    let since = print::time(Some(awaiting.since));
    format!("{}, {}, subject {subject}, since {since}: {why}", awaiting.organization, awaiting.provider)
}

/// Whether a provider's budget cannot keep its organizations warm.
pub(super) const fn is_short(provider: &ProviderStatus) -> bool {
    provider.needed_per_minute > provider.budget_per_minute
}

/// What to do about [`is_short`].
pub(super) fn budget_warning(provider: &ProviderStatus) -> String {
    format!(
        "{}: {} exchanges a minute are allowed and {} are needed; raise max_per_minute, or set keep_warm = \"fetched-within 24h\"",
        provider.name, provider.budget_per_minute, provider.needed_per_minute
    )
}

fn show_forecast(status: &Status, out: &mut Out) -> Result<(), Failure> {
    let style = out.style();
    if status.expired > 0 {
        out.line(style.paint(Tone::Bad, format_args!("consents past their end: {}", status.expired)))?;
    }
    if status.forecast.is_empty() {
        return out.line("no consent ends in the weeks ahead\n");
    }
    let assumed = if status.end_assumed > 0 { format!(" ({ASSUMED_MARK}: the end is assumed)") } else { String::new() };
    out.line(format_args!("consents that end, by week{assumed}:"))?;
    let most = status.forecast.iter().map(|week| week.consents).max().unwrap_or(1);
    let widest = status.forecast.iter().map(|week| week.provider.as_str().len()).max().unwrap_or(0);
    // What stands beside the bar must fit into its line too.
    let longest = out.size().map_or(BAR, |(columns, _)| BAR.min(columns.saturating_sub(widest + BESIDE_BAR) as u64));
    for ForecastWeek { week, provider, consents, assumed } in &status.forecast {
        let bar = bar(*consents, *assumed, most, longest);
        let provider = provider.as_str();
        out.line(format_args!("  {week}  {provider:widest$}  {bar} {consents}"))?;
    }
    if status.later > 0 {
        out.line(format_args!("  and {} later", status.later))?;
    }
    let (rate, plural) = (status.invitations_per_week, if status.invitations_per_week == 1 { "" } else { "s" });
    if rate > 0 {
        out.line(style.paint(
            Tone::Quiet,
            format_args!(
                "{rate} invitation{plural} a week from now on would keep ahead of all of them: consentry connect --help"
            ),
        ))?;
    }
    out.line("")
}

/// The bar of `count` where `longest` stands for `most`: never empty for what is not zero. The part of it that stands for those
/// with an assumed end is lighter, and is seen as soon as there is one.
fn bar(count: u64, assumed: u64, most: u64, longest: u64) -> String {
    let scaled = |count: u64| {
        let share = u128::from(count) * u128::from(longest) / u128::from(most.max(1));
        u64::try_from(share).unwrap_or(longest).max(u64::from(count > 0))
    };
    let (whole, light) = (scaled(count), scaled(assumed.min(count)));
    let repeated = |mark: &str, times: u64| mark.repeat(usize::try_from(times).unwrap_or(0));
    repeated(KNOWN_MARK, whole - light) + &repeated(ASSUMED_MARK, light)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_proportion_and_never_vanish() {
        let length = |count, most| bar(count, 0, most, 40).chars().count();
        assert_eq!([length(0, 9), length(1, 1000), length(500, 1000), length(7, 7)], [0, 1, 20, 40]);
        assert_eq!(length(u64::MAX, u64::MAX), 40);
        assert_eq!(bar(9, 0, 9, 0).chars().count(), 1, "something is shown however narrow the terminal");
    }

    #[test]
    fn an_assumed_end_is_seen_in_its_bar() {
        assert_eq!(bar(4, 1, 4, 4), "███▒");
        assert_eq!(bar(1000, 1, 1000, 4), "███▒", "as soon as there is one");
        assert_eq!(bar(4, 4, 4, 4), "▒▒▒▒");
        assert_eq!(bar(1, 9, 4, 4), "▒", "never more than there are");
    }
}
