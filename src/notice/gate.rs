//! Whether this process delivers: of several workers that share a vault one does, and the others look on until it ends.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::vault::{Duty, OnDuty};

/// How often somebody who looks on tries whether the work is free.
const TRIED: Duration = Duration::from_secs(2);
/// How often a deliverer looks whether it is one still.
const LOOK: Duration = Duration::from_millis(500);

/// Open while this process delivers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<Option<OnDuty>>>);

impl Gate {
    /// Whether something may be sent now.
    pub(super) fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(OnDuty::is_good)
    }

    /// Waits until it is this process that delivers; at once where it is the only one.
    pub(super) async fn open(&self, duty: &Duty) {
        loop {
            // What was lost has to be given back before it can be begun anew.
            self.set(None);
            if let Some(on_duty) = duty.begin().await {
                self.set(Some(on_duty));
                return;
            }
            tokio::time::sleep(TRIED).await;
        }
    }

    /// Waits until it is open no more, which for a vault with one worker is never.
    pub(super) async fn lost(&self, duty: &Duty) {
        if !duty.is_shared() {
            return std::future::pending().await;
        }
        while self.is_open() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The lease, should this process still have it, ends with the last clone of the gate: when attempts under way have ended, which
    /// whoever takes over would make once more.
    fn set(&self, on_duty: Option<OnDuty>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = on_duty;
    }
}
