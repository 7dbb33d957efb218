use super::list;
use crate::{
    cli::{
        Failure,
        print::{self, Out},
    },
    clock::{Clock, SystemClock},
    model::{GrantKind, Timestamp, Usage},
    wire::{Consent, Organization},
};

/// An organization as JSON or as a card.
pub(super) fn tell(organization: &Organization, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json { out.json(organization) } else { card(organization, out) }
}

/// One organization, a line for everything that is known of it.
pub(super) fn card(organization: &Organization, out: &mut Out) -> Result<(), Failure> {
    let now = SystemClock::new().now().wall;
    let at = |time: Option<Timestamp>| match time {
        Some(time) => format!("{} ({})", print::time(Some(time)), print::relative(Some(time), now)),
        None => "-".to_owned(),
    };
    let kind = match organization.kind {
        GrantKind::Consent => "a person's consent",
        GrantKind::ApiKey => "an API key",
    };
    let state =
        out.style().paint(print::tone_of_state(list::shown_state(organization)), list::state_in_full(organization));
    let mut lines = vec![
        ("organization", organization.organization.to_string()),
        ("provider", format!("{}, by {kind}", organization.provider)),
        ("state", format!("{state} since {}", print::time(Some(organization.since)))),
        ("access token ends", at(organization.access_token_expires_at)),
        ("refreshed", at(organization.refreshed_at)),
        ("next refresh", at(organization.next_refresh_at)),
        ("last fetched", at(organization.last_fetched_at)),
    ];
    if organization.failures > 0 {
        lines.push(("failed in a row", organization.failures.to_string()));
    }
    if let Some(consent) = &organization.consent {
        lines.extend(consent_lines(consent, &at));
    }
    if let Some(subject) = &organization.subject {
        lines.push(("given by", print::plain(subject)));
    }
    if !organization.shares_grant_with.is_empty() {
        let others = organization.shares_grant_with.iter().map(ToString::to_string).collect::<Vec<_>>();
        lines.push(("shared with", others.join(", ")));
    }
    if !organization.labels.is_empty() {
        lines.push(("labels", print::plain(&list::labels(organization))));
    }
    if organization.unreadable {
        lines.push(("damaged", "its record cannot be read; restore the vault from a backup".to_owned()));
    }
    for (name, value) in lines {
        out.line(format_args!("{name:>18}  {value}"))?;
    }
    Ok(())
}

fn consent_lines(consent: &Consent, at: &impl Fn(Option<Timestamp>) -> String) -> Vec<(&'static str, String)> {
    let assumed = if consent.assumed { ", assumed: no date was given at enrolment" } else { "" };
    let usage = match consent.usage {
        Usage::Reuse => "reuse".to_owned(),
        Usage::OneTime => format!("one-time, grace {} s", consent.grace_seconds),
    };
    let ends = consent.expires_at.map_or_else(|| "not by itself".to_owned(), |end| at(Some(end)));
    let mut lines = vec![
        ("consent given", format!("{}{assumed}", at(Some(consent.granted_at)))),
        ("consent ends", ends),
        ("refresh token", usage),
    ];
    if !consent.warned.is_empty() {
        lines.push(("warned before end", consent.warned.join(", ")));
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    pub(in crate::cli::org) fn organization() -> Organization {
        Organization {
            organization: "1".parse().expect("an id"),
            provider: "visma-connect".parse().expect("a name"),
            kind: GrantKind::Consent,
            state: "active".into(),
            reason: None,
            since: Timestamp::from_millis(0),
            paused: false,
            subject: None,
            shares_grant_with: Vec::new(),
            access_token_expires_at: None,
            refreshed_at: None,
            next_refresh_at: None,
            failures: 0,
            consent: Some(Consent {
                granted_at: Timestamp::from_millis(0),
                expires_at: None,
                assumed: true,
                usage: Usage::OneTime,
                grace_seconds: 30,
                warned: vec!["30d".into()],
            }),
            last_fetched_at: None,
            labels: [("plan".to_owned(), "gold".to_owned())].into(),
            unreadable: false,
        }
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_card_says_what_was_assumed_and_what_was_warned_of() {
        let kept = Kept::default();
        card(&organization(), &mut Out::of(kept.clone())).expect("printed");
        let text = String::from_utf8(kept.0.lock().expect("not poisoned").clone()).expect("text");
        for part in ["assumed", "not by itself", "one-time, grace 30 s", "30d", "plan=gold"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
