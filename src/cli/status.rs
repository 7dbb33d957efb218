use super::{
    Exit, Failure, Global,
    print::{self, Out, Tone},
};
use crate::wire::{ForecastWeek, ProviderStatus, Status, Stray};

/// The longest bar of the forecast, in characters.
const BAR: u64 = 40;
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
    out.line("consents that end, by week:")?;
    let most = status.forecast.iter().map(|week| week.consents).max().unwrap_or(1);
    // What stands beside the bar must fit into its line too.
    let beside = status.forecast.iter().map(|week| week.provider.as_str().len()).max().unwrap_or(0) + BESIDE_BAR;
    let longest = out.size().map_or(BAR, |(columns, _)| BAR.min(columns.saturating_sub(beside) as u64));
    for ForecastWeek { week, provider, consents } in &status.forecast {
        let bar = "█".repeat(usize::try_from(bar_length(*consents, most, longest)).unwrap_or(0));
        out.line(format_args!("  {week}  {provider}  {bar} {consents}"))?;
    }
    out.line("")
}

/// The bar of `count` where `longest` stands for `most`: never empty for what is not zero.
fn bar_length(count: u64, most: u64, longest: u64) -> u64 {
    let share = u128::from(count) * u128::from(longest) / u128::from(most.max(1));
    u64::try_from(share).unwrap_or(longest).max(u64::from(count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_proportion_and_never_vanish() {
        let bar = |count, most| bar_length(count, most, 40);
        assert_eq!([bar(0, 9), bar(1, 1000), bar(500, 1000), bar(7, 7)], [0, 1, 20, 40]);
        assert_eq!(bar(u64::MAX, u64::MAX), 40);
        assert_eq!(bar_length(9, 9, 0), 1, "something is shown however narrow the terminal");
    }
}
