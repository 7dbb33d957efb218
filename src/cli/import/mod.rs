mod line;
mod progress;
mod read;

use std::{
    io::{self, BufReader},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use self::{
    progress::{Progress, Taken},
    read::Numbered,
};
use super::{
    Exit, Failure, Global,
    parse::{self, Source},
    print::Out,
    sandbox::interrupted,
};
use crate::{
    client::{Client, ClientError, Enrolled},
    wire::Code,
};

/// Requests under way at once, each on a connection of its own.
const IN_FLIGHT: usize = 32;
/// Lines that wait for one connection.
const WAITING: usize = 4;
/// How often a line is sent again where the worker asks to wait.
const MAX_RETRIES: u32 = 8;
/// The longest single wait before a line is sent again.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How much of the input is read at once, in bytes.
const READ_BUFFER: usize = 256 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "A line is a JSON object, at most 64 KiB long:\n  \
    {\"organization\":\"123456\",\"provider\":\"visma-connect\",\"refresh_token\":\"…\",\"granted_at\":\"2026-01-31T12:00:00Z\"}\n\n\
    Further keys: api_key (instead of refresh_token), client_id, client_secret, expires_at, usage, grace, labels.\n\
    Lines are stored at once and exchanged by the queue. Running it again is harmless.\n\n\
    Examples:\n  consentry import fleet.jsonl\n  age -d fleet.jsonl.age | consentry import -")]
pub(super) struct ImportArgs {
    /// JSON Lines; - for standard input
    #[arg(value_name = "FILE")]
    file: Source,
    /// Wait for the first exchange of each line, which proves it
    #[arg(long)]
    verify: bool,
}

/// `consentry import`
pub(super) async fn import(global: &Global, args: ImportArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = Arc::new(global.client()?);
    let (input, length) = open(&args.file)?;
    // Without a worker no line can be taken: say so once, before reading.
    client.is_live().await?;

    let progress = Arc::new(Progress::new(length));
    let mut stations = JoinSet::new();
    let mut senders = Vec::with_capacity(IN_FLIGHT);
    for _ in 0..IN_FLIGHT {
        let (sender, receiver) = mpsc::channel(WAITING);
        senders.push(sender);
        stations.spawn(send_lines(Arc::clone(&client), receiver, Arc::clone(&progress)));
    }
    let (done, read) = oneshot::channel();
    let reader = Arc::clone(&progress);
    // A thread of its own, since a read of standard input can be neither awaited nor ended.
    std::thread::spawn(move || {
        let _nobody_waits = done.send(read::lines(input, args.verify, &senders, &reader));
    });

    let ended = tokio::select! {
        ended = all_sent(&mut stations) => ended.map_err(Failure::from),
        signal = interrupted() => Err(signal.err().unwrap_or_else(|| Failure::failed("interrupted"))),
    };
    stations.abort_all();
    progress.end();
    let counts = progress.counts();
    if let Err(failure) = ended {
        let taken = counts.enrolled + counts.replaced + counts.unchanged;
        return Err(
            failure.with_hint(format!("{taken} lines had been taken; run it again for the rest, which is harmless"))
        );
    }
    if let Ok(Err(error)) = read.await {
        return Err(Failure::failed(format!("cannot read on: {error}"))
            .with_hint("what was read until then has been sent; run it again for the rest, which is harmless"));
    }
    if global.json {
        out.json(&counts)?;
    } else {
        out.line(format_args!(
            "{} enrolled, {} replaced, {} unchanged, {} failed",
            counts.enrolled, counts.replaced, counts.unchanged, counts.failed
        ))?;
    }
    Ok(if counts.failed == 0 { Exit::Done } else { Exit::Failed })
}

/// Until every line was sent, or one of the senders says that no other can be.
async fn all_sent(stations: &mut JoinSet<Result<(), ClientError>>) -> Result<(), ClientError> {
    while let Some(station) = stations.join_next().await {
        if let Ok(ended) = station {
            ended?;
        }
    }
    Ok(())
}

type Input = BufReader<Box<dyn io::Read + Send>>;

fn open(source: &Source) -> Result<(Input, Option<u64>), Failure> {
    let (input, length): (Box<dyn io::Read + Send>, _) = match source {
        Source::Stdin => (Box::new(io::stdin()), None),
        Source::File(path) => {
            let cannot = |error| Failure::failed(format!("cannot read {}: {error}", path.display()));
            let file = parse::open(path).map_err(cannot)?;
            let metadata = file.metadata().map_err(cannot)?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
    };
    Ok((BufReader::with_capacity(READ_BUFFER, input), length))
}

/// Sends lines one after the other. Ends with an error only where no later line could fare better.
async fn send_lines(
    client: Arc<Client>,
    mut lines: mpsc::Receiver<Numbered>,
    progress: Arc<Progress>,
) -> Result<(), ClientError> {
    while let Some(Numbered { number, line }) = lines.recv().await {
        match send_line(&client, &line).await {
            Ok(enrolled) => progress.taken(taken(&enrolled)),
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => progress.failed(number, &format!("{}: {error}", line.organization)),
        }
    }
    Ok(())
}

async fn send_line(client: &Client, line: &line::Line) -> Result<Enrolled, ClientError> {
    let mut retries = 0;
    loop {
        match client.put_json(&line.organization, line.body.clone()).await {
            Err(error) if retries < MAX_RETRIES => match pause_before_retry(&error, retries) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
            answer => return answer,
        }
        retries += 1;
    }
}

/// How long to wait where waiting may help: what the worker says, else twice as long each time.
fn pause_before_retry(error: &ClientError, retries: u32) -> Option<Duration> {
    let ClientError::Problem { problem, retry_after } = error else { return None };
    let may_help = matches!(problem.code, Code::Starting | Code::VaultUnavailable | Code::TooManyRequests);
    let doubled = Duration::from_millis(250).saturating_mul(2_u32.saturating_pow(retries));
    may_help.then(|| retry_after.unwrap_or(doubled).min(MAX_PAUSE))
}

const fn ends_all(error: &ClientError) -> bool {
    matches!(error, ClientError::NotRunning { .. } | ClientError::Denied { .. } | ClientError::Untrusted { .. })
}

const fn taken(enrolled: &Enrolled) -> Taken {
    match (enrolled.created, enrolled.changed) {
        (true, _) => Taken::Enrolled,
        (false, Some(false)) => Taken::Unchanged,
        (false, _) => Taken::Replaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Problem;

    fn problem(code: Code, retry_after: Option<Duration>) -> ClientError {
        let detail = "d".to_owned();
        let problem = Problem {
            renewal_url: None,
            kind: "t".into(),
            title: "t".into(),
            status: code.status(),
            detail,
            code,
            reason: None,
            since: None,
        };
        ClientError::Problem { problem: Box::new(problem), retry_after }
    }

    #[test]
    fn a_line_is_sent_again_only_where_waiting_may_help() {
        let pause = |code, after| pause_before_retry(&problem(code, after), 2);
        assert_eq!(pause(Code::Starting, Some(Duration::from_secs(1))), Some(Duration::from_secs(1)));
        assert_eq!(pause(Code::VaultUnavailable, None), Some(Duration::from_secs(1)));
        assert_eq!(pause(Code::TooManyRequests, Some(Duration::from_hours(1))), Some(MAX_PAUSE));
        assert_eq!(pause(Code::AlreadySpent, None), None);
        assert_eq!(pause(Code::Refused, None), None);
    }

    #[test]
    fn only_a_worker_that_is_gone_ends_the_whole_import() {
        assert!(ends_all(&ClientError::NotRunning { path: "/s".into() }));
        assert!(!ends_all(&problem(Code::Forbidden, None)));
        assert!(!ends_all(&ClientError::Protocol("x".into())));
    }
}
