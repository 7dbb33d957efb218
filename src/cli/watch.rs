use std::time::Duration;

use clap::Args;

use super::{
    Exit, Failure, Global,
    print::{self, Out, Style, Tone},
    sandbox::interrupted,
};
use crate::{
    client::{Client, ClientError},
    model::Labels,
    wire::{Code, Digest, Event, EventData, OrganizationEvent},
};

/// How long after a worker that went away is looked for again; doubled each time, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consentry watch\n  consentry watch --since all --once --json\n  \
    consentry watch --since evt_0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\n\n\
    It goes on when the worker is started again, and misses nothing but what is live only (token.refreshed).")]
pub(super) struct WatchArgs {
    /// Begin after this event; `all`, or an id that is not kept any more: with the oldest one that is
    #[arg(long, value_name = "ID")]
    since: Option<String>,
    /// End once what has happened so far is told
    #[arg(long)]
    once: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// `consentry watch`: a line for each event, until it is interrupted.
pub(super) async fn watch(global: &Global, args: WatchArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = global.client()?;
    let mut watching = Watching { json: global.json, left: args.count, last_id: args.since, out };
    tokio::select! {
        told = watching.tell(&client, !args.once) => told.map(|()| Exit::Done),
        interrupted = interrupted() => interrupted.map(|()| Exit::Done),
    }
}

struct Watching<'a> {
    json: bool,
    /// How many events are still to be told; `None`: all.
    left: Option<u64>,
    last_id: Option<String>,
    out: &'a mut Out,
}

impl Watching<'_> {
    async fn tell(&mut self, client: &Client, follow: bool) -> Result<(), Failure> {
        let mut wait = FIRST_WAIT;
        let mut met = false;
        loop {
            match client.events(self.last_id.as_deref(), follow).await {
                Ok(mut events) => {
                    (met, wait) = (true, FIRST_WAIT);
                    loop {
                        let event = events.next().await;
                        self.last_id = events.last_id().map(ToOwned::to_owned).or(self.last_id.take());
                        // A worker that died in the middle is met again.
                        let Ok(Some(event)) = event else { break };
                        self.show(&event)?;
                        self.left = self.left.map(|left| left - 1);
                        if self.left == Some(0) {
                            return Ok(());
                        }
                    }
                    if !follow {
                        return Ok(());
                    }
                }
                // It was there: it is being started again, most likely.
                Err(error) if met && is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn show(&mut self, event: &Event) -> Result<(), Failure> {
        if self.json {
            let line =
                serde_json::to_string(event).map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
            self.out.raw(format!("{line}\n").as_bytes())
        } else {
            let line = in_words(event, self.out.style());
            self.out.raw(format!("{line}\n").as_bytes())
        }
    }
}

/// Whether the worker may be there again in a moment.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::NotRunning { .. } | ClientError::Timeout { .. } | ClientError::Protocol(_) => true,
        error => matches!(error.code(), Some(Code::Starting | Code::VaultUnavailable | Code::TooManyRequests)),
    }
}

fn in_words(event: &Event, style: Style) -> String {
    let time = style.paint(Tone::Quiet, print::time(Some(event.timestamp)));
    let kind = style.paint(tone_of(&event.kind), format_args!("{:<18}", print::plain(&event.kind)));
    let about = match &event.data {
        EventData::Organization(about) => of_organization(&event.kind, about, style),
        EventData::Digest(digest) => of_digest(digest),
        EventData::Provider { provider, reason: Some(reason) } => format!("{provider}: {}", print::plain(reason)),
        EventData::Provider { provider, reason: None } => provider.to_string(),
        EventData::Vault { reason } => print::plain(reason.as_deref().unwrap_or("the vault")),
    };
    format!("{time}  {kind}  {about}")
}

fn of_digest(digest: &Digest) -> String {
    let all = digest.weeks.iter().map(|week| week.consents).sum::<u64>() + digest.later;
    let first = digest.weeks.first().map(|week| format!(", the first in the week of {}", print::plain(&week.week)));
    let mut parts = vec![format!("{all} consents end{}", first.unwrap_or_default())];
    let counted = [
        (digest.expired, "past their end"),
        (digest.lost, "lost"),
        (digest.in_doubt, "in doubt"),
        (digest.end_assumed, "with an assumed end"),
    ];
    parts.extend(counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    if digest.invitations_per_week > 0 {
        parts.push(format!("{} invitations a week keep ahead", digest.invitations_per_week));
    }
    parts.join("; ")
}

fn of_organization(kind: &str, about: &OrganizationEvent, style: Style) -> String {
    let mut parts = vec![style.paint(Tone::Strong, &about.organization), about.provider.to_string()];
    let ends = matches!(kind, "consent.expiring" | "consent.expired");
    match (about.days_left.filter(|_| ends), about.consent_expires_at) {
        (Some(days), Some(end)) if days > 0 => {
            parts.push(format!(
                "{days} {} left, until {}",
                if days == 1 { "day" } else { "days" },
                print::time(Some(end))
            ));
        }
        (Some(_), Some(end)) => parts.push(format!("since {}", print::time(Some(end)))),
        _ => {}
    }
    if let (Some(state), false) = (&about.state, ends || kind == "token.refreshed") {
        let reason = about.reason.as_ref().map(|reason| format!(" ({})", print::plain(reason)));
        parts.push(format!("{}{}", print::plain(state), reason.unwrap_or_default()));
    }
    if !about.labels.is_empty() {
        parts.push(style.paint(Tone::Quiet, labels(&about.labels)));
    }
    parts.extend(about.renewal_url.as_deref().map(print::plain));
    parts.join("  ")
}

fn labels(labels: &Labels) -> String {
    let pairs = labels.iter().map(|(key, value)| format!("{}={}", print::plain(key), print::plain(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

fn tone_of(kind: &str) -> Tone {
    match kind {
        "consent.renewed" | "consent.recovered" | "provider.recovered" => Tone::Good,
        "consent.expiring" | "consent.refused" => Tone::Warning,
        "token.refreshed" | "consents.digest" => Tone::Quiet,
        _ => Tone::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_person_wants_to_know() {
        let event = |json: serde_json::Value| in_words(&serde_json::from_value(json).unwrap(), Style::off());
        let expiring = event(serde_json::json!({
            "id": "evt_1", "type": "consent.expiring", "timestamp": "2026-11-22T08:00:00Z",
            "data": {
                "organization": "481001", "provider": "visma-connect", "labels": { "name": "A\u{1b}[2J" },
                "state": "active", "reason": null, "consent_expires_at": "2026-12-22T08:00:00Z", "days_left": 30,
                "within": "30d", "renewal_url": "https://c.example/c/x"
            }
        }));
        assert_eq!(
            expiring,
            "2026-11-22 08:00:00Z  consent.expiring    481001  visma-connect  30 days left, until 2026-12-22 08:00:00Z  \
             name=A\u{fffd}[2J  https://c.example/c/x"
        );
        let failing = event(serde_json::json!({
            "id": "evt_1", "type": "provider.failing", "timestamp": "2026-11-22T08:00:00Z",
            "data": { "provider": "visma-connect", "reason": "client_refused" }
        }));
        assert_eq!(failing, "2026-11-22 08:00:00Z  provider.failing    visma-connect: client_refused");
        let vault = event(serde_json::json!({
            "id": "evt_1", "type": "vault.failing", "timestamp": "2026-11-22T08:00:00Z", "data": { "reason": "disk full" }
        }));
        assert!(vault.ends_with("vault.failing       disk full"), "{vault}");
    }
}
