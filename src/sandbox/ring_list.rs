use std::collections::VecDeque;

/// A list that never holds more than `capacity` items: the oldest goes when a new one has no room. Items keep the
/// number that they were given, so that an old number finds nothing rather than another item.
#[derive(Debug)]
pub(super) struct RingList<T> {
    items: VecDeque<T>,
    first: u64,
    capacity: usize,
}

impl<T> RingList<T> {
    pub(super) const fn new(capacity: usize) -> Self {
        Self { items: VecDeque::new(), first: 0, capacity }
    }

    /// The number that the next item will get; the first one's is 0.
    pub(super) fn next(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// Adds an item; gives back the oldest one and its number where it had to go.
    pub(super) fn push(&mut self, item: T) -> Option<(u64, T)> {
        let full = self.items.len() >= self.capacity;
        let gone = if full { self.items.pop_front() } else { None };
        self.items.push_back(item);
        gone.map(|item| {
            let number = self.first;
            self.first += 1;
            (number, item)
        })
    }

    pub(super) fn get(&self, number: u64) -> Option<&T> {
        self.items.get(self.place(number)?)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let place = self.place(number)?;
        self.items.get_mut(place)
    }

    /// The items, the oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> + ExactSizeIterator {
        self.items.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }

    /// How many items had to go.
    pub(super) const fn dropped(&self) -> u64 {
        self.first
    }

    fn place(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_and_its_number_finds_nothing() {
        let mut list = RingList::new(2);
        assert_eq!((list.push("a"), list.push("b"), list.push("c")), (None, None, Some((0, "a"))));
        assert_eq!((list.get(0), list.get(1), list.get(2), list.get(3)), (None, Some(&"b"), Some(&"c"), None));
        assert_eq!((list.dropped(), list.next()), (1, 3));
    }
}
