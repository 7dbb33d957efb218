//! What has happened so far, as anybody could see it through the worker's socket.

use std::{collections::VecDeque, time::Duration};

use super::stage::Act;
use crate::{
    cli::print,
    client::{Client, ClientError},
    clock::SharedClock,
    model::{OrganizationId, Timestamp},
    wire::Organization,
};

/// How many events are kept until they are printed.
const MAX_EVENTS: usize = 64;
/// A consent that ends within this time is told of.
const SOON: Duration = Duration::from_hours(30 * 24);

/// The organizations and the latest events.
pub(super) struct Scene {
    clock: SharedClock,
    began: Duration,
    pub(super) players: Vec<Player>,
    events: VecDeque<Event>,
    told: u64,
}

/// One organization as it was last seen.
pub(super) struct Player {
    id: OrganizationId,
    pub(super) kind: &'static str,
    pub(super) seen: Organization,
    pub(super) refreshes: u64,
    pub(super) fetches: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Counts up from 0.
    number: u64,
    /// Since the demo began.
    pub(super) at: Duration,
    pub(super) organization: String,
    pub(super) what: String,
}

impl Scene {
    pub(super) fn new(clock: SharedClock) -> Self {
        let began = clock.now().boot;
        Self { clock, began, players: Vec::new(), events: VecDeque::new(), told: 0 }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now().wall
    }

    pub(super) fn enrolled(&mut self, act: &Act, organization: Organization) {
        let id = organization.organization.clone();
        self.tell(&id, format!("enrolled ({}); the first exchange proved it", act.kind));
        if let Some(left) = self.days_left(&organization).filter(|left| *left <= SOON) {
            self.tell(&id, format!("consent ends in {}: time to ask for a new one", print::span(left.as_secs())));
        }
        self.players.push(Player { id, kind: act.kind, seen: organization, refreshes: 0, fetches: 0 });
    }

    /// How long the consent still holds.
    pub(super) fn days_left(&self, organization: &Organization) -> Option<Duration> {
        let end = organization.consent.as_ref()?.expires_at?;
        Some(end.since(self.now()))
    }

    /// Fetches every organization's token, as the application beside the worker would.
    pub(super) async fn fetch(&mut self, client: &Client) {
        for place in 0..self.players.len() {
            let id = self.players[place].id.clone();
            match client.token(&id, Duration::ZERO).await {
                Ok(fetched) => {
                    self.players[place].fetches += 1;
                    self.tell(&id, format!("fetched; {} s left", fetched.token.expires_in));
                }
                Err(error) => self.failed(&id, "fetch", &error),
            }
        }
    }

    /// Looks at every organization, and tells what is new.
    pub(super) async fn look(&mut self, client: &Client) {
        for place in 0..self.players.len() {
            let id = self.players[place].id.clone();
            match client.show(&id).await {
                Ok(seen) => self.seen(place, seen),
                Err(error) => self.failed(&id, "look", &error),
            }
        }
    }

    fn seen(&mut self, place: usize, seen: Organization) {
        let player = &mut self.players[place];
        let before = std::mem::replace(&mut player.seen, seen);
        let (id, after) = (player.id.clone(), player.seen.clone());
        if after.refreshed_at > before.refreshed_at {
            player.refreshes += 1;
            let left = after.access_token_expires_at.map_or(0, |end| end.since(self.now()).as_secs());
            self.tell(&id, format!("refreshed; the new access token lives {left} s"));
        }
        if after.state != before.state {
            let reason = after.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            self.tell(&id, format!("is now {}{reason}", after.state));
        }
    }

    fn failed(&mut self, id: &OrganizationId, what: &str, error: &ClientError) {
        self.tell(id, format!("{what} failed: {error}"));
    }

    fn tell(&mut self, organization: &OrganizationId, what: String) {
        let at = self.clock.now().boot.saturating_sub(self.began);
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { number: self.told, at, organization: organization.to_string(), what });
        self.told += 1;
    }

    /// The last events, the oldest first.
    pub(super) fn last_events(&self, limit: usize) -> impl Iterator<Item = &Event> {
        self.events.iter().skip(self.events.len().saturating_sub(limit))
    }

    /// The events from number `from` on, and the number to go on from.
    pub(super) fn events_from(&self, from: u64) -> (impl Iterator<Item = &Event>, u64) {
        (self.events.iter().filter(move |event| event.number >= from), self.told)
    }

    /// What has not happened and should have.
    pub(super) fn shortfalls(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for player in &self.players {
            if player.refreshes == 0 {
                missing.push(format!("{} was not refreshed", player.id));
            }
            if player.fetches == 0 {
                missing.push(format!("{} was not fetched", player.id));
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::ManualClock,
        model::{GrantKind, Labels, Usage},
        wire::Consent,
    };

    fn organization(refreshed_at: i64, expires_at: Option<Timestamp>) -> Organization {
        Organization {
            organization: "a".parse().expect("an id"),
            provider: "p".parse().expect("a name"),
            kind: GrantKind::Consent,
            state: "active".into(),
            reason: None,
            since: Timestamp::from_millis(0),
            paused: false,
            subject: None,
            shares_grant_with: Vec::new(),
            access_token_expires_at: None,
            refreshed_at: Some(Timestamp::from_millis(refreshed_at)),
            next_refresh_at: None,
            failures: 0,
            consent: Some(Consent {
                granted_at: Timestamp::from_millis(0),
                expires_at,
                assumed: false,
                usage: Usage::Reuse,
                grace_seconds: 0,
                warned: Vec::new(),
            }),
            last_fetched_at: None,
            labels: Labels::new(),
            unreadable: false,
        }
    }

    fn scene(expires_at: Option<Timestamp>) -> Scene {
        let mut scene = Scene::new(ManualClock::at(Timestamp::from_millis(0)));
        let seen = organization(0, expires_at);
        scene.players.push(Player { id: seen.organization.clone(), kind: "k", seen, refreshes: 0, fetches: 0 });
        scene
    }

    #[test]
    fn only_a_later_refresh_counts_and_is_told_once() {
        let mut scene = scene(None);
        scene.seen(0, organization(0, None));
        assert_eq!((scene.players[0].refreshes, scene.told), (0, 0));
        scene.seen(0, organization(6000, None));
        scene.seen(0, organization(6000, None));
        assert_eq!((scene.players[0].refreshes, scene.told), (1, 1));
    }

    #[test]
    fn what_did_not_happen_is_named() {
        let mut scene = scene(None);
        assert_eq!(scene.shortfalls(), ["a was not refreshed", "a was not fetched"]);
        scene.players[0].fetches = 1;
        scene.players[0].refreshes = 1;
        assert!(scene.shortfalls().is_empty());
    }

    #[test]
    fn events_are_bounded_and_read_once() {
        let mut scene = scene(None);
        let id = scene.players[0].id.clone();
        for number in 0..100 {
            scene.tell(&id, number.to_string());
        }
        let (events, next) = scene.events_from(98);
        assert_eq!((events.map(|event| event.what.as_str()).collect::<Vec<_>>(), next), (vec!["98", "99"], 100));
        assert_eq!(scene.last_events(1000).count(), MAX_EVENTS);
    }
}
