//! Processes: where they run, and what they cost.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// The unit of processor time in `/proc`: `USER_HZ`, which is 100 on every architecture that Linux calls its own.
const TICK: Duration = Duration::from_millis(10);
/// How long a process may take to end.
const PATIENCE: Duration = Duration::from_mins(1);
/// What tells a benchmark's binary that it is started by itself, and as what.
const ROLE: &str = "CONSENTRY_BENCH_ROLE";

/// The cores for the two sides of a benchmark; `None` where this process may use fewer than two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) subject: Option<usize>,
    pub(crate) other: Option<usize>,
}

impl Cores {
    /// The first two that this process may use.
    pub(crate) fn pick() -> Self {
        let allowed = sched_getaffinity(None).unwrap_or_default();
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        match (cores.next(), cores.next()) {
            (Some(other), Some(subject)) if on_core(Some(subject), || ()).is_ok() => {
                Self { subject: Some(subject), other: Some(other) }
            }
            _ => Self { subject: None, other: None },
        }
    }

    /// Where to measure what should be measured on one core and on all, with what to call that: on all alone where none can be chosen.
    pub(crate) fn places(self) -> impl Iterator<Item = (Option<usize>, &'static str)> {
        let one = self.subject.map(|core| (Some(core), "one"));
        one.into_iter().chain([(None, "all")])
    }

    /// For the report.
    pub(crate) fn in_words(self) -> String {
        match (self.subject, self.other) {
            (Some(subject), Some(other)) => format!("what is measured is pinned to core {subject}, the other side to core {other}"),
            _ => "nothing is pinned: this process may not choose among two cores, so that both sides get in each other's way".to_owned(),
        }
    }
}

/// Runs `f` with this thread on one core; what it starts meanwhile inherits that.
pub(crate) fn on_core<T>(core: Option<usize>, f: impl FnOnce() -> T) -> Result<T> {
    let Some(core) = core else { return Ok(f()) };
    let before = sched_getaffinity(None).context("the affinity of this thread")?;
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).context("pinning this thread")?;
    let result = f();
    sched_setaffinity(None, &before).context("letting this thread go again")?;
    Ok(result)
}

/// What makes a process take the certificates of this file for the machine's.
pub(crate) fn trusting(authority: Option<&str>) -> Option<(&'static str, &str)> {
    authority.map(|file| ("SSL_CERT_FILE", file))
}

/// What this process was started as by [`Process::role`], if it was, with its arguments.
pub(crate) fn role() -> Option<(String, Vec<String>)> {
    let role = std::env::var(ROLE).ok()?;
    Some((role, std::env::args().skip(1).collect()))
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `command` on `core`.
    pub(crate) fn start(command: &mut Command, core: Option<usize>) -> Result<Self> {
        let mut child = on_core(core, || command.stdin(Stdio::null()).spawn())??;
        let lines = child.stdout.take().map(BufReader::new);
        Ok(Self { child, lines })
    }

    /// Starts this very binary on `core` in another role.
    pub(crate) fn role(role: &str, arguments: &[String], core: Option<usize>) -> Result<Self> {
        Self::role_trusting(None, role, arguments, core)
    }

    /// As [`role`](Self::role), where it believes nobody but the one with that certificate.
    pub(crate) fn role_trusting(
        authority: Option<&str>,
        role: &str,
        arguments: &[String],
        core: Option<usize>,
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE, role).envs(trusting(authority)).args(arguments).stdout(Stdio::piped());
        Self::start(&mut command, core)
    }

    /// The next line that it writes on its standard output.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.as_mut().context("its output is not read")?.read_line(&mut line)?;
        if line.is_empty() {
            bail!("a process of the benchmark ended before it said anything");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that all of its threads have used, in user mode and in the kernel.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is the name, in parentheses, and may hold spaces.
        let fields = text.rsplit_once(')').context("stat")?.1;
        let ticks = |at: usize| -> Result<u32> { Ok(fields.split_whitespace().nth(at).context("stat")?.parse()?) };
        Ok(TICK * (ticks(11)? + ticks(12)?))
    }

    /// What of it was used since it was `before`.
    pub(crate) fn cpu_since(&self, before: Duration) -> Result<Duration> {
        Ok(self.cpu()?.saturating_sub(before))
    }

    /// A line of `/proc/PID/status` in bytes, e.g. `VmRSS`.
    pub(crate) fn status_bytes(&self, name: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with(name)).context("no such line in status")?;
        let kibibytes: u64 = line.split_whitespace().nth(1).context("status")?.parse()?;
        Ok(kibibytes * 1024)
    }

    /// Asks it to end and waits until it has.
    pub(crate) fn terminate(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("a process of the benchmark does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { bail!("a process of the benchmark failed: {status}") }
    }

    /// Waits until it has ended by itself, and gives all processor time that it used.
    pub(crate) fn wait_counted(self) -> Result<Duration> {
        let stat = format!("/proc/{}/stat", self.child.id());
        // One that has ended keeps its figures until somebody waits for it.
        while !fs::read_to_string(&stat)?.rsplit_once(')').context("stat")?.1.trim_start().starts_with('Z') {
            std::thread::sleep(Duration::from_millis(1));
        }
        let used = self.cpu()?;
        self.wait()?;
        Ok(used)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
