use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashTable;

use super::slot::{NOT_LIVING, UNKNOWN_SUBJECT};

/// How many living grants each subject has at a provider.
#[derive(Debug, Default)]
pub(super) struct Subjects(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    known: HashTable<Count>,
    /// By provider: its living grants of any subject, and those of them whose subject nobody knows.
    others: BTreeMap<u16, (u32, u32)>,
}

/// A subject of a provider, and how many living grants are its: 48 bits of a hash, and 16 of a number.
///
/// Most subjects have one grant, and there may be a million of them. Two whose bits are the same (in 1 of 500 fleets of a
/// million there is such a pair) are taken for one: then a grant of either is not tried where that might harm the other, which
/// is the safe side. So is a number that has reached its end, and stays there until the next start.
#[derive(Debug, Clone, Copy)]
struct Count(u64);

impl Count {
    const NUMBER_BITS: u32 = 16;
    const MOST: u64 = (1 << Self::NUMBER_BITS) - 1;

    /// A subject of which there is no grant yet.
    fn none(provider: u16, subject: u64) -> Self {
        Self((subject << Self::NUMBER_BITS) ^ (u64::from(provider) << 48))
    }

    const fn number(self) -> u64 {
        self.0 & Self::MOST
    }

    const fn subject(self) -> u64 {
        self.0 >> Self::NUMBER_BITS
    }

    /// The subject's bits are as good as random, but the table looks at the uppermost of 64.
    const fn hash(self) -> u64 {
        self.subject().wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Subjects {
    /// Counts a living grant of a subject in or out.
    pub(super) fn count(&self, provider: u16, subject: u64, living: bool) {
        if subject == NOT_LIVING {
            return;
        }
        let mut counts = self.lock();
        let step = |count: &mut u32| *count = if living { count.saturating_add(1) } else { count.saturating_sub(1) };
        let (all, unknown) = counts.others.entry(provider).or_default();
        step(all);
        if subject == UNKNOWN_SUBJECT {
            step(unknown);
        } else if living {
            counts.add(Count::none(provider, subject));
        } else {
            counts.take(Count::none(provider, subject));
        }
    }

    /// Whether a provider may have another living grant of this subject beside one that is counted itself. A subject that
    /// nobody knows, this one or another's, may be the same.
    pub(super) fn may_be_shared(&self, provider: u16, subject: u64) -> bool {
        let counts = self.lock();
        let (all, unknown) = counts.others.get(&provider).copied().unwrap_or_default();
        match subject {
            UNKNOWN_SUBJECT => all > 1,
            known => unknown > 0 || counts.of(Count::none(provider, known)) > 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn of(&self, wanted: Count) -> u64 {
        self.known.find(wanted.hash(), |count| count.subject() == wanted.subject()).map_or(0, |count| count.number())
    }

    fn add(&mut self, wanted: Count) {
        let same = |count: &Count| count.subject() == wanted.subject();
        let count = self.known.entry(wanted.hash(), same, |count| count.hash()).or_insert(wanted).into_mut();
        if count.number() < Count::MOST {
            count.0 += 1;
        }
    }

    fn take(&mut self, wanted: Count) {
        let same = |count: &Count| count.subject() == wanted.subject();
        if let Ok(mut found) = self.known.find_entry(wanted.hash(), same) {
            match found.get().number() {
                0 | 1 => drop(found.remove()),
                Count::MOST => {}
                _ => found.get_mut().0 -= 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::slot::text_hash;

    #[test]
    fn a_subject_is_shared_while_two_of_its_grants_live() {
        let subjects = Subjects::default();
        let (alice, bob) = (text_hash("alice"), text_hash("bob"));
        subjects.count(0, alice, true);
        subjects.count(1, alice, true);
        subjects.count(0, bob, true);
        assert!(!subjects.may_be_shared(0, alice), "at another provider it is another person");
        subjects.count(0, alice, true);
        assert!(subjects.may_be_shared(0, alice));
        assert!(!subjects.may_be_shared(0, bob));
        subjects.count(0, alice, false);
        assert!(!subjects.may_be_shared(0, alice));
        subjects.count(0, UNKNOWN_SUBJECT, true);
        assert!(subjects.may_be_shared(0, bob), "whose it is nobody knows");
        assert!(subjects.may_be_shared(0, UNKNOWN_SUBJECT), "others live");
        assert!(!subjects.may_be_shared(1, alice));
    }

    #[test]
    fn who_is_gone_leaves_nothing_behind_and_one_that_is_alone_is_not_shared() {
        let subjects = Subjects::default();
        for name in 0..1000 {
            subjects.count(0, text_hash(&name.to_string()), true);
        }
        for name in 0..1000 {
            let subject = text_hash(&name.to_string());
            assert!(!subjects.may_be_shared(0, subject));
            subjects.count(0, subject, false);
            subjects.count(0, NOT_LIVING, false);
        }
        assert!(subjects.lock().known.is_empty());
        subjects.count(0, UNKNOWN_SUBJECT, true);
        assert!(!subjects.may_be_shared(0, UNKNOWN_SUBJECT), "no other lives");
    }

    #[test]
    fn more_grants_than_can_be_counted_stay_shared() {
        let subjects = Subjects::default();
        let alice = text_hash("alice");
        for living in [true, false] {
            for _ in 0..70_000 {
                subjects.count(0, alice, living);
            }
        }
        assert!(subjects.may_be_shared(0, alice));
    }
}
