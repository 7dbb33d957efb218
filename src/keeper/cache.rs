use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    answer::CachedToken,
    slot::{Slot, SlotState},
};

/// Places in the order that are always there.
const LEAST_ORDER: usize = 64;

/// Access tokens kept in memory, up to a bound in bytes. What is dropped is read from the vault when it is asked
/// for again. The oldest goes first, unless it was used since it was last looked at (second chance).
#[derive(Debug)]
pub(super) struct TokenCache {
    limit: usize,
    bytes: AtomicUsize,
    order: Mutex<VecDeque<Weak<Slot>>>,
}

impl TokenCache {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            bytes: AtomicUsize::new(0),
            order: Mutex::default(),
        }
    }

    /// Gives the slot its token in place of an older one, if the slot's state still `fits`, and makes room.
    pub(super) fn put(&self, slot: &Arc<Slot>, token: Arc<CachedToken>, fits: impl FnOnce(&SlotState) -> bool) {
        let had_one = {
            let mut state = slot.lock();
            if state.is_removed() || !fits(&state) {
                return;
            }
            self.bytes.fetch_add(token.cost(), Ordering::Relaxed);
            let before = state.token.replace(token);
            if let Some(before) = &before {
                self.bytes.fetch_sub(before.cost(), Ordering::Relaxed);
            }
            before.is_some()
        };
        if !had_one {
            self.take_place(slot);
        }
        self.make_room();
    }

    /// Takes the token out of a slot whose lock is held; its place in the order is passed over later.
    pub(super) fn forget(&self, state: &mut SlotState) {
        if let Some(token) = state.token.take() {
            self.bytes.fetch_sub(token.cost(), Ordering::Relaxed);
        }
    }

    /// Puts a slot last in the order. Places of slots that are gone are cleared away whenever the order has doubled:
    /// below the bound nobody else would pass over them, and each keeps its slot's memory.
    fn take_place(&self, slot: &Arc<Slot>) {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if order.len() >= order.capacity().max(LEAST_ORDER) {
            order.retain(|weak| weak.strong_count() > 0);
            let room = order.len().max(LEAST_ORDER);
            order.reserve_exact(room);
        }
        order.push_back(Arc::downgrade(slot));
    }

    fn make_room(&self) {
        if self.bytes.load(Ordering::Relaxed) <= self.limit {
            return;
        }
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let mut looks = order.len() * 2;
        while self.bytes.load(Ordering::Relaxed) > self.limit && looks > 0 {
            looks -= 1;
            let Some(weak) = order.pop_front() else { return };
            let Some(slot) = weak.upgrade() else { continue };
            let mut state = slot.lock();
            if state.token.is_none() {
                continue;
            }
            if state.take_used() {
                drop(state);
                order.push_back(weak);
            } else {
                self.forget(&mut state);
            }
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keeper::tests::new_slot,
        model::{AccessToken, Secret, Timestamp},
    };

    fn slot(byte: u8) -> Arc<Slot> {
        new_slot([byte; 16])
    }

    fn token() -> Arc<CachedToken> {
        let access = AccessToken {
            token: Secret::new("x".repeat(1000)),
            token_type: "Bearer".into(),
            scope: None,
            issued_at: Timestamp::default(),
            expires_at: Timestamp::default(),
            issued_boot: None,
        };
        let provider = "p".parse().expect("a name");
        Arc::new(CachedToken::new(&provider, &access, None, "e"))
    }

    #[test]
    fn it_stays_within_its_bound_and_spares_what_is_used() {
        let cache = TokenCache::new(u64::try_from(token().cost() * 2).expect("small"));
        let slots: Vec<_> = (0..4).map(slot).collect();
        cache.put(&slots[0], token(), |_| true);
        cache.put(&slots[1], token(), |_| true);
        slots[0].lock().use_token();
        cache.put(&slots[2], token(), |_| true);
        assert!(slots[0].lock().token.is_some(), "used");
        assert!(slots[1].lock().token.is_none());
        cache.put(&slots[3], token(), |_| true);
        assert_eq!(cache.bytes(), token().cost() * 2);
        cache.put(&slots[3], token(), |_| true);
        assert_eq!(cache.bytes(), token().cost() * 2, "a replaced token is not counted twice");
    }

    #[test]
    fn slots_that_come_and_go_leave_nothing_behind() {
        let cache = TokenCache::new(u64::MAX);
        for _ in 0..10_000 {
            let gone = slot(1);
            cache.put(&gone, token(), |_| true);
            cache.forget(&mut gone.lock());
        }
        assert!(cache.order.lock().expect("whole").len() <= 2 * LEAST_ORDER);
        assert_eq!(cache.bytes(), 0);
    }
}
