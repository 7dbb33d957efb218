use std::{collections::VecDeque, sync::Arc};

use tokio::sync::broadcast::{self, error::RecvError};

use crate::model::Event;

/// Events one after the other, from some moment on and without a gap.
#[derive(Debug)]
pub struct Follower {
    past: VecDeque<Arc<Event>>,
    told: broadcast::Receiver<Arc<Event>>,
    live: broadcast::Receiver<Arc<Event>>,
}

/// Whoever follows takes its events too slowly: it has missed some, and may come back with the id of its last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("events come faster than they are taken; resume with the id of the last one")]
pub struct FellBehind;

impl Follower {
    pub(super) fn new(
        past: Vec<Arc<Event>>,
        told: broadcast::Receiver<Arc<Event>>,
        live: broadcast::Receiver<Arc<Event>>,
    ) -> Self {
        Self { past: past.into(), told, live }
    }

    /// The next event. Live ones are missed by whoever is slow; the others are not, and whoever cannot follow is told so.
    /// May be dropped while it waits without missing anything.
    pub async fn next(&mut self) -> Result<Arc<Event>, FellBehind> {
        if let Some(event) = self.past.pop_front() {
            return Ok(event);
        }
        loop {
            tokio::select! {
                biased;
                told = self.told.recv() => return told.map_err(|_| FellBehind),
                live = self.live.recv() => match live {
                    Ok(event) => return Ok(event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(FellBehind),
                },
            }
        }
    }
}
