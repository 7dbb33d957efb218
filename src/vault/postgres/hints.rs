//! Hints that something was written, so that others look sooner than with their next poll. Nothing is relied on: whoever hears none
//! looks as often as ever.
//!
//! Whoever listens needs a connection of its own that no pooler hands to others; whoever gives hints does not. A hint is given after its
//! commit, in a transaction of its own that waits for nobody: a notification locks the whole database against other notifications until its
//! transaction has ended, and in the commits themselves it would put all of them in a row behind their standbys. Many commits share one hint.

use std::{
    fmt::Write as _,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::{Parameters, Postgres, ReplicaId, Settings, Shared};
use crate::{model::Secret, task};

/// A process gives a hint at most so often.
const GIVEN: Duration = Duration::from_millis(5);
/// When a connection that has ended is made anew.
const AGAIN: Duration = Duration::from_secs(1);

/// The hints of one process.
pub(super) struct Hints {
    /// Where it is listened; `None`: nobody does, and none are given.
    url: Option<Secret>,
    /// The name of the schema.
    channel: String,
    /// This process has written something.
    written: Notify,
    /// Others may have; it is kept for who is not waiting at the moment.
    heard: Arc<Notify>,
}

impl Hints {
    pub(super) fn of(settings: &Settings) -> Self {
        let (url, channel) = (settings.listen_url.clone(), settings.schema.clone());
        Self { url, channel, written: Notify::new(), heard: Arc::default() }
    }
}

impl Postgres {
    /// Lets others know soon that something was written.
    pub(super) fn wrote(&self) {
        if self.0.hints.url.is_some() {
            self.0.hints.written.notify_one();
        }
    }

    /// Resolves when others may have written since it was asked last; where nobody listens, never.
    pub(super) async fn hinted(&self) {
        self.0.hints.heard.notified().await;
    }

    /// Gives and hears hints in the background, until `ending`, or until nobody has the database any more.
    pub(super) fn give_and_hear_hints(&self, ending: &CancellationToken) {
        if self.0.hints.url.is_none() {
            return;
        }
        let (ending, giving, hearing) = (ending.clone(), Arc::downgrade(&self.0), Arc::downgrade(&self.0));
        task::spawn(async move {
            tokio::select! {
                () = give(giving) => {}
                () = hear(hearing) => {}
                () = ending.cancelled() => {}
            }
        });
    }
}

async fn give(shared: Weak<Shared>) {
    while let Some(here) = shared.upgrade() {
        here.hints.written.notified().await;
        let own = words(here.replica);
        let parameters: Parameters<'_> = &[(&here.hints.channel, Type::TEXT), (&own, Type::TEXT)];
        if let Err(error) = here.query(&here.sql.hint, parameters).await {
            tracing::debug!(%error, "a hint could not be given; others look when it is time");
        }
        drop(here);
        tokio::time::sleep(GIVEN).await;
    }
}

async fn hear(shared: Weak<Shared>) {
    let mut is_away = false;
    while let Some(here) = shared.upgrade() {
        let Hints { url: Some(url), channel, heard, .. } = &here.hints else { return };
        let (own, told) = (words(here.replica), Arc::clone(heard));
        let listening = here.pool.manager().listen(url, channel, move |from| {
            if from != own {
                told.notify_one();
            }
        });
        match tokio::time::timeout(here.statement_timeout, Box::pin(listening)).await {
            Ok(Ok((client, hearing))) => {
                if std::mem::take(&mut is_away) {
                    tracing::info!("hints of other workers are heard again");
                }
                // What was written until now was not heard.
                heard.notify_one();
                drop(here);
                let _ = hearing.await;
                drop(client);
            }
            Ok(Err(error)) => warn_once(&mut is_away, &error.to_string()),
            Err(_) => warn_once(&mut is_away, "connecting takes too long"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn warn_once(is_away: &mut bool, why: &str) {
    if !std::mem::replace(is_away, true) {
        tracing::warn!(
            why,
            "hints of other workers cannot be heard (vault.postgres.listen_url); what they write is seen by polling"
        );
    }
}

/// Whose a hint is.
fn words(replica: ReplicaId) -> String {
    replica.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
