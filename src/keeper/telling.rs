//! What is told of grants and providers: as events of the outbox, and as lines of the log after the commit.

use std::sync::atomic::Ordering;

use super::{Shared, lane::Lane};
use crate::{
    lifecycle::{Notice, Warning, days_left},
    model::{Event, EventKind, Grant, OrganizationId, State, in_largest_unit},
    task,
};

/// Of how many organizations of one grant events are made at most: what happens to a grant and all its events fit in one
/// commit.
const MOST_TOLD: usize = 1000;

/// Whether a person is to renew the consent, so that its link is told with the event.
fn wants_renewal(kind: EventKind, grant: &Grant) -> bool {
    use EventKind::{ConsentExpired, ConsentExpiring, ConsentLost, ConsentRefused};
    grant.consent.is_some() && matches!(kind, ConsentExpiring | ConsentExpired | ConsentRefused | ConsentLost)
}

impl Shared {
    /// The events of a notice about a grant as it will be stored: one for each organization that it serves. To be committed
    /// with it.
    pub(super) async fn notice_events(&self, grant: &Grant, notice: Notice) -> Vec<Event> {
        // One that was refused while in doubt stays so since then; the refusal has a moment of its own.
        let refused_at = grant.refusals.map(|refusals| refusals.first_at).filter(|_| notice == Notice::Refused);
        let moment = refused_at.unwrap_or(grant.since).as_millis().to_le_bytes();
        self.events(kind_of(notice), grant, &moment).await
    }

    /// The events of a warning, as [`notice_events`](Self::notice_events).
    pub(super) async fn warning_events(&self, grant: &Grant, warning: Warning) -> Vec<Event> {
        let end = grant.consent.as_ref().and_then(|consent| consent.expires_at).unwrap_or_default();
        let (kind, within) = match warning {
            Warning::Within(before) => (EventKind::ConsentExpiring, Some(before)),
            Warning::Ended => (EventKind::ConsentExpired, None),
        };
        let before = warning.before().as_millis().to_le_bytes();
        let moment = [&end.as_millis().to_le_bytes()[..], &before].concat();
        let events = self.events(kind, grant, &moment).await.into_iter();
        events.map(|event| Event { within, ..event }).collect()
    }

    /// An event of that kind for each organization of the grant. `moment` tells it from others of its kind about that grant, and
    /// is the same if it is ever told anew.
    pub(super) async fn events(&self, kind: EventKind, grant: &Grant, moment: &[u8]) -> Vec<Event> {
        let mut events = Vec::with_capacity(grant.organizations.len().min(MOST_TOLD));
        for organization in grant.organizations.iter().take(MOST_TOLD) {
            events.push(self.event(kind, grant, organization, moment).await);
        }
        events
    }

    /// As [`events`](Self::events), for one of its organizations.
    pub(super) async fn event(
        &self,
        kind: EventKind,
        grant: &Grant,
        organization: &OrganizationId,
        moment: &[u8],
    ) -> Event {
        let now = self.now().wall;
        let id = self.outbox.id(kind, &[organization.as_str().as_bytes(), grant.id.as_bytes(), moment]);
        // Labels are an addition: without them it is still told.
        let stored = self.vault.organization(organization).await.ok().flatten();
        let ends = grant.consent.as_ref().and_then(|consent| consent.expires_at);
        let renewal_url = if wants_renewal(kind, grant) { self.renewal_url(organization).await } else { None };
        Event {
            provider: Some(grant.provider.clone()),
            organization: Some(organization.clone()),
            labels: stored.map(|stored| stored.value.labels).unwrap_or_default(),
            state: Some(grant.state.word().into()),
            reason: grant.state.reason().map(Into::into),
            consent_expires_at: ends,
            days_left: ends.map(|end| days_left(end, now)),
            renewal_url,
            ..Event::new(id, now, kind)
        }
    }

    /// An access token was refreshed: for those who look on in this moment.
    pub(super) async fn tell_refreshed(&self, grant: &Grant) {
        let make = async || {
            let moment = grant.refreshed_at.unwrap_or_default().as_millis().to_le_bytes();
            Box::pin(self.events(EventKind::TokenRefreshed, grant, &moment)).await
        };
        self.outbox.live(make).await;
    }

    /// A provider has answered well. Where it is not frozen, and was last told of as failing by an earlier process, it is told of
    /// now: circuits are not stored.
    pub(super) fn still_well(&self, lane: &Lane) {
        if lane.circuit.frozen().is_none() && lane.told_failing.swap(false, Ordering::Relaxed) {
            self.tell_provider(lane, EventKind::ProviderRecovered, None);
        }
    }

    /// Takes note of the providers that an earlier process has told of as failing.
    ///
    /// Workers that share a vault share their circuits, too, and know.
    pub(super) fn remember_failing(&self) {
        if self.vault.sharing().is_some() {
            return;
        }
        for event in self.outbox.after(None) {
            let failing = event.kind == EventKind::ProviderFailing;
            if !failing && event.kind != EventKind::ProviderRecovered {
                continue;
            }
            if let Some(lane) = event.provider.as_ref().and_then(|name| self.lane_of.get(name)) {
                self.lanes[usize::from(*lane)].told_failing.store(failing, Ordering::Relaxed);
            }
        }
    }

    /// A provider's circuit has opened or closed. Told by a task of its own, since no exchange waits for it; where the vault
    /// takes nothing, from memory.
    pub(super) fn tell_provider(&self, lane: &Lane, kind: EventKind, reason: Option<&'static str>) {
        let remembered = kind == EventKind::ProviderFailing && self.vault.sharing().is_none();
        lane.told_failing.store(remembered, Ordering::Relaxed);
        let now = self.now();
        let moment = [&now.wall.as_millis().to_le_bytes()[..], &now.boot.as_millis().to_le_bytes()].concat();
        let id = self.outbox.id(kind, &[lane.name.as_str().as_bytes(), &moment]);
        let event = Event {
            provider: Some(lane.name.clone()),
            reason: reason.map(Into::into),
            ..Event::new(id, now.wall, kind)
        };
        let outbox = self.outbox.clone();
        task::spawn_on(&self.tasks, async move {
            if outbox.post(vec![event.clone()]).await.is_err() {
                outbox.alarm(event);
            }
        });
    }

    /// Tells about a grant: one line in the log, correlated by organization.
    #[expect(clippy::unused_self, reason = "reads as the keeper's word at its many calls")]
    pub(super) fn tell(&self, grant: &Grant, notice: Notice) {
        // Nobody has enrolled it yet, or ever will: whoever tries is told.
        let Some((organization, others)) = named(grant) else { return };
        let (provider, state) = (grant.provider.as_str(), grant.state.word());
        let reason = grant.state.reason().unwrap_or("none");
        let event = kind_of(notice).word();
        match notice {
            Notice::Recovered => {
                let what =
                    if grant.state == State::Active { "works again" } else { "its token was not sent after all" };
                tracing::info!(event, organization, others, provider, state, "{what}");
            }
            Notice::Refused => {
                let what = "the issuer refused the credential; it is tried again before it is given up";
                tracing::warn!(event, organization, others, provider, state, reason, "{what}");
            }
            Notice::Lost => {
                let what =
                    "the issuer no longer accepts the credential: the customer has to give consent or a key anew";
                tracing::error!(event, organization, others, provider, state, reason, "{what}");
            }
            Notice::InDoubt => {
                let what = "a one-time token was sent and its fate is unknown";
                tracing::error!(event, organization, others, provider, state, reason, "{what}");
            }
        }
    }

    /// Tells of a consent's end in the log, and counts it.
    pub(super) fn tell_warning(&self, grant: &Grant, warning: Warning) {
        let Some((organization, others)) = named(grant) else { return };
        let provider = grant.provider.as_str();
        let ends = grant.consent.as_ref().and_then(|consent| consent.expires_at).unwrap_or_default();
        let days_left = days_left(ends, self.now().wall);
        match warning {
            Warning::Within(before) => {
                self.metrics.warned(&grant.provider, before);
                let (event, within) = (EventKind::ConsentExpiring.word(), in_largest_unit(before));
                let what = "the consent ends soon: the customer has to renew it";
                tracing::warn!(event, organization, others, provider, within, days_left, ends = %ends, "{what}");
            }
            Warning::Ended => {
                let event = EventKind::ConsentExpired.word();
                let what = "the consent has passed its end: the customer has to renew it";
                tracing::error!(event, organization, others, provider, days_left, ends = %ends, "{what}");
            }
        }
    }
}

const fn kind_of(notice: Notice) -> EventKind {
    match notice {
        Notice::Refused => EventKind::ConsentRefused,
        Notice::Lost => EventKind::ConsentLost,
        Notice::InDoubt => EventKind::ConsentInDoubt,
        Notice::Recovered => EventKind::ConsentRecovered,
    }
}

/// The first organization of a grant, and how many others there are.
fn named(grant: &Grant) -> Option<(&str, usize)> {
    grant.organizations.first().map(|first| (first.as_str(), grant.organizations.len() - 1))
}
