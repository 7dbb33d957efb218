//! The board's pages, whole: the frame that all share, and what is in each.

use std::time::Duration;

use super::{calendar, door::Visit, html::Html, query::Query, table, words};
use crate::{
    keeper::Found,
    metrics::{Census, STATES},
    model::{ProviderName, Timestamp},
    wire::{ProviderStatus, Status},
};

/// Where a page is, for its relative addresses: they hold behind a proxy that puts a path before the board's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `/board`
    Top,
    /// `/board/…`
    Below,
}

impl Place {
    const fn assets(self) -> &'static str {
        match self {
            Self::Top => "board/",
            Self::Below => "",
        }
    }

    const fn board(self) -> &'static str {
        match self {
            Self::Top => "board",
            Self::Below => "../board",
        }
    }
}

/// What the board itself shows.
pub(super) struct Overview<'a> {
    pub(super) status: &'a Status,
    pub(super) census: &'a Census,
    pub(super) found: &'a Found,
    pub(super) query: &'a Query,
    pub(super) visit: &'a Visit,
    pub(super) now: Timestamp,
    /// Whether renewal links can be made.
    pub(super) links: bool,
}

/// A renewal link as it is shown.
pub(super) struct LinkShown<'a> {
    pub(super) organization: &'a str,
    pub(super) url: &'a str,
    pub(super) expires_at: Timestamp,
}

/// The board.
pub(super) fn board(overview: &Overview<'_>) -> String {
    let providers: Vec<ProviderName> = overview.status.providers.iter().map(|provider| provider.name.clone()).collect();
    let mut body = Html::new();
    body.raw("<h1>Consents</h1>");
    at_a_glance(&mut body, overview);
    body.piece(&calendar::calendar(&overview.status.forecast, &providers, overview.now));
    providers_section(&mut body, &overview.status.providers);
    body.raw("<section aria-labelledby=\"organizations\" class=\"card\"><h2 id=\"organizations\">Organizations</h2>");
    body.piece(&table::search_form(overview.query, &providers));
    body.raw("<p id=\"count\" role=\"status\" aria-live=\"polite\">");
    body.text(table::count_in_words(overview.found, overview.query)).raw("</p><div id=\"results\">");
    let Overview { query, visit, now, links, .. } = *overview;
    body.piece(&table::results(overview.found, &table::Rows { query, visit, now, links }));
    body.raw("</div><p id=\"said\" role=\"status\" aria-live=\"polite\"></p></section>");
    footer(&mut body, overview);
    frame("Consents", Place::Top, "", &body, Some(visit))
}

fn at_a_glance(body: &mut Html, overview: &Overview<'_>) {
    let Overview { status, census, .. } = overview;
    body.raw(
        "<section aria-labelledby=\"glance\"><h2 id=\"glance\" class=\"unseen\">At a glance</h2><ul class=\"tiles\">",
    );
    for state in STATES {
        let organizations = status.organizations.get(state).copied().unwrap_or(0);
        let query = Query { state: Some(state), ..Query::default() };
        tile(body, &query, organizations, |body| table::badge(body, state));
    }
    let longest =
        census.providers.values().flat_map(|provider| &provider.expiring_within).map(|(within, _)| *within).max();
    if let Some(longest) = longest {
        let of = |within: &(Duration, u64)| if within.0 == longest { within.1 } else { 0 };
        let ending = census.providers.values().flat_map(|provider| &provider.expiring_within).map(of).sum();
        let days = u16::try_from(longest.as_secs() / 86_400).unwrap_or(u16::MAX);
        let ends = super::query::WITHIN.contains(&days).then_some(super::query::Ends::Within(days));
        tile(body, &Query { ends, ..Query::default() }, ending, |body| {
            body.raw("consents end within ").text(words::span(longest));
        });
    }
    let query = Query { ends: Some(super::query::Ends::Past), ..Query::default() };
    tile(body, &query, status.expired, |body| {
        body.raw("consents past their end");
    });
    let assumed: u64 = census.providers.values().map(|provider| provider.end_assumed).sum();
    if assumed > 0 {
        tile(body, &Query::default(), assumed, |body| {
            body.raw("consents whose end was assumed");
        });
    }
    body.raw("</ul>");
    let awaiting: u64 = census.providers.values().map(|provider| provider.awaiting).sum();
    if awaiting > 0 {
        body.raw("<p class=\"notice\"><strong>").text(words::counted(awaiting, "consent", "consents"));
        body.raw("</strong> to be confirmed: see <code>consentry status</code></p>");
    }
    body.raw("</section>");
}

/// A number, what it counts, and the way to what was counted.
fn tile(body: &mut Html, query: &Query, number: u64, what: impl FnOnce(&mut Html)) {
    body.raw("<li class=\"tile").raw(if query.state.is_some() { " state" } else { "" });
    body.raw(if number == 0 { " zero\"><a href=\"" } else { "\"><a href=\"" });
    body.text(query.address()).raw("#organizations\"><strong>").text(words::count(number)).raw("</strong> <span>");
    what(body);
    body.raw("</span></a></li>");
}

fn providers_section(body: &mut Html, providers: &[ProviderStatus]) {
    if providers.is_empty() {
        return;
    }
    body.raw("<section aria-labelledby=\"providers\" class=\"card\"><h2 id=\"providers\">Providers</h2>");
    body.raw("<div class=\"scroll\"><table><caption class=\"unseen\">Providers and how they do</caption><thead><tr>");
    body.raw("<th scope=\"col\">Provider</th><th scope=\"col\">Health</th><th scope=\"col\" class=\"number\">Organizations</th>");
    body.raw(
        "<th scope=\"col\" class=\"number\">Overdue</th><th scope=\"col\">Exchanges a minute</th></tr></thead><tbody>",
    );
    for (number, provider) in providers.iter().enumerate() {
        body.raw("<tr><th scope=\"row\"><span aria-hidden=\"true\" class=\"swatch c")
            .text(number.min(calendar::COLOURS - 1));
        body.raw("\"></span>").text(&provider.name).raw("</th><td>");
        body.raw(if provider.circuit == "closed" {
            "<span class=\"badge active\"><span aria-hidden=\"true\">●</span> well</span>"
        } else {
            "<span class=\"badge lost\"><span aria-hidden=\"true\">✕</span> frozen</span>\
             <span class=\"more\">no consent is declared lost until it recovers</span>"
        });
        body.raw("</td><td class=\"number\">").text(words::count(provider.organizations)).raw("</td>");
        body.raw(if provider.overdue == 0 { "<td class=\"number\">" } else { "<td class=\"number soon\">" });
        body.text(words::count(provider.overdue)).raw("</td><td>");
        let (needed, budget) = (provider.needed_per_minute, provider.budget_per_minute);
        body.raw("<meter aria-hidden=\"true\" min=\"0\" max=\"").text(budget).raw("\" high=\"").text(budget / 10 * 9);
        body.raw("\" optimum=\"0\" value=\"").text(needed.min(budget)).raw("\"></meter> ");
        body.text(words::count(needed.into())).raw(" needed of ").text(words::count(budget.into()));
        if needed > budget {
            body.raw("<span class=\"more bad\">the budget is too small: raise max_per_minute</span>");
        }
        body.raw("</td></tr>");
    }
    body.raw("</tbody></table></div></section>");
}

fn footer(body: &mut Html, overview: &Overview<'_>) {
    let Status { version, uptime_seconds, vault, webhooks, .. } = overview.status;
    body.raw("<p class=\"footer\">consentry ").text(version).raw(", up for ");
    body.text(words::span(Duration::from_secs(*uptime_seconds))).raw(" · vault: ");
    body.text(words::counted(vault.records, "record", "records")).raw(", ").text(words::bytes(vault.bytes));
    body.raw(" · last backup: ");
    match vault.last_backup_at {
        Some(at) => body.text(words::span(overview.now.since(at))).raw(" ago"),
        None => body.raw("none"),
    };
    body.raw(" · ").text(words::counted(webhooks.pending, "webhook delivery", "webhook deliveries")).raw(" pending");
    if vault.strays > 0 {
        body.raw(" · <strong>").text(words::counted(vault.strays, "stray answer", "stray answers"));
        body.raw("</strong>: see <code>consentry check</code>");
    }
    body.raw(" · counted <time>").text(overview.now).raw("</time></p>");
}

/// The form by which people log in. `to` is what they came for.
pub(super) fn log_in(place: Place, to: &Query, problem: Option<&str>) -> String {
    let mut body = Html::new();
    body.raw("<section class=\"card narrow\"><h1>Log in</h1><form method=\"post\" action=\"").raw(place.assets());
    body.raw("login\"><input type=\"hidden\" name=\"to\" value=\"").text(to.written()).raw("\">");
    body.raw("<label for=\"token\">The board's token</label>");
    body.raw(
        "<input id=\"token\" name=\"token\" type=\"password\" required autofocus autocomplete=\"current-password\"",
    );
    body.raw(" aria-describedby=\"problem\"><p id=\"problem\" class=\"bad\" role=\"alert\">")
        .text(problem.unwrap_or_default());
    body.raw("</p><button>Log in</button></form></section>");
    frame("Log in", place, "", &body, None)
}

/// A renewal link, for who has no scripts to copy it.
pub(super) fn link(link: &LinkShown<'_>, visit: &Visit) -> String {
    let mut body = Html::new();
    body.raw("<section class=\"card narrow\"><h1>Renewal link</h1><p>For <span class=\"id\">").text(link.organization);
    body.raw("</span>. It can be used until <time>")
        .text(link.expires_at)
        .raw("</time>, or until a consent was given. ");
    body.raw("Send it to that customer only.</p><label for=\"url\">Link</label>");
    body.raw("<input id=\"url\" readonly autofocus value=\"")
        .text(link.url)
        .raw("\"><p><a href=\"../board\">Back to the board</a></p>");
    body.raw("</section>");
    frame("Renewal link", Place::Below, "", &body, Some(visit))
}

/// A page that says one thing.
pub(super) fn message(place: Place, title: &'static str, text: &str) -> String {
    let mut body = Html::new();
    body.raw("<section class=\"card narrow\"><h1>").raw(title).raw("</h1><p>").text(text).raw("</p><p><a href=\"");
    body.raw(place.board()).raw("\">To the board</a></p></section>");
    frame(title, place, "", &body, None)
}

/// The board while there is nothing to show yet: it asks again by itself.
pub(super) fn starting(place: Place) -> String {
    let mut body = Html::new();
    body.raw(
        "<section class=\"card narrow\"><h1>Starting</h1><p>The vault is being read, or another configuration taken. ",
    );
    body.raw("This page looks again every few seconds.</p></section>");
    frame("Starting", place, "<meta http-equiv=\"refresh\" content=\"3\">", &body, None)
}

fn frame(title: &'static str, place: Place, head: &'static str, body: &Html, visit: Option<&Visit>) -> String {
    let assets = place.assets();
    let mut html = Html::new();
    html.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>").raw(title);
    html.raw(" · consentry</title><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">").raw(head);
    html.raw("<link rel=\"icon\" href=\"").raw(assets).raw("icon.svg\"><link rel=\"stylesheet\" href=\"").raw(assets);
    html.raw("board.css\"><script src=\"").raw(assets).raw("board.js\" defer></script></head><body>");
    html.raw(
        "<a class=\"skip\" href=\"#main\">Skip to the content</a><header class=\"top\"><a class=\"brand\" href=\"",
    );
    html.raw(place.board()).raw("\"><img src=\"").raw(assets).raw("icon.svg\" alt=\"\" width=\"24\" height=\"24\">");
    html.raw("consentry</a>");
    if let Some(visit) = visit.filter(|visit| visit.can_leave) {
        html.raw("<form method=\"post\" action=\"")
            .raw(assets)
            .raw("logout\"><input type=\"hidden\" name=\"form\" value=\"");
        html.text(&visit.form).raw("\"><button class=\"small\">Log out</button></form>");
    }
    html.raw("</header><main id=\"main\" tabindex=\"-1\">").piece(body).raw("</main></body></html>\n");
    html.into_string()
}
