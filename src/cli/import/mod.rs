mod line;
mod progress;
mod read;

use std::{
    io::{self, BufReader},
    sync::Arc,
};

use bytes::Bytes;
use clap::Args;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use self::{
    line::Line,
    progress::{Progress, Taken},
    read::Numbered,
};
use super::{
    Exit, Failure, Global,
    again::{again, ends_all, may_pass},
    parse::{self, Source},
    print::Out,
    sandbox::interrupted,
};
use crate::{
    client::{Client, ClientError},
    model::MAX_ORGANIZATION_ID,
    task,
    wire::EnrolmentResult,
};

/// Requests under way at once, each on a connection of its own.
const IN_FLIGHT: usize = 32;
/// Lines that are sent in one request, and as many that wait for one connection: what a request costs is then little beside them.
const TOGETHER: usize = 16;
/// The largest body that is sent among others, in bytes. [`TOGETHER`] of them are well below what a request may hold.
const MAX_TOGETHER: usize = 16 * 1024;
/// What an organization's id adds to a line at most, in bytes.
const MAX_ID: usize = MAX_ORGANIZATION_ID + 24;
/// The status of an organization that is new.
const CREATED: u16 = 201;
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
        let (sender, receiver) = mpsc::channel(TOGETHER);
        senders.push(sender);
        stations.spawn(task::boxed(send_lines(Arc::clone(&client), receiver, Arc::clone(&progress))));
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

/// Sends lines in their order, those that wait together in one request. Ends with an error only where no later line could
/// fare better.
async fn send_lines(
    client: Arc<Client>,
    mut lines: mpsc::Receiver<Numbered>,
    progress: Arc<Progress>,
) -> Result<(), ClientError> {
    let mut waiting = Vec::with_capacity(TOGETHER);
    while lines.recv_many(&mut waiting, TOGETHER).await > 0 {
        for run in waiting.chunk_by(|one, next| goes_with_others(&one.line) && goes_with_others(&next.line)) {
            match run {
                [alone] => send_alone(&client, alone, &progress).await?,
                many => send_together(&client, many, &progress).await?,
            }
        }
        waiting.clear();
    }
    Ok(())
}

/// Whether a line may share a request. One that is exchanged first would hold up the others.
fn goes_with_others(line: &Line) -> bool {
    !line.verify && line.body.len() <= MAX_TOGETHER
}

async fn send_alone(
    client: &Client,
    Numbered { number, line }: &Numbered,
    progress: &Progress,
) -> Result<(), ClientError> {
    match again(|| client.put_json(&line.organization, line.body.clone())).await {
        Ok(enrolled) => progress.taken(taken(enrolled.created, enrolled.changed)),
        Err(error) if ends_all(&error) => return Err(error),
        Err(error) => progress.failed(*number, &format!("{}: {error}", line.organization)),
    }
    Ok(())
}

/// Sends lines in one request. Where the worker takes none of them as they are, or asks to wait with one, they are sent by
/// themselves: to send a line again is harmless.
async fn send_together(client: &Client, lines: &[Numbered], progress: &Progress) -> Result<(), ClientError> {
    let mut body = Vec::with_capacity(lines.iter().map(|numbered| numbered.line.body.len() + MAX_ID).sum());
    for numbered in lines {
        numbered.line.write_to(&mut body);
    }
    let body = Bytes::from(body);
    let results = match again(|| client.enrol_lines(body.clone())).await {
        Ok(results) => results,
        Err(error) if ends_all(&error) => return Err(error),
        Err(_) => Vec::new(),
    };
    let mut alone: Vec<&Numbered> = Vec::new();
    for (numbered, place) in lines.iter().zip(1..) {
        let line = &numbered.line;
        // What follows a line that is sent again has to follow it once more.
        let follows = alone.iter().any(|before| before.line.organization == line.organization);
        match results.iter().find(|result| result.line == place) {
            Some(EnrolmentResult { status, changed, problem: None, .. }) if !follows => {
                progress.taken(taken(*status == CREATED, *changed));
            }
            Some(EnrolmentResult { problem: Some(problem), .. }) if !follows && !may_pass(problem.code) => {
                progress.failed(numbered.number, &format!("{}: {}", line.organization, problem.detail));
            }
            _ => alone.push(numbered),
        }
    }
    for numbered in alone {
        send_alone(client, numbered, progress).await?;
    }
    Ok(())
}

const fn taken(created: bool, changed: Option<bool>) -> Taken {
    match (created, changed) {
        (true, _) => Taken::Enrolled,
        (false, Some(false)) => Taken::Unchanged,
        (false, _) => Taken::Replaced,
    }
}
