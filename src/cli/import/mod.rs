mod line;
mod progress;
mod read;

use std::{
    io::{self, BufReader},
    sync::Arc,
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
    again::{again, ends_all},
    parse::{self, Source},
    print::Out,
    sandbox::interrupted,
};
use crate::client::{Client, ClientError, Enrolled};

/// Requests under way at once, each on a connection of its own.
const IN_FLIGHT: usize = 32;
/// Lines that wait for one connection.
const WAITING: usize = 4;
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
        match again(|| client.put_json(&line.organization, line.body.clone())).await {
            Ok(enrolled) => progress.taken(taken(&enrolled)),
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => progress.failed(number, &format!("{}: {error}", line.organization)),
        }
    }
    Ok(())
}

const fn taken(enrolled: &Enrolled) -> Taken {
    match (enrolled.created, enrolled.changed) {
        (true, _) => Taken::Enrolled,
        (false, Some(false)) => Taken::Unchanged,
        (false, _) => Taken::Replaced,
    }
}
