//! The outbox in memory: which rows there are, who is still to be told, and what may be seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{Delivery, MAX_OPEN, MAX_TOLD, Receiver, TOLD_KEPT, Whose};
use crate::model::{Event, EventId, EventKind, OpenDelivery, OutboxRow, ReceiverId, Timestamp};

/// How long a delivery that was handed out is not handed out again, should nobody say what became of it: longer than any
/// attempt takes.
pub(super) const LEASE: Duration = Duration::from_mins(10);
/// How many rows that are too many or too old are forgotten with each one that comes, so that they get fewer.
const FORGOTTEN_WITH_EACH: usize = 2;

/// Everything the outbox knows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    receivers: Vec<Receiver>,
    /// Higher than every number given out.
    next_number: u64,
    /// Numbers of the first of events that were prepared together, and how their commit went, if it has ended.
    reserved: BTreeMap<u64, Reservation>,
    /// What may be seen, by number.
    shown: BTreeMap<u64, Row>,
    /// Of everything that may be seen or was prepared.
    numbers: HashMap<EventId, u64>,
    /// Rows with nobody left to tell.
    told: BTreeSet<u64>,
    /// Rows with open deliveries.
    open: BTreeSet<u64>,
    due: BTreeSet<(Timestamp, u64, ReceiverId)>,
    last_digest: Option<u64>,
}

#[derive(Debug)]
struct Row {
    event: Arc<Event>,
    deliveries: Vec<OpenDelivery>,
    /// Whether the vault has it.
    stored: bool,
}

#[derive(Debug)]
struct Reservation {
    rows: Vec<(u64, Row)>,
    written: Option<bool>,
}

/// Events that were given their numbers.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    /// The first number; `None` where all of them had been told before.
    pub(super) number: Option<u64>,
    /// What the vault has to take.
    pub(super) rows: Vec<OutboxRow>,
    /// What it may forget with them.
    pub(super) forgotten: Vec<EventId>,
    /// How many deliveries were given up since too many wait.
    pub(super) given_up: u64,
}

impl Rows {
    /// What an earlier process has left behind.
    pub(super) fn of(mut stored: Vec<OutboxRow>) -> Self {
        stored.sort_unstable_by_key(|row| row.number);
        let mut rows = Self { next_number: 1, ..Self::default() };
        for OutboxRow { mut number, event, deliveries } in stored {
            // Two of one number cannot be, unless a restored copy was mixed with another.
            number = number.max(rows.next_number);
            rows.next_number = number + 1;
            rows.numbers.insert(event.id, number);
            rows.show(number, Row { event, deliveries, stored: true });
        }
        rows
    }

    /// Gives back how many deliveries are forgotten.
    pub(super) fn set_receivers(&mut self, receivers: Vec<Receiver>) -> usize {
        let before = self.due.len();
        self.receivers = receivers;
        let open: Vec<u64> = self.open.iter().copied().collect();
        for number in open {
            let Some(row) = self.shown.get_mut(&number) else { continue };
            let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut row.deliveries)
                .into_iter()
                .partition(|open| self.receivers.iter().any(|receiver| receiver.id == open.receiver));
            row.deliveries = kept;
            for open in gone {
                self.due.remove(&(open.next_at, number, open.receiver));
            }
            self.note_told(number);
        }
        before - self.due.len()
    }

    /// Prepares events: none may be seen before [`settle`](Self::settle). `stored`: they go into the vault.
    pub(super) fn reserve(&mut self, events: Vec<Event>, now: Timestamp, stored: bool) -> Reserved {
        let mut reserved = Reserved::default();
        let mut rows = Vec::new();
        for event in events {
            if self.numbers.contains_key(&event.id) {
                continue;
            }
            let number = self.next_number;
            self.next_number += 1;
            self.numbers.insert(event.id, number);
            let wanted = self.receivers.iter().filter(|receiver| receiver.wants(event.kind));
            let deliveries =
                wanted.map(|receiver| OpenDelivery { receiver: receiver.id, attempts: 0, first_at: now, next_at: now });
            let row = Row { deliveries: deliveries.collect(), event: Arc::new(event), stored };
            if stored {
                reserved.rows.push(row.at_rest(number));
            }
            rows.push((number, row));
        }
        let Some((first, _)) = rows.first() else { return reserved };
        let (first, count) = (*first, rows.len());
        reserved.number = Some(first);
        self.reserved.insert(first, Reservation { rows, written: None });
        reserved.given_up = self.give_up_oldest();
        if stored {
            reserved.forgotten = self.prune(now, count * FORGOTTEN_WITH_EACH);
        }
        reserved
    }

    /// The commit of what was reserved under that number has ended. Gives what may be seen now, in order.
    pub(super) fn settle(&mut self, number: u64, written: bool) -> Vec<Arc<Event>> {
        if let Some(reservation) = self.reserved.get_mut(&number) {
            reservation.written = Some(written);
        }
        let mut told = Vec::new();
        while let Some(first) = self.reserved.first_entry().filter(|first| first.get().written.is_some()) {
            let Reservation { rows, written } = first.remove();
            for (number, row) in rows {
                if written == Some(true) {
                    told.push(Arc::clone(&row.event));
                    self.show(number, row);
                } else {
                    self.numbers.remove(&row.event.id);
                }
            }
        }
        told
    }

    /// What may be seen after that event, or all of it.
    pub(super) fn after(&self, id: Option<&EventId>) -> Vec<Arc<Event>> {
        let after = id.and_then(|id| self.numbers.get(id)).copied().unwrap_or(0);
        self.shown.range(after + 1..).map(|(_, row)| Arc::clone(&row.event)).collect()
    }

    pub(super) fn newest(&self) -> Option<EventId> {
        self.shown.last_key_value().map(|(_, row)| row.event.id)
    }

    pub(super) fn last(&self, kind: EventKind) -> Option<Arc<Event>> {
        let mut newest = self.shown.values().rev();
        newest.find(|row| row.event.kind == kind).map(|row| Arc::clone(&row.event))
    }

    pub(super) fn due(&mut self, now: Timestamp, max: usize, whose: Whose) -> Vec<Delivery> {
        let due = self.due.iter().take_while(|(at, ..)| *at <= now);
        let due: Vec<_> = due.filter(|(_, number, _)| self.is_meant(*number, whose)).take(max).copied().collect();
        let hand_out = |(at, number, receiver)| {
            let row = self.shown.get_mut(&number)?;
            let open = row.deliveries.iter_mut().find(|open| open.receiver == receiver)?;
            self.due.remove(&(at, number, receiver));
            open.next_at = now + LEASE;
            self.due.insert((open.next_at, number, receiver));
            let (attempts, first_at, is_own) = (open.attempts, open.first_at, !row.stored);
            Some(Delivery { event: Arc::clone(&row.event), receiver, attempts, first_at, is_own })
        };
        due.into_iter().filter_map(hand_out).collect()
    }

    pub(super) fn next_due(&self, whose: Whose) -> Option<Timestamp> {
        self.due.iter().find(|(_, number, _)| self.is_meant(*number, whose)).map(|(at, ..)| *at)
    }

    fn is_meant(&self, number: u64, whose: Whose) -> bool {
        whose == Whose::Everybodys || self.shown.get(&number).is_some_and(|row| !row.stored)
    }

    /// How many deliveries are open.
    pub(super) fn pending(&self) -> u64 {
        u64::try_from(self.due.len()).unwrap_or(u64::MAX)
    }

    /// The number of an event that may be seen or was prepared.
    pub(super) fn number(&self, id: &EventId) -> Option<u64> {
        self.numbers.get(id).copied()
    }

    /// The row as the vault is to have it; `None` where it is not to have it, or not any more.
    pub(super) fn stored(&self, number: u64) -> Option<OutboxRow> {
        self.shown.get(&number).filter(|row| row.stored).map(|row| row.at_rest(number))
    }

    /// Whether a delivery is still to be made.
    pub(super) fn is_open(&self, event: &EventId, receiver: ReceiverId) -> bool {
        let row = self.number(event).and_then(|number| self.shown.get(&number));
        row.is_some_and(|row| row.deliveries.iter().any(|open| open.receiver == receiver))
    }

    /// Takes in a row that somebody else has written: gives the number under which it is to be settled where its event is new here. Of
    /// one that is known, deliveries only end, or are put off: what was heard may be older than what is known.
    pub(super) fn heard(&mut self, row: OutboxRow, now: Timestamp) -> Option<u64> {
        let OutboxRow { event, deliveries, .. } = row;
        if self.number(&event.id).is_some() {
            self.catch_up(&event.id, &deliveries);
            return None;
        }
        if deliveries.is_empty() && event.at + TOLD_KEPT < now {
            return None;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.numbers.insert(event.id, number);
        let is_known = |open: &OpenDelivery| self.receivers.iter().any(|receiver| receiver.id == open.receiver);
        let deliveries = deliveries.into_iter().filter(is_known).collect();
        let rows = vec![(number, Row { event, deliveries, stored: true })];
        self.reserved.insert(number, Reservation { rows, written: None });
        self.give_up_oldest();
        Some(number)
    }

    fn catch_up(&mut self, event: &EventId, heard: &[OpenDelivery]) {
        // What is being written by this process is not heard of before it is done.
        let Some(number) = self.number(event).filter(|number| self.shown.contains_key(number)) else { return };
        let known = self.shown.get(&number).map(|row| row.deliveries.clone()).unwrap_or_default();
        for open in known {
            match heard.iter().find(|heard| heard.receiver == open.receiver) {
                None => self.close(event, open.receiver),
                Some(heard) if heard.attempts > open.attempts => {
                    self.put_off(event, open.receiver, heard.next_at.max(open.next_at));
                    let row = self.shown.get_mut(&number);
                    let ours =
                        row.and_then(|row| row.deliveries.iter_mut().find(|ours| ours.receiver == open.receiver));
                    if let Some(ours) = ours {
                        ours.attempts = heard.attempts;
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// A delivery is over.
    pub(super) fn close(&mut self, event: &EventId, receiver: ReceiverId) {
        let Some(number) = self.number(event) else { return };
        let Some(row) = self.shown.get_mut(&number) else { return };
        let place = row.deliveries.iter().position(|open| open.receiver == receiver);
        if let Some(open) = place.map(|place| row.deliveries.remove(place)) {
            self.due.remove(&(open.next_at, number, receiver));
            self.note_told(number);
        }
    }

    /// A delivery was tried once more and is to be tried again.
    pub(super) fn put_off(&mut self, event: &EventId, receiver: ReceiverId, until: Timestamp) {
        let Some(number) = self.number(event) else { return };
        let Some(row) = self.shown.get_mut(&number) else { return };
        let Some(open) = row.deliveries.iter_mut().find(|open| open.receiver == receiver) else { return };
        self.due.remove(&(open.next_at, number, receiver));
        open.attempts = open.attempts.saturating_add(1);
        open.next_at = until;
        self.due.insert((until, number, receiver));
    }

    /// Forgets what was told to everybody and is too old, or too much; at most `most` of it. Gives what the vault has of that.
    pub(super) fn prune(&mut self, now: Timestamp, most: usize) -> Vec<EventId> {
        let newest = self.shown.last_key_value().map(|(number, _)| *number);
        let excess = self.told.len().saturating_sub(MAX_TOLD);
        let is_kept = |number: &u64| Some(*number) == newest || Some(*number) == self.last_digest;
        let candidates = self.told.iter().filter(|number| !is_kept(number)).enumerate().take(most);
        let old = candidates.filter(|(index, number)| {
            let too_old = |row: &Row| row.event.at + TOLD_KEPT < now;
            *index < excess || self.shown.get(number).is_some_and(too_old)
        });
        let old: Vec<u64> = old.map(|(_, number)| *number).collect();
        let mut forgotten = Vec::new();
        for number in old {
            self.told.remove(&number);
            if let Some(row) = self.shown.remove(&number) {
                self.numbers.remove(&row.event.id);
                forgotten.extend(row.stored.then_some(row.event.id));
            }
        }
        forgotten
    }

    /// Forgets a row that the vault does not have any more.
    pub(super) fn forget(&mut self, event: &EventId) {
        let Some(number) = self.number(event) else { return };
        let Some(row) = self.shown.remove(&number) else { return };
        self.numbers.remove(event);
        self.told.remove(&number);
        self.open.remove(&number);
        for open in row.deliveries {
            self.due.remove(&(open.next_at, number, open.receiver));
        }
    }

    /// More rows wait for their deliveries than may: the oldest wait no more.
    fn give_up_oldest(&mut self) -> u64 {
        let before = self.pending();
        while self.open.len() > MAX_OPEN {
            let Some(number) = self.open.first().copied() else { break };
            let deliveries = self.shown.get_mut(&number).map(|row| std::mem::take(&mut row.deliveries));
            for open in deliveries.unwrap_or_default() {
                self.due.remove(&(open.next_at, number, open.receiver));
            }
            self.note_told(number);
        }
        before - self.pending()
    }

    /// From now on the row may be seen.
    fn show(&mut self, number: u64, row: Row) {
        if row.event.kind == EventKind::ConsentsDigest {
            self.last_digest = Some(number);
        }
        self.due.extend(row.deliveries.iter().map(|open| (open.next_at, number, open.receiver)));
        let told = row.deliveries.is_empty();
        if told { &mut self.told } else { &mut self.open }.insert(number);
        self.shown.insert(number, row);
    }

    /// Keeps track of a row whose last delivery may be over.
    fn note_told(&mut self, number: u64) {
        if self.shown.get(&number).is_some_and(|row| row.deliveries.is_empty()) && self.open.remove(&number) {
            self.told.insert(number);
        }
    }
}

impl Row {
    fn at_rest(&self, number: u64) -> OutboxRow {
        OutboxRow { number, event: Arc::clone(&self.event), deliveries: self.deliveries.clone() }
    }
}
