use std::time::Duration;

use axum::{extract::State, response::Response};

use super::{
    App,
    page::{escape, living_page},
};
use crate::{model::Usage, sandbox::record::Entry};

/// How many entries of the record the page shows.
const SHOWN: usize = 50;
/// How often it loads itself again.
const REFRESH_SECONDS: u8 = 5;

/// `GET /`: what this is, where everything is, and what happened.
pub(super) async fn page(State(app): State<App>) -> Response {
    let terms = app.issuer.terms();
    let base = escape(&app.base);
    let client = escape(&terms.client_id);
    let usage = match terms.usage {
        Usage::Reuse => "re-use",
        Usage::OneTime => "one-time",
    };
    let consents_end = terms
        .consent_lifetime
        .map_or_else(|| "do not end by themselves".to_owned(), |life| format!("end after {}", in_days(life)));
    let body = format!(
        "<p>This stands in for Visma Connect and for Dinero's token endpoint, for development: Dinero has no sandbox. \
         Nothing here is real, nothing is kept when it ends.</p>\
         <p>The client is <code>{client}</code>. New consents get {usage} refresh tokens with a grace of {grace} and \
         {consents_end}; access tokens live {access}.</p>\
         <h2>Where everything is</h2><ul>\
         <li><a href=\"/.well-known/openid-configuration\">Discovery</a></li>\
         <li><a href=\"/connect/authorize?client_id={client_in_query}&amp;response_type=code&amp;scope=dineropublicapi%3Aread%20offline_access&amp;redirect_uri={base_in_query}%2F\">\
         The consent page</a>, with this page as the application</li>\
         <li><code>POST {base}/connect/token</code>, <code>POST {base}/connect/revocation</code></li>\
         <li><code>POST {base}/dineroapi/oauth/token</code> for API keys</li>\
         <li><code>GET {base}/v1/organizations</code>, <code>GET {base}/v1/ORGANIZATION/contacts</code></li>\
         <li><a href=\"/sandbox/record\">What happened</a>, <a href=\"/sandbox/faults\">faults that can strike</a></li>\
         </ul>\
         <p>A refresh token without a browser, and a lost answer:</p>\
         <pre>curl --json '{{\"user\":\"birgit\",\"usage\":\"one-time\"}}' {base}/sandbox/consents\n\
         curl --json '{{\"fault\":\"drop_after\",\"times\":1}}' {base}/sandbox/faults</pre>\
         <h2>What happened</h2>\
         <p>{exchanges}, {replays}; the newest first.</p>{table}",
        client_in_query = in_query(&terms.client_id),
        base_in_query = in_query(&app.base),
        grace = humantime::format_duration(terms.grace),
        access = humantime::format_duration(terms.access_token_lifetime),
        exchanges = plural(app.issuer.exchanges(), "exchange"),
        replays = plural(app.issuer.replays(), "replay"),
        table = table(&app.issuer.last_entries(SHOWN)),
    );
    living_page("A stand-in issuer", &body, REFRESH_SECONDS)
}

fn table(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "<p>Nothing yet.</p>".to_owned();
    }
    let rows: String = entries.iter().rev().map(row).collect();
    format!(
        "<table><thead><tr><th scope=\"col\">When</th><th scope=\"col\">What</th><th scope=\"col\">Client</th>\
         <th scope=\"col\">Whose</th><th scope=\"col\">Result</th><th scope=\"col\">Remarks</th></tr></thead>\
         <tbody>{rows}</tbody></table>"
    )
}

fn row(entry: &Entry) -> String {
    format!(
        "<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        if entry.replay { " class=\"replay\"" } else { "" },
        entry.at,
        word(&entry.grant_type),
        escape(&entry.client),
        escape(entry.user.as_deref().unwrap_or("–")),
        entry.result,
        escape(&remarks(entry)),
    )
}

fn remarks(entry: &Entry) -> String {
    let mut remarks = Vec::new();
    if entry.replay {
        remarks.push("replay".to_owned());
    }
    if entry.in_grace {
        remarks.push("within the grace".to_owned());
    }
    if !entry.killed.is_empty() {
        remarks.push(format!("ended {}", plural(entry.killed.len() as u64, "consent")));
    }
    if let Some(fault) = &entry.fault {
        remarks.push(format!("fault {}", word(fault)));
    }
    remarks.join(", ")
}

/// A unit variant's name as JSON has it.
fn word(variant: &impl serde::Serialize) -> String {
    serde_json::to_value(variant).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Whole days as days, since nobody counts a consent in average months.
fn in_days(life: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    if life.as_secs() >= DAY && life.as_secs().is_multiple_of(DAY) {
        plural(life.as_secs() / DAY, "day")
    } else {
        humantime::format_duration(life).to_string()
    }
}

fn in_query(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
