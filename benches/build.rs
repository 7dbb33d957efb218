//! How long a clean release build takes, and how large the binary is. Not part of `make bench`, since it builds every
//! dependency anew in a folder of its own: `make bench NAME=build`, on a machine with nothing else to do.

#![expect(clippy::cast_precision_loss, reason = "sizes and counts are shown with three digits")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use self::common::report::{Report, table};

/// The unit of processor time in `/proc`: `USER_HZ`, which is 100 on every architecture that Linux calls its own.
const TICK: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    let mut report = Report::new("build");
    let target = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--release", "--bin", "consentry"]).env("CARGO_TARGET_DIR", target.path());
    let started = Instant::now();
    let ended = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).status()?;
    let took = started.elapsed();
    ensure!(ended.success(), "the build failed: {ended}");
    let cpu = cpu_of_children()?;
    let bytes = fs::metadata(target.path().join("release/consentry"))?.len();
    let megabytes = bytes as f64 / 1e6;
    table(
        &["clean release build s", "CPU s", "binary MB"],
        &[vec![format!("{:.0}", took.as_secs_f64()), format!("{:.0}", cpu.as_secs_f64()), format!("{megabytes:.1}")]],
    );
    report.keep("seconds", json!(took.as_secs_f64()));
    report.keep("cpu_seconds", json!(cpu.as_secs_f64()));
    report.keep("binary_bytes", json!(bytes));
    report.finish()
}

/// Processor time of every process that this one has started and waited for, and of theirs.
fn cpu_of_children() -> Result<Duration> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit_once(')').context("stat")?.1;
    let ticks = |at: usize| -> Result<u32> { Ok(fields.split_whitespace().nth(at).context("stat")?.parse()?) };
    Ok(TICK * (ticks(13)? + ticks(14)?))
}
