use std::{borrow::Cow, collections::HashSet, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, Uri, header},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::problems::Refusal;
use crate::{
    keeper::Filter,
    model::{Labels, MAX_LABELS, OrganizationId},
    wire::{Code, Confirm, Confirmation, Enrolment, LinkRequest, Resolution, Resolve},
};

/// The largest body that is read, in bytes.
pub(super) const MAX_BODY: usize = 64 * 1024;
/// How much of a larger body is thrown away before it is refused, so that its sender gets to read why.
const MAX_DISCARDED: usize = 1024 * 1024;
/// How long the whole body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many organizations a page has at most, and where nothing is asked for.
const MAX_LIMIT: usize = 1000;
const DEFAULT_LIMIT: usize = 100;
/// The longest piece of a request that is given back in an error, in characters.
const MAX_ECHO: usize = 40;
/// The longest age recipient, in bytes; an X25519 one has 62.
const MAX_RECIPIENT: usize = 128;
/// The longest name of an unknown field that is given back, in bytes; a mistyped one has fewer.
const MAX_NAME: usize = 32;
/// The longest entity tag that could be ours, in bytes.
const MAX_ETAG: usize = 128;
/// The longest `min_ttl` that is told apart from a longer one; far beyond any token's life.
const LONGEST_TTL: u64 = 366 * 24 * 60 * 60;

/// The organization in a path `/v1/organizations/{org}…`.
pub(super) fn organization(uri: &Uri) -> Result<OrganizationId, Refusal> {
    let written = uri.path().split('/').nth(3).unwrap_or_default();
    let text = percent_decode_str(written)
        .decode_utf8()
        .map_err(|_| Refusal::bad_request("the organization id in the path is not UTF-8"))?;
    text.parse().map_err(|error| Refusal::bad_request(format!("{} is {error}", echo(&text))))
}

/// The age recipient in a path `/v1/vault/recipients/{recipient}`, by its looks. What does not look like one is not given
/// back: it may be an identity, which is secret.
pub(super) fn recipient(uri: &Uri) -> Result<String, Refusal> {
    let written = uri.path().split('/').nth(4).unwrap_or_default();
    let looks_right = written.strip_prefix("age1").is_some_and(|rest| {
        written.len() <= MAX_RECIPIENT && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    });
    let wrong = "the path ends with an age recipient, a public key: `age1` and small letters and digits";
    if looks_right { Ok(written.to_owned()) } else { Err(Refusal::bad_request(wrong)) }
}

/// A key and its value, decoded.
type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The keys and values of a query, if every key is among `known` and, unless in `repeatable`, there once at most.
fn query<'a>(uri: &'a Uri, known: &[&str], repeatable: &[&str]) -> Result<Vec<Pair<'a>>, Refusal> {
    let pairs: Vec<_> = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).collect();
    let mut seen = HashSet::new();
    for (key, _) in &pairs {
        let key: &str = key;
        if !known.contains(&key) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Refusal::bad_request(format!("unknown query key {}; known here: {known}", echo(key))));
        }
        if !repeatable.contains(&key) && !seen.insert(key) {
            return Err(Refusal::bad_request(format!("the query key {key} is there twice")));
        }
    }
    Ok(pairs)
}

/// Makes sure that there is no query.
pub(super) fn no_query(uri: &Uri) -> Result<(), Refusal> {
    query(uri, &[], &[]).map(drop)
}

/// `min_ttl` in whole seconds; zero where it is absent.
pub(super) fn min_ttl(uri: &Uri) -> Result<Duration, Refusal> {
    let pairs = query(uri, &["min_ttl"], &[])?;
    let Some((_, text)) = pairs.first() else { return Ok(Duration::ZERO) };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::bad_request(format!("min_ttl is a whole number of seconds, not {}", echo(text))));
    }
    Ok(Duration::from_secs(text.parse().unwrap_or(LONGEST_TTL).min(LONGEST_TTL)))
}

/// `revoke` of a removal; false where it is absent.
pub(super) fn revoke(uri: &Uri) -> Result<bool, Refusal> {
    match query(uri, &["revoke"], &[])?.first().map(|(_, value)| &**value) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Refusal::bad_request(format!("revoke is true or false, not {}", echo(other)))),
    }
}

/// `follow` of a stream of events; true where it is absent.
pub(super) fn follow(uri: &Uri) -> Result<bool, Refusal> {
    match query(uri, &["follow"], &[])?.first().map(|(_, value)| &**value) {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(Refusal::bad_request(format!("follow is true or false, not {}", echo(other)))),
    }
}

/// Which organizations a list is about.
pub(super) fn filter(uri: &Uri) -> Result<Filter, Refusal> {
    let known = ["state", "provider", "expires_within", "unused_for", "label", "limit", "cursor"];
    let mut filter = Filter { limit: DEFAULT_LIMIT, ..Filter::default() };
    for (key, value) in query(uri, &known, &["label"])? {
        let wrong = |expected: &str| Refusal::bad_request(format!("{key} is {expected}, not {}", echo(&value)));
        match &*key {
            "state" => {
                let states = ["active", "failing", "in_doubt", "lost", "paused"];
                let known = states.contains(&&*value);
                filter.state = Some(if known {
                    value.into_owned()
                } else {
                    return Err(wrong("one of active, failing, in_doubt, lost, paused"));
                });
            }
            "provider" => filter.provider = Some(value.parse().map_err(|_| wrong("the name of a provider"))?),
            "expires_within" | "unused_for" => {
                let time = humantime::parse_duration(&value).map_err(|_| wrong("a duration such as 30d"))?;
                let wanted = if key == "unused_for" { &mut filter.unused_for } else { &mut filter.expires_within };
                *wanted = Some(time);
            }
            "label" => label(&mut filter.labels, &value)?,
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                filter.limit = limit.ok_or_else(|| wrong("a number from 1 to 1000"))?;
            }
            _ => {
                let last = from_cursor(&value);
                filter.after = Some(last.ok_or_else(|| wrong("what next_cursor of the page before said"))?);
            }
        }
    }
    Ok(filter)
}

fn label(labels: &mut Labels, text: &str) -> Result<(), Refusal> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Refusal::bad_request(format!("a label is written label=KEY=VALUE, not {}", echo(text))));
    };
    if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|before| before != value) {
        return Err(Refusal::bad_request(format!("nothing has two values of the label {}", echo(key))));
    }
    if labels.len() > MAX_LABELS {
        return Err(Refusal::bad_request(format!("at most {MAX_LABELS} labels can be asked for")));
    }
    Ok(())
}

/// The cursor of the page that follows `last`.
pub(super) fn to_cursor(last: &OrganizationId) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(last.as_str())
}

fn from_cursor(cursor: &str) -> Option<OrganizationId> {
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?.parse().ok()
}

/// The entity tag in `If-Match` (RFC 9110 section 13.1.1): the one of the token that the API rejected.
///
/// `None` where there is no such header, or where it is `*`, which every token matches. A weak tag is taken as the
/// strong one, since proxies weaken tags and ours names a token, not its bytes. A list of several is refused: one
/// request has used one token.
pub(super) fn rejected(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let wrong = || Refusal::bad_request("If-Match is * or one entity tag in quotes, the ETag of the rejected token");
    let mut found: Option<&str> = None;
    let mut any = false;
    for value in headers.get_all(header::IF_MATCH) {
        for tag in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim) {
            if tag == "*" {
                any = true;
                continue;
            }
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            let opaque = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(wrong)?;
            if opaque.contains('"') || tag.len() > MAX_ETAG || found.is_some_and(|before| before != tag) {
                return Err(wrong());
            }
            found = Some(tag);
        }
    }
    if any && found.is_some() { Err(wrong()) } else { Ok(found.map(str::to_owned)) }
}

/// Reads a body whole, up to [`MAX_BODY`]. It holds a secret as a rule, so that it is wiped when it is dropped.
pub(super) async fn body(mut body: Body) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let too_large = || Refusal::new(Code::TooLarge, format!("a body has at most {MAX_BODY} bytes"));
    if body.size_hint().lower() > MAX_DISCARDED as u64 {
        return Err(too_large());
    }
    // All of the room is wiped afterwards, so it is no more than was announced; without that, as much as there may be, since
    // growing would leave a copy behind.
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let read = async {
        let mut bytes = Zeroizing::new(Vec::with_capacity(announced.unwrap_or(MAX_BODY).min(MAX_BODY)));
        let mut count = 0_usize;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Refusal::bad_request("the body ended before it was complete"))?;
            let Ok(part) = frame.into_data() else { continue };
            count = count.saturating_add(part.len());
            if count > MAX_DISCARDED {
                break;
            }
            if count <= MAX_BODY {
                bytes.extend_from_slice(&part);
            }
        }
        if count > MAX_BODY { Err(too_large()) } else { Ok(bytes) }
    };
    let late = |_| Refusal::bad_request(format!("the body did not come within {} s", BODY_TIMEOUT.as_secs()));
    timeout(BODY_TIMEOUT, read).await.map_err(late)?
}

/// Reads the body of an enrolment.
pub(super) fn enrolment(bytes: &[u8]) -> Result<Enrolment, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| wrong_body(&error))
}

/// Reads the body of a resolution: `{"action":"retry"}` or `{"action":"abandon"}`.
pub(super) fn resolution(bytes: &[u8]) -> Result<Resolution, Refusal> {
    let resolve: Resolve = serde_json::from_slice(bytes).map_err(|error| wrong_body(&error))?;
    Ok(resolve.action)
}

/// Reads the body of a confirmation: `{"action":"accept"}` or `{"action":"decline"}`.
pub(super) fn confirmation(bytes: &[u8]) -> Result<Confirmation, Refusal> {
    let confirm: Confirm = serde_json::from_slice(bytes).map_err(|error| wrong_body(&error))?;
    Ok(confirm.action)
}

/// Reads the body of a request for a link, which may be empty.
pub(super) fn link(bytes: &[u8]) -> Result<LinkRequest, Refusal> {
    if bytes.is_empty() {
        return Ok(LinkRequest::default());
    }
    serde_json::from_slice(bytes).map_err(|error| wrong_body(&error))
}

fn wrong_body(error: &serde_json::Error) -> Refusal {
    let (line, column) = (error.line(), error.column());
    Refusal::bad_request(format!("the body is wrong at line {line} column {column}: {}", complaint(error)))
}

/// What a JSON error says, without any value out of the document, since that may be a secret: only what was expected,
/// and names of fields.
fn complaint(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(before, _)| before);
    if !error.is_data() {
        return text.to_owned();
    }
    if let Some((name, known)) = text.strip_prefix("unknown field `").and_then(|rest| rest.rsplit_once("`, expected "))
    {
        // Where a body was put together wrongly, what stands in a name's place could be a secret.
        let is_word = name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let named = if is_word { format!("unknown field {name:?}") } else { "unknown field".to_owned() };
        return format!("{named}, expected {known}");
    }
    if ["missing field", "duplicate field", "not a provider name"].iter().any(|start| text.starts_with(start)) {
        return text.to_owned();
    }
    if text.contains(" is not a time;") {
        return "not a time; write it as in 2026-01-31T12:00:00Z (RFC 3339)".to_owned();
    }
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => "a value of the wrong kind".to_owned(),
    }
}

/// A piece of a request as it may be given back: quoted, cut, and escaped.
fn echo(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_ECHO).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use rstest::rstest;

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("a URI")
    }

    fn detail(refusal: &Refusal) -> String {
        format!("{refusal:?}")
    }

    #[rstest]
    #[case("/v1/organizations/123/token", Some("123"))]
    #[case("/v1/organizations/DK%3A1%40x", Some("DK:1@x"))]
    #[case("/v1/organizations/a%2Fb/token", None)]
    #[case("/v1/organizations/a%00b", None)]
    #[case("/v1/organizations/%C3%A6", None)]
    #[case("/v1/organizations/%FF", None)]
    #[case("/v1/organizations/%", None)]
    #[case("/v1/organizations/%2e%2e%2f", None)]
    #[case("/v1/organizations/a+b", None)]
    #[case("/v1/organizations/", None)]
    #[case("/v1/organizations", None)]
    fn ids_are_decoded_and_then_checked(#[case] path: &str, #[case] id: Option<&str>) {
        let found = organization(&uri(path));
        assert_eq!(found.as_ref().ok().map(OrganizationId::as_str), id);
        if let Err(refusal) = found {
            assert_eq!(refusal.code, Code::BadRequest);
        }
    }

    #[test]
    fn a_long_id_is_not_given_back_whole() {
        let refusal = organization(&uri(&format!("/v1/organizations/{}", "a".repeat(5000)))).expect_err("too long");
        assert!(detail(&refusal).len() < 400, "{refusal:?}");
        organization(&uri(&format!("/v1/organizations/{}", "a".repeat(128)))).expect("just short enough");
    }

    #[rstest]
    #[case("/", Some(0))]
    #[case("/?min_ttl=60", Some(60))]
    #[case("/?min_ttl=99999999999999999999999", Some(LONGEST_TTL))]
    #[case("/?min_ttl=", None)]
    #[case("/?min_ttl=-1", None)]
    #[case("/?min_ttl=5m", None)]
    #[case("/?min_ttl=1&min_ttl=2", None)]
    #[case("/?minttl=1", None)]
    fn min_ttl_is_a_number_of_seconds(#[case] text: &str, #[case] seconds: Option<u64>) {
        assert_eq!(min_ttl(&uri(text)).ok().map(|ttl| ttl.as_secs()), seconds);
    }

    #[test]
    fn an_unknown_query_key_is_named_with_the_known_ones() {
        let refusal = min_ttl(&uri("/?minttl=1")).expect_err("unknown");
        assert!(detail(&refusal).contains("minttl") && detail(&refusal).contains("known here: min_ttl"), "{refusal:?}");
    }

    #[rstest]
    #[case("/", Some(false))]
    #[case("/?revoke=true", Some(true))]
    #[case("/?revoke=false", Some(false))]
    #[case("/?revoke=1", None)]
    #[case("/?revoke", None)]
    fn revoke_is_true_or_false(#[case] text: &str, #[case] expected: Option<bool>) {
        assert_eq!(revoke(&uri(text)).ok(), expected);
    }

    #[test]
    fn a_filter_holds_all_that_was_asked_for() {
        let cursor = to_cursor(&"41".parse().expect("an id"));
        let text = format!(
            "/?state=in_doubt&provider=visma-connect&expires_within=30d&unused_for=7d&label=team=a%3Db&label=tier=&limit=7&cursor={cursor}"
        );
        let filter = filter(&uri(&text)).expect("good");
        assert_eq!(filter.state.as_deref(), Some("in_doubt"));
        assert_eq!(filter.provider.expect("set").as_str(), "visma-connect");
        assert_eq!(filter.expires_within, Some(Duration::from_hours(30 * 24)));
        assert_eq!(filter.unused_for, Some(Duration::from_hours(7 * 24)));
        assert_eq!(filter.labels, [("team".to_owned(), "a=b".to_owned()), ("tier".to_owned(), String::new())].into());
        assert_eq!(filter.limit, 7);
        assert_eq!(filter.after.expect("set").as_str(), "41");
    }

    #[rstest]
    #[case("/?state=Active")]
    #[case("/?state=")]
    #[case("/?provider=Visma")]
    #[case("/?expires_within=30")]
    #[case("/?expires_within=soon")]
    #[case("/?unused_for=30")]
    #[case("/?unused_for=1d&unused_for=2d")]
    #[case("/?label=team")]
    #[case("/?label=team=a&label=team=b")]
    #[case("/?limit=0")]
    #[case("/?limit=1001")]
    #[case("/?limit=ten")]
    #[case("/?cursor=%00")]
    #[case("/?cursor=w6Y")]
    #[case("/?limit=1&limit=2")]
    #[case("/?page=2")]
    fn what_a_filter_cannot_be_is_refused(#[case] text: &str) {
        assert_eq!(filter(&uri(text)).expect_err("wrong").code, Code::BadRequest);
    }

    #[rstest]
    #[case(&[], Ok(None))]
    #[case(&["*"], Ok(None))]
    #[case(&["\"abc\""], Ok(Some("\"abc\"")))]
    #[case(&["W/\"abc\""], Ok(Some("\"abc\"")))]
    #[case(&["\"abc\", \"abc\""], Ok(Some("\"abc\"")))]
    #[case(&["\"abc\", \"def\""], Err(()))]
    #[case(&["\"abc\"", "\"def\""], Err(()))]
    #[case(&["*, \"abc\""], Err(()))]
    #[case(&["abc"], Err(()))]
    #[case(&["\""], Err(()))]
    #[case(&[""], Err(()))]
    fn if_match_names_one_token(#[case] values: &[&'static str], #[case] expected: Result<Option<&str>, ()>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::IF_MATCH, HeaderValue::from_static(value));
        }
        assert_eq!(rejected(&headers).map_err(drop), expected.map(|tag| tag.map(str::to_owned)));
    }

    #[rstest]
    #[case(r#"{"provider":"p","refresh_token":1234567890123}"#, "expected")]
    #[case(r#"{"provider":"p","usage":"hunter2"}"#, "expected `reuse` or `one-time`")]
    #[case(r#"{"provider":"p","granted_at":"hunter2"}"#, "not a time")]
    #[case(r#"{"provider":"hunter2, expected X"}"#, "not a provider name")]
    #[case(r#"{"provider":"p","verify":"hunter2, expected 3 at line 1"}"#, "expected a boolean")]
    #[case(r#"{"provider":"p","labels":"hunter2"}"#, "expected a map")]
    #[case(r#""hunter2""#, "expected struct Enrolment")]
    #[case(r#"{"provider":"p","refresh_tokn":"hunter2"}"#, "unknown field \"refresh_tokn\"")]
    #[case(r#"{"provider":"p","hunter2":"refresh_token"}"#, "unknown field, expected")]
    #[case(r#"{"refresh_token":"hunter2"}"#, "missing field `provider`")]
    #[case(r#"{"provider":"p","api_key":"hunter2","api_key":"hunter2"}"#, "duplicate field `api_key`")]
    #[case(r#"{"provider":"p","api_key":"hunter2"#, "EOF while parsing a string")]
    #[case(r#"{"provider":"p" "hunter2"}"#, "line 1 column 17")]
    #[case("", "EOF while parsing a value")]
    fn a_wrong_body_is_explained_without_its_values(#[case] body: &str, #[case] expected: &str) {
        let refusal = enrolment(body.as_bytes()).expect_err("wrong");
        let Refusal { code: Code::BadRequest, .. } = &refusal else { panic!("{refusal:?}") };
        let text = refusal.detail();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("1234567890123"), "{text}");
    }

    #[test]
    fn an_unknown_field_is_not_given_back_whole() {
        let body = format!(r#"{{"provider":"p","{}":1}}"#, "x".repeat(5000));
        assert!(enrolment(body.as_bytes()).expect_err("unknown").detail().len() < 400);
    }

    #[tokio::test]
    async fn a_body_is_bounded() {
        let whole = body(Body::from(vec![b'x'; MAX_BODY])).await.expect("just small enough");
        assert_eq!(whole.len(), MAX_BODY);
        for size in [MAX_BODY + 1, MAX_DISCARDED + 1] {
            assert_eq!(body(Body::from(vec![b'x'; size])).await.expect_err("too large").code, Code::TooLarge);
        }
    }

    /// A body of which nothing ever comes.
    struct Never;

    impl hyper::body::Body for Never {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Self::Error>>> {
            std::task::Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_given_up() {
        assert_eq!(body(Body::new(Never)).await.expect_err("late").code, Code::BadRequest);
    }
}
