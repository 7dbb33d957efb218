//! Logs: one line an event on standard error, as text or JSON, with the time in UTC.
//!
//! # Field names
//!
//! Lower case, dots between the parts, the unit last where there is one: `organization`, `provider`, `state`,
//! `reason`, `attempt`, `receiver`, `event.id`, `http.status`, `took.ms`, `retry_after.s`, `socket.path`, `peer.uid`, `vault.records`,
//! `error`. The message is a constant sentence without values, so that lines can be counted; values are fields. A
//! failure is logged once, where it is handled.
//!
//! # Never logged
//!
//! - access tokens, refresh tokens, API keys, client secrets, webhook secrets, age identities, data keys
//! - authorization codes, `state`, PKCE verifiers, consent links (whoever holds one can use it)
//! - request and answer bodies, and the `Authorization` header, of any call to a provider
//! - of a webhook's URL more than its host, and the bodies that are posted, which hold such links
//! - an issuer's name for a person (`subject`), and labels, which may hold names or addresses
//!
//! An organization's id is no secret and is what an operator searches for.
//!
//! Libraries that carry these things (the HTTP client and server, TLS) print headers and bodies at their debug
//! levels. So every target but our own is cut off above `warn`, whatever the configured filter says.

use std::{
    borrow::Cow,
    fmt,
    io::IsTerminal as _,
    panic::{self, PanicHookInfo},
    sync::Arc,
};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::{FilterExt as _, ParseError, filter_fn},
    fmt::{MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
};

use crate::{
    clock::{SharedClock, SystemClock},
    config::{LogConfig, LogFormat},
};

/// The target of our own events; a module below it follows after `::`.
const OWN: &str = "consentry";
/// The most that a library may log.
const LIBRARY_CEILING: Level = Level::WARN;
/// How much of a panic's message is logged, in characters.
const MAX_PANIC_MESSAGE: usize = 500;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is neither a level nor a filter.
    #[error("log.level {level:?} cannot be read: {source}")]
    Level {
        /// What was configured.
        level: String,
        /// Why it cannot be read.
        source: ParseError,
    },
    /// This process logs already.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the whole process, and lets a panic be one line of the log. Once per process.
pub fn init(log: &LogConfig) -> Result<(), TelemetryError> {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let clock = Arc::new(SystemClock::new());
    tracing::subscriber::set_global_default(subscriber(log, clock, colours, std::io::stderr)?)
        .map_err(|_| TelemetryError::Twice)?;
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// The subscriber for `log`, writing to `writer`.
fn subscriber<W>(
    log: &LogConfig,
    clock: SharedClock,
    colours: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(&log.level)?.and(filter_fn(within_ceiling));
    let lines = tracing_subscriber::fmt::layer().with_timer(LogTime(clock)).with_writer(writer);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(colours).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    Ok(Registry::default().with(lines.with_filter(filter)))
}

/// A bare level is for our own events, and libraries then say no more than warnings; the audit log is written whatever
/// the level. A filter is taken as it is.
fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let level = level.trim();
    let bare = level.parse::<tracing::level_filters::LevelFilter>();
    let directives = match bare {
        Ok(own) => format!("{},{OWN}={own},{OWN}::audit=info", own.min(LIBRARY_CEILING.into())),
        Err(_) => level.to_owned(),
    };
    EnvFilter::builder().parse(directives).map_err(|source| TelemetryError::Level { level: level.to_owned(), source })
}

fn within_ceiling(metadata: &Metadata<'_>) -> bool {
    let rest = metadata.target().strip_prefix(OWN);
    let own = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    own || *metadata.level() <= LIBRARY_CEILING
}

/// RFC 3339 in UTC with milliseconds.
struct LogTime(SharedClock);

impl FormatTime for LogTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let now = jiff::Timestamp::from_millisecond(self.0.now().wall.as_millis()).map_err(|_| fmt::Error)?;
        write!(writer, "{now:.3}")
    }
}

/// Logs where and why a panic happened, on one line and without a backtrace.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let message = panic_message(panic.payload_as_str().unwrap_or("no message"));
    tracing::error!(location, thread = thread.name().unwrap_or("unnamed"), reason = %message, "panicked");
}

/// The message as it may be logged. Cutting a string at a bad place panics with the string itself in the message, and
/// the string could be a secret: such a message ends before the quote.
fn panic_message(message: &str) -> Cow<'_, str> {
    let about_a_string = ["byte index", "char boundary", "when slicing", "out of bounds of `"];
    let message = match message.find('`') {
        Some(quote) if about_a_string.iter().any(|words| message.contains(words)) => &message[..quote],
        _ => message,
    };
    let cut = message.char_indices().nth(MAX_PANIC_MESSAGE).map_or(message.len(), |(at, _)| at);
    if message[..cut].contains(['\n', '\r']) {
        Cow::Owned(message[..cut].replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(&message[..cut])
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::*;
    use crate::{clock::ManualClock, model::Timestamp};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, events: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let clock = ManualClock::at(Timestamp::from_millis(1_700_000_000_123));
        let log = LogConfig { format, level: level.to_owned() };
        let subscriber = subscriber(&log, clock, false, move || writer.clone()).expect("a good level");
        tracing::subscriber::with_default(subscriber, events);
        let bytes = lines.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn some_events() {
        tracing::trace!(target: "consentry::vault", "own trace");
        tracing::info!(target: "consentry::vault", "own info");
        tracing::error!(target: "consentry", "own error");
        tracing::warn!(target: "sled::pagecache", "their warning");
        tracing::info!(target: "sled::pagecache", "their info");
    }

    #[test]
    fn a_level_is_for_our_own_events_and_libraries_only_warn() {
        let heard = |level: &str| {
            let text = logged(level, LogFormat::Text, some_events);
            ["own trace", "own info", "own error", "their warning", "their info"].map(|event| text.contains(event))
        };
        assert_eq!(heard("info"), [false, true, true, true, false]);
        assert_eq!(heard("trace"), [true, true, true, true, false]);
        assert_eq!(heard("error"), [false, false, true, false, false]);
        assert_eq!(heard("off"), [false; 5]);
        assert_eq!(heard("consentry::vault=info"), [false, true, false, false, false]);
    }

    #[test]
    fn no_filter_lets_a_library_print_details() {
        for level in ["trace", "hyper=trace,reqwest=trace,h2=debug", "consentry=info,hyper[]=trace", "consentryx=trace"]
        {
            let text = logged(level, LogFormat::Json, || {
                tracing::trace!(target: "hyper::proto::h1", headers = "Bearer s3cret", "headers");
                tracing::debug!(target: "reqwest::connect", body = "s3cret", "body");
                tracing::info!(target: "h2", frame = "s3cret", "frame");
                tracing::debug!(target: "consentryx", "s3cret");
            });
            assert_eq!(text, "", "{level}");
        }
    }

    #[test]
    fn an_event_is_one_line_with_the_time_in_utc() {
        let event = || tracing::info!(target: "consentry::api", organization = "dk\n1", took.ms = 3, "fetched");
        assert_eq!(
            logged("info", LogFormat::Json, event),
            "{\"timestamp\":\"2023-11-14T22:13:20.123Z\",\"level\":\"INFO\",\"message\":\"fetched\",\"organization\":\"dk\\n1\",\"took.ms\":3,\"target\":\"consentry::api\"}\n"
        );
        assert_eq!(
            logged("info", LogFormat::Text, event),
            "2023-11-14T22:13:20.123Z  INFO consentry::api: fetched organization=\"dk\\n1\" took.ms=3\n"
        );
    }

    #[test]
    fn a_level_that_is_none_is_an_error() {
        let log = LogConfig { format: LogFormat::Text, level: "consentry=loud".to_owned() };
        let clock = ManualClock::at(Timestamp::default());
        let error = subscriber(&log, clock, false, io::sink).err().expect("an error");
        assert!(error.to_string().starts_with("log.level \"consentry=loud\" cannot be read: "), "{error}");
    }

    /// The message of a real panic, so that a change of the standard library's wording is noticed.
    fn message_of(panics: impl FnOnce() + panic::UnwindSafe) -> String {
        let payload = panic::catch_unwind(panics).expect_err("it panics");
        payload.downcast_ref::<String>().cloned().expect("a formatted message")
    }

    #[test]
    fn a_panic_about_a_string_does_not_show_the_string() {
        let secret = String::from("s3crét-s3crét");
        let slices: [&(dyn Fn() + panic::RefUnwindSafe); 4] = [
            &|| drop(secret[..5].to_owned()),
            &|| drop(secret[99..].to_owned()),
            &|| drop(secret[..99].to_owned()),
            &|| {
                let (from, to) = (4, 2);
                drop(secret[from..to].to_owned());
            },
        ];
        for slice in slices {
            let message = message_of(slice);
            assert!(!panic_message(&message).contains("s3cr"), "{message}");
        }
    }

    #[test]
    fn a_panic_is_one_line_and_not_too_long() {
        assert_eq!(panic_message("left: 1\nright: 2"), "left: 1 right: 2");
        assert_eq!(panic_message("the `index` is known"), "the `index` is known");
        assert_eq!(panic_message(&"æ".repeat(1000)).chars().count(), MAX_PANIC_MESSAGE);
    }
}
