//! The engine answers some damaged files with a panic. Here a panic becomes an error, and is not printed.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

/// The longest part of a panic's message that is passed on, in bytes.
const MAX_MESSAGE: usize = 200;

thread_local! {
    /// Whether a panic of this thread is caught by [`caught`] and so is nobody's to print.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic in it comes back as its message, and nothing is printed.
///
/// The process's panic hook is wrapped once: it passes on every panic but those of threads that are inside this
/// function, and those of the engine's own threads, whose failures come back through the engine.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() && !is_engine_thread() {
                previous(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(before);
    result.map_err(|panic| message(&*panic))
}

fn is_engine_thread() -> bool {
    std::thread::current().name().is_some_and(|name| name.starts_with("sled-") || name == "log flusher")
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it panicked");
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_comes_back_as_one_short_line() {
        let long = "x".repeat(1000);
        assert_eq!(caught(|| panic!("damaged page\nbacktrace")), Err::<(), _>("damaged page".to_owned()));
        assert_eq!(caught(|| panic!("{long}")).map_err(|text: String| text.len()), Err::<(), _>(MAX_MESSAGE));
        assert_eq!(caught(|| 7), Ok(7));
    }
}
