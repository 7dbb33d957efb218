//! Webhooks: what the outbox has for each receiver is posted to it, signed as Standard Webhooks
//! (<https://www.standardwebhooks.com>) describes, until the receiver has taken it or has failed for days.
//!
//! `receiver` says who they are, `post` makes one attempt with `signature`, `schedule` says when the next one follows, and
//! `lane` keeps the receivers apart. The outbox knows what is still to be delivered, across restarts; here is only what
//! is due now. A delivery is made at least once: a process that dies between an answer and its note makes it again, with the
//! same id.

mod gate;
mod lane;
mod post;
mod receiver;
mod schedule;
mod signature;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use post::connect;
pub use receiver::{ReceiverProblem, Receivers, check_secret_file, name};
use tokio_util::sync::CancellationToken;

use self::{
    gate::Gate,
    lane::{LONGEST_SLEEP, Lane, Queue},
    receiver::Receiver,
};
use crate::{
    clock::SharedClock,
    metrics::Metrics,
    model::ReceiverId,
    outbox::{Outbox, Whose},
    task::{self, Task},
    vault::Duty,
};

/// How long attempts under way may take to end when the worker stops: their own time limit, and some for noting the outcome.
const MAX_HALT: Duration = Duration::from_secs(post::TIMEOUT.as_secs() + 10);
/// How many due deliveries are taken out of the outbox at once.
const TAKEN_AT_ONCE: usize = 256;
/// What is due a moment from now is not asked for in a tight loop.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);

/// What delivering needs besides receivers.
#[derive(Clone, Debug)]
pub struct Parts {
    /// What is to be delivered.
    pub outbox: Outbox,
    /// When.
    pub clock: SharedClock,
    /// Where attempts are counted.
    pub metrics: Metrics,
    /// What says that it is this process that delivers.
    pub duty: Duty,
}

/// Deliveries to every receiver, from [`start`](Self::start) to [`stop`](Self::stop).
#[derive(Debug)]
pub struct Notice {
    parts: Parts,
    /// What is at work; `None` once it was stopped.
    working: Mutex<Option<Working>>,
}

#[derive(Debug)]
struct Working {
    stopping: CancellationToken,
    dispatcher: Task<()>,
    lanes: HashMap<ReceiverId, Task<Queue>>,
}

impl Notice {
    /// Tells the outbox who the receivers are, and delivers to them from now on. Needs a Tokio runtime. To be called before
    /// anything is posted to the outbox: an event is meant for those who are known when it happens.
    pub fn start(receivers: Receivers, parts: Parts) -> Self {
        let notice = Self { parts, working: Mutex::default() };
        notice.work(receivers, HashMap::new());
        notice
    }

    /// Delivers to other receivers from now on. Attempts under way finish first, within their time limit; a receiver that was
    /// there before keeps its place in its queue. What was due to one that is no more is forgotten.
    pub async fn replace(&self, receivers: Receivers) {
        let queues = self.halt().await;
        self.work(receivers, queues);
    }

    /// Stops softly: attempts under way finish within their time limit, and nothing more is begun. What is still to be
    /// delivered is in the outbox.
    pub async fn stop(&self) {
        self.halt().await;
    }

    fn work(&self, receivers: Receivers, mut queues: HashMap<ReceiverId, Queue>) {
        self.parts.outbox.set_receivers(receivers.all.iter().map(Receiver::of_outbox).collect());
        let (stopping, gate) = (CancellationToken::new(), Gate::default());
        let (mut lanes, mut running) = (HashMap::new(), HashMap::new());
        for receiver in receivers.all {
            let id = receiver.id;
            let queue = queues.remove(&id).unwrap_or_default();
            let lane = Lane::new(receiver, receivers.client.clone(), self.parts.clone(), gate.clone(), queue);
            running.insert(id, task::spawn(Arc::clone(&lane).run(stopping.clone())));
            lanes.insert(id, lane);
        }
        let dispatcher = task::spawn(dispatch(self.parts.clone(), gate, lanes, stopping.clone()));
        let working = Working { stopping, dispatcher, lanes: running };
        *self.working.lock().unwrap_or_else(PoisonError::into_inner) = Some(working);
    }

    /// Ends everything that is at work, and gives what was due and not yet begun.
    async fn halt(&self) -> HashMap<ReceiverId, Queue> {
        let working = self.working.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Working { stopping, dispatcher, lanes }) = working else { return HashMap::new() };
        stopping.cancel();
        if let Ok(queues) = tokio::time::timeout(MAX_HALT, ended(dispatcher, lanes)).await {
            return queues;
        }
        // They end by themselves when what holds them up does: a disk that hangs, as a rule.
        tracing::warn!("webhooks under way did not end in time; they may be delivered once more");
        HashMap::new()
    }
}

/// Waits for the end of what was told to stop, and gives what waits in each lane.
async fn ended(dispatcher: Task<()>, lanes: HashMap<ReceiverId, Task<Queue>>) -> HashMap<ReceiverId, Queue> {
    if dispatcher.await.is_err() {
        tracing::error!("the task that hands out webhooks died; this is a fault of the worker");
    }
    let mut queues = HashMap::new();
    for (id, lane) in lanes {
        if let Ok(queue) = lane.await {
            queues.insert(id, queue);
        } else {
            // What it had is handed out again by the outbox after a while.
            tracing::error!("the task that delivers webhooks died; this is a fault of the worker");
        }
    }
    queues
}

impl Receiver {
    fn of_outbox(&self) -> crate::outbox::Receiver {
        crate::outbox::Receiver { id: self.id, name: self.name.clone(), events: self.events.clone() }
    }
}

/// Hands out what is due, until nobody is to; what all workers know of only while it is this one that delivers.
async fn dispatch(parts: Parts, gate: Gate, lanes: HashMap<ReceiverId, Arc<Lane>>, stopping: CancellationToken) {
    if lanes.is_empty() {
        return;
    }
    let keeping = async {
        loop {
            gate.open(&parts.duty).await;
            for lane in lanes.values() {
                lane.look();
            }
            parts.outbox.changed().notify_waiters();
            gate.lost(&parts.duty).await;
        }
    };
    tokio::select! {
        biased;
        () = stopping.cancelled() => {}
        () = keeping => {}
        () = hand_out(&parts, &gate, &lanes) => {}
    }
}

/// Takes what is due out of the outbox and into its receiver's lane.
async fn hand_out(parts: &Parts, gate: &Gate, lanes: &HashMap<ReceiverId, Arc<Lane>>) {
    loop {
        // Before looking, so that nothing that comes after the look is missed.
        let changed = parts.outbox.changed().notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let whose = if gate.is_open() { Whose::Everybodys } else { Whose::Own };
        loop {
            let due = parts.outbox.due(parts.clock.now().wall, TAKEN_AT_ONCE, whose);
            let taken = due.len();
            for delivery in due {
                if let Some(lane) = lanes.get(&delivery.receiver) {
                    lane.add(delivery);
                }
            }
            if taken < TAKEN_AT_ONCE {
                break;
            }
        }
        let wait = parts.outbox.next_due(whose).map_or(LONGEST_SLEEP, |next| next.since(parts.clock.now().wall));
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(wait.clamp(SHORTEST_SLEEP, LONGEST_SLEEP)) => {}
        }
    }
}
