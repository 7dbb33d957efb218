use super::{CLIENT_REFUSED, REFUSED, UNAVAILABLE};

/// How a provider is, as far as other workers are to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::keeper) struct Standing {
    /// Why it is frozen; `None` while it is not.
    pub(in crate::keeper) open: Option<&'static str>,
    /// What it is on trial for.
    pub(in crate::keeper) trial: Option<&'static str>,
    /// How often in a row it was given a trial.
    pub(in crate::keeper) relapses: u32,
}

impl Standing {
    /// Every reason, at the place whose number, plus one, stands for it in [`words`](Self::words).
    const REASONS: [&'static str; 3] = [REFUSED, CLIENT_REFUSED, UNAVAILABLE];
    /// Of the format below.
    const FORMAT: u8 = 1;

    /// As others read it: format, why it is frozen, what it is on trial for, and the trials in a row, little endian.
    pub(in crate::keeper) fn words(self) -> Vec<u8> {
        let number = |reason: Option<&str>| {
            let place = Self::REASONS.iter().position(|known| Some(*known) == reason);
            place.and_then(|place| u8::try_from(place + 1).ok()).unwrap_or(0)
        };
        [&[Self::FORMAT, number(self.open), number(self.trial)][..], &self.relapses.to_le_bytes()].concat()
    }

    /// What [`words`](Self::words) gave; `None` for what a newer version may have written.
    pub(in crate::keeper) fn read(words: &[u8]) -> Option<Self> {
        let [Self::FORMAT, open, trial, relapses @ ..] = words else { return None };
        let reason = |number: u8| match number {
            0 => Some(None),
            number => Self::REASONS.get(usize::from(number) - 1).map(|reason| Some(*reason)),
        };
        let relapses = u32::from_le_bytes(relapses.try_into().ok()?);
        Some(Self { open: reason(*open)?, trial: reason(*trial)?, relapses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_version_says_of_a_provider_is_left_alone() {
        let standing = Standing { open: Some(REFUSED), trial: Some(UNAVAILABLE), relapses: 700 };
        let words = standing.words();
        assert_eq!(Standing::read(&words), Some(standing));
        for (place, value) in [(0, 2), (1, 9), (2, 9)] {
            let mut other = words.clone();
            other[place] = value;
            assert_eq!(Standing::read(&other), None);
        }
        assert_eq!(Standing::read(&words[..6]), None);
    }
}
