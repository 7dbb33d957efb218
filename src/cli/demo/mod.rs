mod scene;
mod stage;
mod view;

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::{scene::Scene, stage::Stage, view::View};
use super::{Exit, Failure, parse, print::Out, sandbox::interrupted};

/// How often the worker is asked and the view drawn anew.
const TICK: Duration = Duration::from_millis(500);
/// A fetch of each organization's token every so many ticks.
const TICKS_PER_FETCH: u64 = 6;
/// The longest `--for`.
const MAX_RUN: Duration = Duration::from_hours(7 * 24);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consentry demo\n  consentry demo --for 30s\n\n\
    Everything happens in this process and in a temporary folder, which is removed at the end.")]
pub(super) struct DemoArgs {
    /// End after this time; exit 0 only if every organization was refreshed and fetched
    #[arg(long = "for", value_name = "DURATION", value_parser = parse::duration)]
    run_for: Option<Duration>,
}

/// `consentry demo`
pub(super) async fn demo(args: DemoArgs, out: &mut Out) -> Result<Exit, Failure> {
    let stage = Stage::set().await?;
    let result = play(&stage, args.run_for, out).await;
    stage.strike().await;
    result
}

/// Enrols the organizations and shows what happens until the time is over or somebody interrupts.
async fn play(stage: &Stage, run_for: Option<Duration>, out: &mut Out) -> Result<Exit, Failure> {
    let mut scene = Scene::new(stage.clock());
    let mut view = View::new(stage, out)?;
    for act in Stage::acts() {
        let organization = stage.enrol(&act).await?;
        scene.enrolled(&act, organization);
    }
    let curtain = Instant::now() + run_for.unwrap_or(MAX_RUN).min(MAX_RUN);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let interrupted = interrupted();
    tokio::pin!(interrupted);
    let mut number = 0;
    let timed_out = loop {
        tokio::select! {
            _ = ticks.tick() => {
                if number % TICKS_PER_FETCH == 0 {
                    scene.fetch(stage.client()).await;
                }
                scene.look(stage.client()).await;
                view.draw(&scene, out)?;
                number += 1;
            }
            () = tokio::time::sleep_until(curtain) => break run_for.is_some(),
            signal = &mut interrupted => {
                signal?;
                break false;
            }
        }
    };
    view.end(&scene, stage, out)?;
    let replays = stage.issuer().replays();
    if replays > 0 {
        return Err(Failure::failed(format!("the issuer saw {replays} replays of a spent refresh token")));
    }
    // Whoever interrupts has seen enough; whoever gave a time wants to know whether it worked.
    match scene.shortfalls() {
        missing if timed_out && !missing.is_empty() => Err(Failure::failed(missing.join("; "))
            .with_hint("give it longer: an access token lives 8 s here and is refreshed after about 6")),
        _ => Ok(Exit::Done),
    }
}
