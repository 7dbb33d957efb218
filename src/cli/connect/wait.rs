//! Waiting for a person.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    cli::Failure,
    client::{Client, ClientError},
    clock::{Clock as _, SystemClock},
    model::{OrganizationId, Timestamp},
    wire::{Code, Organization},
};

/// How often the worker is asked for the organization.
const EVERY: Duration = Duration::from_secs(1);
/// Every so many times it is asked for its status too, for which it counts over every organization.
const STATUS_EVERY: u32 = 10;
/// How many times in a row it may fail to answer, as while it takes another configuration, before waiting is given up.
const MAX_FAILURES: u32 = 60;
/// How often the spinner moves.
const TICK: Duration = Duration::from_millis(120);

/// When the organization's consent was given before anybody was asked for another.
#[derive(Debug)]
pub(super) struct Before {
    granted_at: Option<Timestamp>,
    awaiting_since: Option<Timestamp>,
}

/// What came.
#[derive(Debug)]
pub(super) enum Came {
    /// A consent is stored.
    Stored(Box<Organization>),
    /// One came, and an operator has to confirm it.
    Awaiting,
    /// None, and the link is over.
    Ended,
}

impl Before {
    /// Looks at the organization as it is now.
    pub(super) async fn look(client: &Client, organization: &OrganizationId) -> Result<Self, Failure> {
        let shown = shown(client, organization).await?;
        let awaiting_since = awaiting(client, organization).await?;
        Ok(Self { granted_at: shown.as_ref().and_then(granted_at), awaiting_since })
    }

    /// Asks until there is another consent than before, or until `end`.
    pub(super) async fn changed(
        &self,
        client: &Client,
        organization: &OrganizationId,
        end: Timestamp,
    ) -> Result<Came, Failure> {
        let spinner = spinner();
        let clock = SystemClock::new();
        let (mut failures, mut turn) = (0, 0_u32);
        while clock.now().wall < end {
            turn = turn.wrapping_add(1);
            match self.look_again(client, organization, turn.is_multiple_of(STATUS_EVERY)).await {
                Ok(Some(came)) => {
                    spinner.finish_and_clear();
                    return Ok(came);
                }
                Ok(None) => failures = 0,
                Err(failure) => {
                    failures += 1;
                    if failures >= MAX_FAILURES {
                        return Err(failure);
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
        Ok(Came::Ended)
    }

    async fn look_again(
        &self,
        client: &Client,
        organization: &OrganizationId,
        with_status: bool,
    ) -> Result<Option<Came>, Failure> {
        let shown = shown(client, organization).await?;
        if let Some(shown) = shown.filter(|shown| granted_at(shown).is_some_and(|at| self.granted_at != Some(at))) {
            return Ok(Some(Came::Stored(Box::new(shown))));
        }
        let since = if with_status { awaiting(client, organization).await? } else { None };
        Ok((since.is_some() && since != self.awaiting_since).then_some(Came::Awaiting))
    }
}

/// The organization; `None` where it is not known.
async fn shown(client: &Client, organization: &OrganizationId) -> Result<Option<Organization>, Failure> {
    match client.show(organization).await {
        Ok(shown) => Ok(Some(shown)),
        Err(ClientError::Problem { problem, .. }) if problem.code == Code::UnknownOrganization => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn granted_at(shown: &Organization) -> Option<Timestamp> {
    shown.consent.as_ref().map(|consent| consent.granted_at)
}

/// Since when a consent of that organization waits for an operator.
async fn awaiting(client: &Client, organization: &OrganizationId) -> Result<Option<Timestamp>, Failure> {
    let status = client.status().await?;
    let waits = |one: &&crate::wire::Awaiting| one.organization == *organization && one.reason != "unfinished";
    Ok(status.awaiting.iter().find(waits).map(|one| one.since))
}

/// Turns on a terminal until it is dropped; is nothing elsewhere.
fn spinner() -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    spinner.set_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    spinner.set_message("waiting for the customer; Ctrl-C stops waiting, and the link stays good");
    spinner.enable_steady_tick(TICK);
    spinner
}
