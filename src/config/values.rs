//! From what is written to what is meant: one function for each kind of value, with its bounds.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use croner::parser::{CronParser, Seconds};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::{Host, Url};

use super::{
    KeepWarm,
    problem::{Unfit, shown},
    raw::{List, Real, Scalar, Whole},
    suggest::nearest,
};
use crate::model::EventKind;

/// The longest name of who asks for consent, in characters.
const MAX_SHOWN_NAME: usize = 80;
/// The longest path, in bytes (`PATH_MAX` of Linux, with its closing NUL).
const MAX_PATH: usize = 4095;
/// The longest path of a Unix socket, in bytes: `sun_path` of Linux has 108 with its closing NUL, and the worker makes
/// the socket under a temporary name that is 5 bytes longer.
const MAX_SOCKET_PATH: usize = 102;
/// The longest URL, in bytes.
const MAX_URL: usize = 2048;
/// The longest cron pattern, in bytes.
const MAX_CRON: usize = 128;
/// The longest user or group name, in bytes.
const MAX_ACCOUNT_NAME: usize = 256;
/// The least and the most that a duration may be, and how that is said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    least: Duration,
    most: Duration,
    words: &'static str,
}

impl Bounds {
    pub(super) const fn seconds(least: u64, most: u64, words: &'static str) -> Self {
        Self { least: Duration::from_secs(least), most: Duration::from_secs(most), words }
    }

    pub(super) const fn millis(least: u64, most: u64, words: &'static str) -> Self {
        Self { least: Duration::from_millis(least), most: Duration::from_millis(most), words }
    }
}

/// Whether a time ends by itself in days or not at all: `"180d"` or `"none"`.
pub(super) fn lifetime(text: &str, bounds: Bounds) -> Result<Option<Duration>, Unfit> {
    if text == "none" {
        return Ok(None);
    }
    match duration(text, bounds) {
        Ok(duration) => Ok(Some(duration)),
        Err(_) => Err(Unfit::Expected(format!("a duration {}, or \"none\"", bounds.words))),
    }
}

pub(super) fn duration(text: &str, bounds: Bounds) -> Result<Duration, Unfit> {
    match humantime::parse_duration(text) {
        Ok(duration) if (bounds.least..=bounds.most).contains(&duration) => Ok(duration),
        _ => Err(Unfit::Expected(format!("a duration {}", bounds.words))),
    }
}

/// A list of durations, the longest first and no two equal.
pub(super) fn durations(list: &List, bounds: Bounds) -> Result<Vec<Duration>, Unfit> {
    let mut durations =
        list.0.iter().map(|text| duration(text, bounds)).collect::<Result<Vec<_>, _>>().map_err(|_| {
            Unfit::Because(format!(
                "expected durations {}; one of {} is not",
                bounds.words,
                list.0.iter().map(|text| shown(text)).collect::<Vec<_>>().join(", ")
            ))
        })?;
    durations.sort_unstable_by(|one, other| other.cmp(one));
    durations.dedup();
    Ok(durations)
}

pub(super) fn keep_warm(text: &str, bounds: Bounds) -> Result<KeepWarm, Unfit> {
    let unfit = || Unfit::Expected(format!("\"always\" or \"fetched-within 24h\" with a duration {}", bounds.words));
    match text.split_once(' ') {
        None if text == "always" => Ok(KeepWarm::Always),
        Some(("fetched-within", within)) => {
            duration(within.trim(), bounds).map(KeepWarm::FetchedWithin).map_err(|_| unfit())
        }
        _ => Err(unfit()),
    }
}

pub(super) fn whole<T: TryFrom<i64>>(number: Whole, range: RangeInclusive<i64>) -> Result<T, Unfit> {
    let fits = Some(number.0).filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
    fits.ok_or_else(|| Unfit::Expected(format!("a whole number from {} to {}", range.start(), range.end())))
}

pub(super) fn real(number: Real, range: RangeInclusive<f64>) -> Result<f64, Unfit> {
    if range.contains(&number.0) {
        Ok(number.0)
    } else {
        Err(Unfit::Expected(format!("a number from {} to {}", range.start(), range.end())))
    }
}

/// A size in bytes: `"64MB"` (millions), `"256MiB"` (2^20), or a plain number of bytes.
pub(super) fn size(text: &Scalar, range: RangeInclusive<u64>, words: &str) -> Result<u64, Unfit> {
    let text = text.0.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: Option<u64> = match &*unit.trim().to_ascii_lowercase() {
        "" | "b" => Some(1),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes
        .filter(|bytes| range.contains(bytes))
        .ok_or_else(|| Unfit::Expected(format!("a size such as \"64MB\" or \"256MiB\", {words}")))
}

pub(super) fn path(text: &str) -> Result<PathBuf, Unfit> {
    if text.is_empty() || text.len() > MAX_PATH || text.chars().any(char::is_control) {
        return Err(Unfit::Because(format!("expected a path of 1 to {MAX_PATH} bytes without control characters")));
    }
    if text.contains("AGE-SECRET-KEY-") {
        return Err(Unfit::Because(
            "a secret must not be in the configuration; put it into a file and give that file's path".to_owned(),
        ));
    }
    Ok(Path::new(text).to_owned())
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, Unfit> {
    if text.len() > MAX_SOCKET_PATH {
        return Err(Unfit::Because(format!(
            "is {} bytes long; the path of a Unix socket can have {MAX_SOCKET_PATH} here",
            text.len()
        )));
    }
    path(text)
}

/// Permission bits of the socket file, written in octal.
pub(super) fn mode(text: &str) -> Result<u32, Unfit> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = if octal { u32::from_str_radix(digits, 8).ok() } else { None };
    // Execute and set-id bits mean nothing on a socket, and a worker without its own socket serves nobody.
    mode.filter(|mode| mode & !0o666 == 0 && mode & 0o600 == 0o600).ok_or_else(|| {
        Unfit::Expected(
            "octal permissions such as \"0660\": read and write bits only, and both for the owner".to_owned(),
        )
    })
}

/// The number of a group given by name or number.
pub(super) fn group(text: &Scalar) -> Result<u32, Unfit> {
    account(&text.0, "group", |name| uzers::get_group_by_name(name).map(|group| group.gid()))
}

/// The number of a user given by name or number.
pub(super) fn user(text: &Scalar) -> Result<u32, Unfit> {
    account(&text.0, "user", |name| uzers::get_user_by_name(name).map(|user| user.uid()))
}

fn account(text: &str, word: &str, look_up: impl Fn(&str) -> Option<u32>) -> Result<u32, Unfit> {
    if text.is_empty() || text.len() > MAX_ACCOUNT_NAME || text.chars().any(char::is_control) {
        return Err(Unfit::Expected(format!("the name or number of a {word}")));
    }
    let number = match text.parse::<i64>() {
        Ok(number) => return account_number(Whole(number)),
        Err(_) => look_up(text),
    };
    number.ok_or_else(|| {
        Unfit::Because(format!("no {word} is called {} on this machine; its number works everywhere", shown(text)))
    })
}

/// A uid or gid. The highest number means "none" to the kernel.
pub(super) fn account_number(number: Whole) -> Result<u32, Unfit> {
    whole(number, 0..=i64::from(u32::MAX) - 1)
}

pub(super) fn listen(text: &str) -> Result<SocketAddr, Unfit> {
    text.parse().map_err(|_| {
        Unfit::Expected("an IP address and a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"".to_owned())
    })
}

/// Whether what is sent to `url` stays on this machine. Of names only `localhost` is believed: RFC 6761 keeps `*.localhost`
/// too, but resolvers that do not know it ask the network.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// A URL that secrets may travel to: https, or http to this machine. What was given is shown without its path, since
/// the paths of webhooks can be secrets.
pub(super) fn url(text: &str) -> Result<Url, Unfit> {
    let advice = "expected an https URL (http for a loopback address only)";
    if text.len() > MAX_URL {
        return Err(Unfit::Because(format!("{advice} of at most {MAX_URL} bytes")));
    }
    let Ok(url) = Url::parse(text) else {
        return Err(Unfit::Because(advice.to_owned()));
    };
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(Unfit::Because(format!("{advice} without a user name, a password or a #fragment")));
    }
    match (url.scheme(), url.host_str()) {
        ("https", Some(_)) => Ok(url),
        ("http", Some(_)) if is_loopback(&url) => Ok(url),
        (scheme, Some(host)) => Err(Unfit::Because(format!("given {scheme}://{host}…; {advice}"))),
        (_, None) => Err(Unfit::Because(advice.to_owned())),
    }
}

/// A URL that others are made from by adding to its path: without a query.
pub(super) fn base_url(text: &str) -> Result<Url, Unfit> {
    let url = url(text)?;
    if url.query().is_some() {
        return Err(Unfit::Because("expected a URL without ?query: a path will be added to it".to_owned()));
    }
    Ok(url)
}

/// An IANA time zone, by the name that the database writes.
pub(super) fn time_zone(text: &str) -> Result<String, Unfit> {
    let known = jiff::tz::TimeZone::get(text).ok().and_then(|zone| zone.iana_name().map(str::to_owned));
    known.ok_or_else(|| {
        Unfit::Expected("a time zone of the IANA database, such as \"Europe/Copenhagen\" or \"UTC\"".to_owned())
    })
}

/// A cron pattern as tokio-cron-scheduler reads it: seconds first.
pub(super) fn cron(text: &str) -> Result<String, Unfit> {
    let parser = CronParser::builder().seconds(Seconds::Required).build();
    if text.len() <= MAX_CRON && text.is_ascii() && parser.parse(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(Unfit::Expected(
        "a cron pattern of six fields (second, minute, hour, day of month, month, day of week), such as \"0 0 8 * * Mon-Fri\""
            .to_owned(),
    ))
}

/// Kinds of events, or their beginnings with a `*`; of the live ones no webhook is told.
pub(super) fn events(list: &List) -> Result<Vec<String>, Unfit> {
    let kinds = EventKind::ALL.into_iter().filter(|kind| !kind.is_live_only());
    let events: Vec<&str> = kinds.map(EventKind::word).collect();
    for event in &list.0 {
        let known = match event.strip_suffix('*') {
            Some(beginning) => events.iter().any(|known| known.starts_with(beginning)),
            None => events.contains(&event.as_str()),
        };
        if !known {
            let advice = match nearest(event, &events) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("known: {}, and beginnings of them with * at the end", events.join(", ")),
            };
            return Err(Unfit::Because(format!("no event is called {}; {advice}", shown(event))));
        }
    }
    Ok(list.0.clone())
}

/// Age recipients: public keys that a vault can be sealed to.
pub(super) fn recipients(list: &List) -> Result<Vec<String>, Unfit> {
    for (index, recipient) in list.0.iter().enumerate() {
        if recipient.to_uppercase().contains("AGE-SECRET-KEY-") {
            return Err(Unfit::Because(
                "holds an age identity, which is secret; expected recipients, which begin with age1".to_owned(),
            ));
        }
        if let Err(error) = recipient.parse::<age::x25519::Recipient>() {
            return Err(Unfit::Because(format!("item {} is not an age recipient (age1…): {error}", index + 1)));
        }
    }
    Ok(list.0.clone())
}

/// OAuth scopes: visible ASCII without `"` and `\` (RFC 6749 section 3.3).
pub(super) fn scopes(list: &List) -> Result<Vec<String>, Unfit> {
    for scope in &list.0 {
        let fits = !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'));
        if !fits {
            return Err(Unfit::Because(format!(
                "{} is not one scope; write each as an item of its own, without spaces",
                shown(scope)
            )));
        }
    }
    Ok(list.0.clone())
}

/// A client id: visible ASCII and spaces (RFC 6749 appendix A.1).
pub(super) fn client_id(text: &str) -> Result<String, Unfit> {
    if (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return Ok(text.to_owned());
    }
    Err(Unfit::Expected("a client id of 1 to 256 ASCII characters".to_owned()))
}

/// A name that people read.
pub(super) fn shown_name(text: &str) -> Result<String, Unfit> {
    let text = text.trim();
    if (1..=MAX_SHOWN_NAME).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(Unfit::Expected(format!("a name of 1 to {MAX_SHOWN_NAME} characters on one line")))
}

/// What the issuer is to ask its user (`OpenID` Connect Core section 3.1.2.1); `none` would show nobody anything.
pub(super) fn prompt(text: &str) -> Result<String, Unfit> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    if !words.is_empty() && words.iter().all(|word| matches!(*word, "login" | "consent" | "select_account")) {
        return Ok(words.join(" "));
    }
    Err(Unfit::Expected("login, consent or select_account, or several of them with spaces between".to_owned()))
}

/// A level or filter of log lines, as `tracing_subscriber::EnvFilter` reads it; but a bare word must be a level, since
/// the filter would take a mistyped one for a module and then log nothing. Its parser cuts text by the byte and panics
/// within a longer character, so that only plain ASCII gets there.
pub(super) fn log_level(text: &str) -> Result<String, Unfit> {
    let plain = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
    let ascii = text.bytes().all(|b| b.is_ascii_graphic());
    if ascii && text.split(',').all(plain) && EnvFilter::builder().parse(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(Unfit::Expected(
        "off, error, warn, info, debug, trace, or a filter such as \"info,consentry::vault=debug\"".to_owned(),
    ))
}

/// A list with no more items than `most`, and at least one where that is asked.
pub(super) fn bounded(list: List, range: RangeInclusive<usize>) -> Result<List, Unfit> {
    if range.contains(&list.0.len()) {
        return Ok(list);
    }
    Err(Unfit::Because(format!("has {} items; {} to {} are allowed", list.0.len(), range.start(), range.end())))
}
