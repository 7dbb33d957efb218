//! One invitation, as a line of CSV for a mail merge or as a line of JSON.

use std::collections::BTreeSet;

use jiff::{civil::Date, tz::TimeZone};
use serde::Serialize;

use crate::{
    cli::print,
    model::{Labels, OrganizationId, ProviderName, Timestamp},
    wire::{ConsentLink, Organization},
};

/// Columns before the labels', and after them; the day comes last, and only where invitations are spread.
const FIRST: [&str; 1] = ["organization"];
const LAST: [&str; 7] = ["provider", "expires_at", "assumed", "days_left", "also", "renewal_url", "link_expires_at"];
const SEND_ON: &str = "send_on";

const DAY_SECONDS: i64 = 86_400;

/// Who is to be invited: what is kept of an organization until its link is made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Invitee {
    pub(super) organization: OrganizationId,
    pub(super) provider: ProviderName,
    pub(super) labels: Labels,
    pub(super) expires_at: Timestamp,
    pub(super) assumed: bool,
    /// Others that the same consent serves, which the same link renews.
    pub(super) also: Vec<OrganizationId>,
    /// When to send it, where invitations are spread.
    pub(super) send_on: Option<Date>,
}

impl Invitee {
    /// `None` for what has no end that an invitation could come before.
    pub(super) fn of(organization: Organization) -> Option<Self> {
        let consent = organization.consent?;
        Some(Self {
            organization: organization.organization,
            provider: organization.provider,
            labels: organization.labels,
            expires_at: consent.expires_at?,
            assumed: consent.assumed,
            also: organization.shares_grant_with,
            send_on: None,
        })
    }

    /// The day on which the consent ends, in UTC.
    pub(super) fn ends_on(&self) -> Date {
        date_of(self.expires_at)
    }

    /// Days until the end, rounded up, so that it is 1 on the last day; 0 or less once it has ended.
    fn days_left(&self, now: Timestamp) -> i64 {
        let left = self.expires_at.as_seconds().saturating_sub(now.as_seconds());
        -(-left).div_euclid(DAY_SECONDS)
    }
}

/// The date in UTC.
pub(super) fn date_of(time: Timestamp) -> Date {
    let moment = jiff::Timestamp::from_second(time.as_seconds());
    moment.map_or(Date::MAX, |moment| moment.to_zoned(TimeZone::UTC).date())
}

/// The first line of the CSV. A label with the name of another column gets `label.` in front of it.
pub(super) fn header(labels: &BTreeSet<String>, spread: bool) -> String {
    let taken = |label: &str| FIRST.contains(&label) || LAST.contains(&label) || label == SEND_ON;
    let labels = labels.iter().map(|label| {
        let name = if taken(label) { format!("label.{label}") } else { label.clone() };
        print::csv_text(&name)
    });
    let fixed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut fields = fixed(&FIRST);
    fields.extend(labels);
    fields.extend(fixed(&LAST));
    fields.extend(spread.then(|| SEND_ON.to_owned()));
    fields.join(",")
}

/// A line of the CSV, with a field for each of `labels`.
pub(super) fn csv(invitee: &Invitee, link: &ConsentLink, labels: &BTreeSet<String>, now: Timestamp) -> String {
    let also = invitee.also.iter().map(OrganizationId::as_str).collect::<Vec<_>>().join(" ");
    let mut fields = vec![print::csv(invitee.organization.as_str())];
    fields.extend(labels.iter().map(|label| {
        let value = invitee.labels.get(label).map_or("", String::as_str);
        print::csv_text(value)
    }));
    fields.extend([
        print::csv(invitee.provider.as_str()),
        invitee.expires_at.to_string(),
        invitee.assumed.to_string(),
        invitee.days_left(now).to_string(),
        print::csv(&also),
        print::csv(&link.url),
        link.expires_at.to_string(),
    ]);
    fields.extend(invitee.send_on.map(|day| day.to_string()));
    fields.join(",")
}

/// A line of JSON.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    organization: &'a OrganizationId,
    labels: &'a Labels,
    provider: &'a ProviderName,
    expires_at: Timestamp,
    assumed: bool,
    days_left: i64,
    also: &'a [OrganizationId],
    renewal_url: &'a str,
    link_expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_on: Option<String>,
}

impl<'a> Line<'a> {
    pub(super) fn of(invitee: &'a Invitee, link: &'a ConsentLink, now: Timestamp) -> Self {
        Self {
            organization: &invitee.organization,
            labels: &invitee.labels,
            provider: &invitee.provider,
            expires_at: invitee.expires_at,
            assumed: invitee.assumed,
            days_left: invitee.days_left(now),
            also: &invitee.also,
            renewal_url: &link.url,
            link_expires_at: link.expires_at,
            send_on: invitee.send_on.map(|day| day.to_string()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli::connect::bulk) fn invitee(organization: &str) -> Invitee {
        Invitee {
            organization: organization.parse().expect("an id"),
            provider: "visma-connect".parse().expect("a name"),
            labels: [("name", "Holm, Byg & \"Co\""), ("email", "=cmd()"), ("provider", "mine")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            expires_at: "2026-12-01T12:00:00Z".parse().expect("a time"),
            assumed: false,
            also: vec!["8".parse().expect("an id"), "9".parse().expect("an id")],
            send_on: None,
        }
    }

    fn link() -> ConsentLink {
        let expires_at = "2026-12-06T00:00:00Z".parse().expect("a time");
        ConsentLink { url: "https://connect.example.com/c/x".to_owned(), expires_at }
    }

    #[test]
    fn a_line_has_the_fields_that_the_header_names_and_no_formula() {
        let now = "2026-11-22T12:00:00Z".parse().expect("a time");
        let labels = invitee("7").labels.into_keys().collect();
        let mut invitee = invitee("7");
        assert_eq!(
            header(&labels, false),
            "organization,email,name,label.provider,provider,expires_at,assumed,days_left,also,renewal_url,link_expires_at"
        );
        let line = "7,'=cmd(),\"Holm, Byg & \"\"Co\"\"\",mine,visma-connect,2026-12-01T12:00:00Z,false,9,8 9,\
                    https://connect.example.com/c/x,2026-12-06T00:00:00Z";
        assert_eq!(csv(&invitee, &link(), &labels, now), line);
        invitee.send_on = Some(jiff::civil::date(2026, 11, 24));
        assert!(header(&labels, true).ends_with(",link_expires_at,send_on"));
        assert_eq!(csv(&invitee, &link(), &labels, now), format!("{line},2026-11-24"));
        let json = serde_json::to_value(Line::of(&invitee, &link(), now)).expect("JSON");
        assert_eq!((&json["send_on"], &json["labels"]["email"]), (&"2026-11-24".into(), &"=cmd()".into()));
    }

    #[test]
    fn the_last_day_is_one_and_the_end_is_none() {
        let left = |now: &str| invitee("7").days_left(now.parse().expect("a time"));
        assert_eq!(left("2026-11-30T12:00:01Z"), 1);
        assert_eq!(left("2026-12-01T11:59:59Z"), 1);
        assert_eq!(left("2026-12-01T12:00:00Z"), 0);
        assert_eq!(left("2026-12-02T12:00:00Z"), -1);
        assert_eq!(left("2026-11-01T12:00:00Z"), 30);
    }
}
