//! The search and what it found, a page at a time.

use super::{
    door::Visit,
    html::Html,
    query::{Ends, Query, ROWS, WITHIN},
    words,
};
use crate::{
    keeper::{Found, Order},
    metrics::STATES,
    model::{GrantKind, ProviderName, Timestamp},
    wire::Organization,
};

/// Labels of one organization that are shown in its row.
const LABELS_SHOWN: usize = 4;
/// Less than this is left: the row says so in colour.
const SOON: std::time::Duration = std::time::Duration::from_hours(14 * 24);

/// What a row needs beside the organization itself.
pub(super) struct Rows<'a> {
    pub(super) query: &'a Query,
    pub(super) visit: &'a Visit,
    pub(super) now: Timestamp,
    /// Whether renewal links can be made.
    pub(super) links: bool,
}

/// The form that narrows the list.
pub(super) fn search_form(query: &Query, providers: &[ProviderName]) -> Html {
    let mut html = Html::new();
    html.raw("<form id=\"search\" role=\"search\" method=\"get\" action=\"board\"><div class=\"wide\">");
    html.raw("<label for=\"q\">Search <span class=\"hint\">id or label, press <kbd>/</kbd></span></label>");
    html.raw("<input id=\"q\" name=\"q\" type=\"search\" maxlength=\"128\" autocomplete=\"off\" spellcheck=\"false\" ");
    html.raw("value=\"").text(&query.text).raw("\"></div>");
    let states = STATES.map(|state| (state.to_owned(), words::word(state)));
    choice(&mut html, "state", "State", "any", &states, query.state);
    let names: Vec<(String, String)> =
        providers.iter().map(|provider| (provider.to_string(), provider.to_string())).collect();
    choice(&mut html, "provider", "Provider", "any", &names, query.provider.as_ref().map(ProviderName::as_str));
    let mut ends = vec![(Ends::Past.written(), "already ended".to_owned())];
    ends.extend(WITHIN.map(|days| (Ends::Within(days).written(), format!("within {days} days"))));
    if let Some(Ends::Week(monday)) = query.ends {
        ends.push((monday.to_string(), format!("week of {}", words::day(monday))));
    }
    let chosen = query.ends.map(Ends::written);
    choice(&mut html, "ends", "Consent ends", "whenever", &ends, chosen.as_deref());
    let orders = [("ends", "soonest end"), ("fetched", "longest unfetched"), ("id", "id")];
    let chosen = match query.order {
        Order::Ends => "ends",
        Order::Fetched => "fetched",
        Order::Id => "id",
    };
    html.raw("<div><label for=\"sort\">First</label><select id=\"sort\" name=\"sort\">");
    for (value, word) in orders {
        option(&mut html, value, word, value == chosen);
    }
    html.raw("</select></div><div><button>Search</button></div></form>");
    html
}

fn choice(
    html: &mut Html,
    name: &'static str,
    label: &'static str,
    none: &'static str,
    options: &[(String, String)],
    chosen: Option<&str>,
) {
    html.raw("<div><label for=\"").raw(name).raw("\">").raw(label).raw("</label><select id=\"").raw(name);
    html.raw("\" name=\"").raw(name).raw("\">");
    option(html, "", none, chosen.is_none());
    for (value, word) in options {
        option(html, value, word, chosen == Some(value));
    }
    html.raw("</select></div>");
}

fn option(html: &mut Html, value: &str, word: &str, chosen: bool) {
    html.raw("<option value=\"")
        .text(value)
        .raw(if chosen { "\" selected>" } else { "\">" })
        .text(word)
        .raw("</option>");
}

/// How many were found, in words.
pub(super) fn count_in_words(found: &Found, query: &Query) -> String {
    let matched = words::counted(found.matched, "organization", "organizations");
    if query.text.is_empty() {
        return if query.is_narrowed() { format!("{matched} found") } else { matched };
    }
    let rows = u64::try_from(found.organizations.len()).unwrap_or(u64::MAX);
    let by_label = if query.after.is_none() { rows.saturating_sub(found.matched) } else { 0 };
    let found_by = match (found.matched, by_label) {
        (0, by_label @ 1..) => {
            format!("{} found by a label", words::counted(by_label, "organization", "organizations"))
        }
        (_, by_label @ 1..) => format!("{matched} found by id, {} by a label", words::count(by_label)),
        (_, 0) => format!("{matched} found by id"),
    };
    let more = match (found.unsearched, found.organizations.len() < ROWS) {
        (0, _) => String::new(),
        (_, false) => "; more may follow by their labels".to_owned(),
        (left, true) => {
            format!("; labels of {} not searched yet", words::counted(left, "organization", "organizations"))
        }
    };
    found_by + &more
}

/// The results: what the live search replaces.
pub(super) fn results(found: &Found, rows: &Rows<'_>) -> Html {
    let mut html = Html::new();
    html.raw("<div data-count=\"").text(count_in_words(found, rows.query)).raw("\">");
    if found.organizations.is_empty() {
        nothing(&mut html, found, rows.query);
    } else {
        table(&mut html, found, rows);
    }
    pager(&mut html, found, rows.query);
    html.raw("</div>");
    html
}

fn nothing(html: &mut Html, found: &Found, query: &Query) {
    html.raw("<p class=\"nothing\">");
    html.raw(match (found.unsearched > 0, query.after.is_some(), query.is_narrowed()) {
        (true, ..) => "Nothing among the labels searched so far.",
        (false, true, _) => "No more were found.",
        (false, false, true) => "No organization fits. Take something out of the search.",
        (false, false, false) => "No organization is enrolled yet: <code>consentry org add</code> enrols one.",
    });
    html.raw("</p>");
}

fn table(html: &mut Html, found: &Found, rows: &Rows<'_>) {
    html.raw("<div class=\"scroll\"><table class=\"organizations\"><caption class=\"unseen\">Organizations</caption>");
    html.raw("<thead><tr>");
    heading(html, "Organization", Some(Order::Id), rows.query);
    heading(html, "Provider", None, rows.query);
    heading(html, "State", None, rows.query);
    heading(html, "Consent ends", Some(Order::Ends), rows.query);
    heading(html, "Last fetched", Some(Order::Fetched), rows.query);
    if rows.links {
        html.raw("<th scope=\"col\"><span class=\"unseen\">Renewal link</span></th>");
    }
    html.raw("</tr></thead><tbody>");
    for organization in &found.organizations {
        row(html, organization, rows);
    }
    html.raw("</tbody></table></div>");
}

fn heading(html: &mut Html, name: &'static str, order: Option<Order>, query: &Query) {
    let Some(order) = order else {
        html.raw("<th scope=\"col\">").raw(name).raw("</th>");
        return;
    };
    let sorted = order == query.order;
    html.raw(if sorted { "<th scope=\"col\" aria-sort=\"ascending\">" } else { "<th scope=\"col\">" });
    let address = Query { order, after: None, ..query.clone() }.address();
    html.raw("<a href=\"").text(address).raw("#organizations\">").raw(name);
    html.raw(if sorted { "<span aria-hidden=\"true\"> ↑</span></a></th>" } else { "</a></th>" });
}

fn row(html: &mut Html, organization: &Organization, rows: &Rows<'_>) {
    html.raw("<tr><th scope=\"row\"><span class=\"id\">").text(&organization.organization).raw("</span>");
    labels(html, organization);
    html.raw("</th><td>").text(&organization.provider).raw("</td><td>");
    state(html, organization, rows.now);
    html.raw("</td>");
    ending(html, organization, rows.now);
    html.raw("<td data-word=\"Last fetched\">");
    match organization.last_fetched_at {
        Some(at) => moment(html, at, &format!("{} ago", words::span(rows.now.since(at)))),
        None => {
            html.raw("<span class=\"quiet\">never</span>");
        }
    }
    html.raw("</td>");
    if rows.links {
        html.raw("<td class=\"act\">");
        if organization.kind == GrantKind::Consent {
            link_form(html, organization, rows.visit);
        }
        html.raw("</td>");
    }
    html.raw("</tr>");
}

fn labels(html: &mut Html, organization: &Organization) {
    if organization.labels.is_empty() {
        return;
    }
    html.raw("<ul class=\"labels\" aria-label=\"labels\">");
    for (key, value) in organization.labels.iter().take(LABELS_SHOWN) {
        html.raw("<li title=\"")
            .text(key)
            .raw("=")
            .text(value)
            .raw("\"><span class=\"quiet\">")
            .text(key)
            .raw("</span> ");
        html.text(value).raw("</li>");
    }
    if let Some(more) = organization.labels.len().checked_sub(LABELS_SHOWN).filter(|more| *more > 0) {
        html.raw("<li>+").text(more).raw("</li>");
    }
    html.raw("</ul>");
}

/// A state is told by its word, its sign and its colour.
pub(super) fn badge(html: &mut Html, state: &str) {
    let (class, sign) = match state {
        "active" => ("badge active", "●"),
        "failing" => ("badge failing", "▲"),
        "in_doubt" => ("badge in-doubt", "◆"),
        "lost" => ("badge lost", "✕"),
        _ => ("badge paused", "Ⅱ"),
    };
    html.raw("<span class=\"").raw(class).raw("\"><span aria-hidden=\"true\">").raw(sign).raw("</span> ");
    html.text(words::word(state)).raw("</span>");
}

fn state(html: &mut Html, organization: &Organization, now: Timestamp) {
    if organization.paused {
        badge(html, "paused");
        html.raw(" ");
    }
    badge(html, &organization.state);
    html.raw("<span class=\"more\">");
    if let Some(reason) = &organization.reason {
        html.text(words::word(reason)).raw(", ");
    }
    moment(html, organization.since, &format!("for {}", words::span(now.since(organization.since))));
    html.raw("</span>");
    if organization.unreadable {
        html.raw("<span class=\"more bad\">its record cannot be read</span>");
    }
}

fn ending(html: &mut Html, organization: &Organization, now: Timestamp) {
    let consent = organization.consent.as_ref();
    let Some(end) = consent.and_then(|consent| consent.expires_at) else {
        html.raw(match (organization.unreadable, organization.kind) {
            (true, _) => "<td><span class=\"quiet\">not known</span></td>",
            (_, GrantKind::ApiKey) => "<td><span class=\"quiet\">an API key: no end</span></td>",
            _ => "<td><span class=\"quiet\">no end date</span></td>",
        });
        return;
    };
    let (class, words) = if end <= now {
        ("<td class=\"over\">", format!("ended {} ago", words::span(now.since(end))))
    } else if end.since(now) < SOON {
        ("<td class=\"soon\">", format!("{} left", words::span(end.since(now))))
    } else {
        ("<td>", format!("{} left", words::span(end.since(now))))
    };
    html.raw(class).raw("<span class=\"left\">").text(words).raw("</span><span class=\"more\">");
    moment(html, end, &words::day(words::date(end)));
    if consent.is_some_and(|consent| consent.assumed) {
        html.raw(" <span class=\"assumed\" title=\"No date was given when it was enrolled: this is the ");
        html.raw("configured lifetime counted from then\">assumed</span>");
    }
    html.raw("</span></td>");
}

fn moment(html: &mut Html, at: Timestamp, words: &str) {
    html.raw("<time datetime=\"").text(at).raw("\" title=\"").text(at).raw("\">").text(words).raw("</time>");
}

fn link_form(html: &mut Html, organization: &Organization, visit: &Visit) {
    html.raw(
        "<form class=\"link\" method=\"post\" action=\"board/link\"><input type=\"hidden\" name=\"form\" value=\"",
    );
    html.text(&visit.form).raw("\"><input type=\"hidden\" name=\"org\" value=\"").text(&organization.organization);
    html.raw("\"><button class=\"small\">Copy renewal link<span class=\"unseen\"> for ");
    html.text(&organization.organization).raw("</span></button></form>");
}

fn pager(html: &mut Html, found: &Found, query: &Query) {
    if query.after.is_none() && found.next.is_none() {
        return;
    }
    html.raw("<nav class=\"pager\" aria-label=\"Pages of organizations\">");
    if query.after.is_some() {
        let first = Query { after: None, ..query.clone() }.address();
        html.raw("<a href=\"").text(first).raw("#organizations\">« First page</a>");
    }
    if let Some(next) = &found.next {
        let address = Query { after: Some(next.clone()), ..query.clone() }.address();
        html.raw("<a rel=\"next\" href=\"").text(address).raw("#organizations\">");
        // What is left may be labels that nobody has looked at yet.
        let searching = found.unsearched > 0 && found.organizations.len() < ROWS;
        html.raw(if searching { "Search further labels »</a>" } else { "Next page »</a>" });
    }
    html.raw("</nav>");
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::{model::Usage, wire::Consent};

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().expect("valid")
    }

    fn organization(id: &str) -> Organization {
        Organization {
            organization: id.parse().expect("an id"),
            provider: "visma".parse().expect("a name"),
            kind: GrantKind::Consent,
            state: Cow::Borrowed("active"),
            reason: None,
            since: now(),
            paused: false,
            subject: Some("the-subject".to_owned()),
            shares_grant_with: Vec::new(),
            access_token_expires_at: None,
            refreshed_at: None,
            next_refresh_at: None,
            failures: 0,
            consent: Some(Consent {
                granted_at: now(),
                expires_at: Some("2026-12-04T13:00:00Z".parse().expect("valid")),
                assumed: true,
                usage: Usage::Reuse,
                grace_seconds: 0,
                warned: Vec::new(),
            }),
            last_fetched_at: None,
            labels: [("name".to_owned(), "<script>alert(1)</script>\"'&".to_owned())].into(),
            unreadable: false,
        }
    }

    fn shown(organization: Organization, links: bool) -> String {
        let query = Query { text: "\"><img src=x>".to_owned(), ..Query::default() };
        let found = Found { organizations: vec![organization], matched: 1, unsearched: 0, next: None };
        let visit = Visit { form: "the-form".to_owned(), can_leave: false };
        results(&found, &Rows { query: &query, visit: &visit, now: now(), links }).into_string()
            + &search_form(&query, &[]).into_string()
    }

    #[test]
    fn no_label_and_no_query_becomes_markup() {
        let html = shown(organization("dk-1"), true);
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"), "{html}");
        assert!(html.contains("value=\"&quot;&gt;&lt;img src=x&gt;\""), "{html}");
    }

    #[test]
    fn a_row_says_what_is_left_and_that_the_end_was_assumed() {
        let html = shown(organization("dk-1"), true);
        for part in ["12 days left", "4 Dec 2026", ">assumed</span>", "class=\"soon\"", "> active</span>", ">never<"] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        assert!(!html.contains("the-subject"), "who consented is nobody's business here");
    }

    #[test]
    fn a_renewal_link_is_offered_where_there_are_links_and_for_consents_alone() {
        assert!(shown(organization("dk-1"), true).contains("name=\"form\" value=\"the-form\""));
        assert!(!shown(organization("dk-1"), false).contains("<form class=\"link\""));
        let key = Organization { kind: GrantKind::ApiKey, consent: None, ..organization("dk-1") };
        let html = shown(key, true);
        assert!(!html.contains("<form class=\"link\"") && html.contains("an API key: no end"), "{html}");
    }

    #[test]
    fn what_was_not_searched_is_told() {
        let query = Query { text: "x".to_owned(), ..Query::default() };
        let found = Found { organizations: vec![organization("x")], matched: 0, unsearched: 95_000, next: None };
        let words = "1 organization found by a label; labels of 95,000 organizations not searched yet";
        assert_eq!(count_in_words(&found, &query), words);
        let found = Found { unsearched: 0, matched: 1, ..found };
        assert_eq!(count_in_words(&found, &query), "1 organization found by id");
        assert_eq!(count_in_words(&found, &Query::default()), "1 organization");
    }
}
