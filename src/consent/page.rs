//! How a page looks, and which headers guard every answer. This is the one place that writes markup, and all text that
//! goes into it is escaped here.

use std::{fmt::Write as _, sync::LazyLock};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::digest::{SHA256, digest};

use super::language::Language;

const STYLE: &str = "\
:root{color-scheme:light dark;--ground:#f4f5f7;--card:#fff;--ink:#1c2430;--soft:#566070;--line:#d9dde3;--go:#0b5cad;--on:#fff}\
@media(prefers-color-scheme:dark){:root{--ground:#14181e;--card:#1d232b;--ink:#e8ebef;--soft:#a9b3c0;--line:#39424e;--go:#7db8f2;--on:#0d1722}}\
*{box-sizing:border-box}\
body{margin:0;background:var(--ground);color:var(--ink);font:1.0625rem/1.55 system-ui,-apple-system,\"Segoe UI\",Roboto,sans-serif}\
main{max-width:36rem;margin:8vh auto;padding:2rem;background:var(--card);border:1px solid var(--line);border-radius:.75rem}\
@media(max-width:40rem){main{margin:0;min-height:100vh;border:0;border-radius:0;padding:1.5rem}}\
h1{font-size:1.5rem;line-height:1.25;margin:0 0 1rem;overflow-wrap:anywhere}\
h2{font-size:1rem;margin:1.5rem 0 .25rem}\
p{margin:0 0 1rem;overflow-wrap:anywhere}\
ul{margin:.25rem 0 1rem;padding-left:1.25rem;overflow-wrap:anywhere}\
dl{margin:1.5rem 0;border-top:1px solid var(--line)}\
dl div{display:flex;flex-wrap:wrap;gap:0 1rem;padding:.6rem 0;border-bottom:1px solid var(--line)}\
dd ul{margin:0}\
dt{flex:0 0 8rem;color:var(--soft)}dd{flex:1 1 14rem;margin:0;overflow-wrap:anywhere}\
button{font:inherit;font-weight:600;padding:.7rem 1.4rem;border:0;border-radius:.5rem;background:var(--go);color:var(--on);cursor:pointer}\
button:hover{filter:brightness(1.1)}\
button:focus-visible{outline:3px solid var(--ink);outline-offset:3px}\
.reference{margin:1.5rem 0 0;color:var(--soft);font-size:.9375rem}code{font-size:1rem;letter-spacing:.04em}";

/// The style's hash, as a policy names it (CSP level 3 section 2.3.1).
static STYLE_HASH: LazyLock<String> = LazyLock::new(|| BASE64_STANDARD.encode(digest(&SHA256, STYLE.as_bytes())));

/// How long a browser is to come by https alone, once it has: a year (RFC 6797).
const HSTS: &str = "max-age=31536000";

/// A piece of a page.
#[derive(Debug)]
pub(super) enum Part {
    /// A paragraph.
    Text(String),
    /// Names with what they stand for.
    Facts(Vec<(&'static str, Vec<String>)>),
    /// A heading with what is listed under it.
    List(String, Vec<String>),
    /// A button that posts to `action`.
    Form(Form),
    /// By which an operator finds in the log what happened.
    Reference(&'static str, String),
}

/// A button, and what pressing it leads to.
#[derive(Debug)]
pub(super) struct Form {
    /// A path on this host.
    pub(super) action: String,
    /// What the button says.
    pub(super) button: String,
    /// A field that goes along, where there is one.
    pub(super) field: Option<(&'static str, &'static str)>,
    /// Where else than to https the form may lead: the origin of an issuer on this machine.
    pub(super) origin: Option<String>,
}

/// A whole page.
#[derive(Debug)]
pub(super) struct Page {
    /// What it is written in.
    pub(super) language: Language,
    /// Names what it is about, for tests and for scripts.
    pub(super) word: &'static str,
    /// Its status.
    pub(super) status: StatusCode,
    /// Its heading.
    pub(super) title: String,
    /// What follows.
    pub(super) parts: Vec<Part>,
    /// Whether it looks again by itself in two seconds.
    pub(super) looks_again: bool,
}

impl Page {
    /// The answer that shows it.
    pub(super) fn respond(self, is_https: bool) -> Response {
        let policy = self.policy();
        let mut response = Response::new(Body::from(self.markup()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        guard(headers, &policy, is_https);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(header::CONTENT_LANGUAGE, HeaderValue::from_static(self.language.tag()));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Language"));
        if self.looks_again {
            headers.insert(header::REFRESH, HeaderValue::from_static("2"));
        }
        response
    }

    /// Nothing is loaded but the style in the page. A form leads to this host, and on from there: browsers hold
    /// `form-action` against every address that a submitted form is redirected to, and an issuer may send its users on to
    /// the sign-in of their own company, so that any https address is allowed.
    fn policy(&self) -> String {
        let form = self.parts.iter().find_map(|part| if let Part::Form(form) = part { Some(form) } else { None });
        let targets = match form {
            None => "'none'".to_owned(),
            Some(Form { origin: None, .. }) => "'self' https:".to_owned(),
            Some(Form { origin: Some(origin), .. }) => format!("'self' https: {origin}"),
        };
        format!(
            "default-src 'none'; style-src 'sha256-{}'; form-action {targets}; frame-ancestors 'none'; base-uri 'none'",
            *STYLE_HASH
        )
    }

    fn markup(&self) -> String {
        let title = escape(&self.title);
        let mut markup = format!(
            "<!doctype html>\n<html lang=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"robots\" content=\"noindex\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <main id=\"{}\">\n<h1>{title}</h1>\n",
            self.language.tag(),
            self.word,
        );
        for part in &self.parts {
            part.write(&mut markup);
        }
        markup.push_str("</main>\n</body>\n</html>\n");
        markup
    }
}

impl Part {
    fn write(&self, markup: &mut String) {
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Text(text) => writeln!(markup, "<p>{}</p>", escape(text)),
            Self::Facts(facts) => {
                let facts: Vec<String> = facts.iter().map(|(name, values)| fact(name, values)).collect();
                writeln!(markup, "<dl>\n{}</dl>", facts.concat())
            }
            Self::List(heading, items) => writeln!(markup, "<h2>{}</h2>\n{}", escape(heading), list(items)),
            Self::Form(form) => {
                let field = form.field.map_or_else(String::new, |(name, value)| {
                    format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value))
                });
                let (action, button) = (escape(&form.action), escape(&form.button));
                writeln!(markup, "<form method=\"post\" action=\"{action}\">{field}<button>{button}</button></form>")
            }
            Self::Reference(label, reference) => {
                let (label, reference) = (escape(label), escape(reference));
                writeln!(markup, "<p class=\"reference\">{label}: <code>{reference}</code></p>")
            }
        };
    }
}

fn fact(name: &str, values: &[String]) -> String {
    let value = match values {
        [one] => escape(one),
        several => list(several),
    };
    format!("<div><dt>{}</dt><dd>{value}</dd></div>\n", escape(name))
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("<li>{}</li>", escape(item))).collect();
    format!("<ul>{}</ul>", items.concat())
}

/// An answer that leads on, by GET, to an address that nothing secret is in but what is meant for it.
pub(super) fn see_other(to: &str, is_https: bool) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    guard(headers, "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'", is_https);
    if let Ok(to) = HeaderValue::from_str(to) {
        headers.insert(header::LOCATION, to);
    }
    response
}

/// The headers that every answer has.
fn guard(headers: &mut HeaderMap, policy: &str, is_https: bool) {
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("x-robots-tag", "noindex"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is_https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(HSTS));
    }
}

/// Text as it may stand in markup and in quoted attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Overrides of the direction could make a name read as another one.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "</title><script>alert('x')</script>\" onclick=\"y&\u{202e}";

    fn page() -> Page {
        let evil = || EVIL.to_owned();
        Page {
            language: Language::Danish,
            word: "test",
            status: StatusCode::OK,
            title: evil(),
            parts: vec![
                Part::Text(evil()),
                Part::Facts(vec![("name", vec![evil()]), ("names", vec![evil(), evil()])]),
                Part::List(evil(), vec![evil()]),
                Part::Form(Form { action: evil(), button: evil(), field: None, origin: None }),
                Part::Reference("reference", evil()),
            ],
            looks_again: true,
        }
    }

    #[test]
    fn no_text_gets_into_a_page_as_markup() {
        let markup = page().markup();
        assert!(
            !markup.contains("<script") && !markup.contains("\" onclick") && !markup.contains('\u{202e}'),
            "{markup}"
        );
        assert_eq!(markup.matches("&lt;script&gt;").count(), 11, "{markup}");
        assert_eq!(markup.matches("</title>").count(), 1);
    }

    #[test]
    fn every_answer_is_guarded() {
        for response in [page().respond(true), see_other("https://id.example/?a=b", true)] {
            let headers = response.headers();
            for (name, part) in [
                ("content-security-policy", "default-src 'none'"),
                ("content-security-policy", "frame-ancestors 'none'"),
                ("referrer-policy", "no-referrer"),
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("cross-origin-opener-policy", "same-origin"),
                ("strict-transport-security", "max-age="),
            ] {
                assert!(headers[name].to_str().expect("text").contains(part), "{name}");
            }
        }
        assert!(!page().respond(false).headers().contains_key("strict-transport-security"));
    }

    #[test]
    fn a_form_leads_to_this_host_and_its_issuer_and_a_page_without_one_leads_nowhere() {
        assert!(page().policy().contains("form-action 'self' https:;"));
        let mut local = page();
        let origin = Some("http://127.0.0.1:9".to_owned());
        local.parts = vec![Part::Form(Form { action: String::new(), button: String::new(), field: None, origin })];
        assert!(local.policy().contains("form-action 'self' https: http://127.0.0.1:9;"));
        local.parts.clear();
        assert!(local.policy().contains("form-action 'none';"));
    }

    #[test]
    fn the_style_is_the_one_that_the_policy_names() {
        let markup = page().markup();
        let style = markup.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).expect("one").0;
        let hash = BASE64_STANDARD.encode(digest(&SHA256, style.as_bytes()));
        assert!(page().policy().contains(&format!("'sha256-{hash}'")));
    }
}
