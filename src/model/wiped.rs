use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use zeroize::optimization_barrier;

/// Bytes or text that hold a secret: all of the memory that they take is overwritten when they are dropped, whether it is in use
/// or not. What a collection takes no longer, since it has grown, is not: give it its capacity before its contents.
///
/// It does what `zeroize::Zeroizing` does, but with one instruction for many bytes instead of one for each, which was a tenth of what an
/// exchange costs. Its `Debug` shows nothing.
#[derive(Default)]
pub struct Wiped<T: Wipe>(T);

/// What [`Wiped`] can hold.
pub trait Wipe: Default {
    /// Gives the memory back, overwritten with zeros.
    fn wipe(self);
}

impl Wipe for Vec<u8> {
    fn wipe(mut self) {
        self.clear();
        // All of its capacity, which holds what is not in use any more.
        self.resize(self.capacity(), 0);
        optimization_barrier(self.as_slice());
    }
}

impl Wipe for Box<[u8]> {
    fn wipe(self) {
        self.into_vec().wipe();
    }
}

impl Wipe for String {
    fn wipe(self) {
        self.into_bytes().wipe();
    }
}

/// Overwrites bytes that may hold a secret with zeros.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Without it the compiler may see that nobody reads these zeros, and leave them out.
    optimization_barrier(&*bytes);
}

impl<T: Wipe> Wiped<T> {
    /// Takes `contents`, to be wiped in the end.
    pub const fn new(contents: T) -> Self {
        Self(contents)
    }
}

impl<T: Wipe> Drop for Wiped<T> {
    fn drop(&mut self) {
        std::mem::take(&mut self.0).wipe();
    }
}

impl<T: Wipe> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Wipe> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Wipe + AsRef<[u8]>> AsRef<[u8]> for Wiped<T> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl<T: Wipe> fmt::Debug for Wiped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wiped(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::given_back_with;

    const TEXT: &str = "hush-Secret-in-a-buffer-that-is-wiped";

    #[test]
    fn nothing_of_what_it_held_is_left_in_memory() {
        let left = given_back_with(TEXT.as_bytes(), || {
            drop(Wiped::new(TEXT.to_owned()));
            drop(Wiped::new(TEXT.as_bytes().to_vec()));
            drop(Wiped::new(Box::<[u8]>::from(TEXT.as_bytes())));
        });
        assert_eq!(left, 0);
        // The watched allocator does see what is not wiped.
        assert_eq!(given_back_with(TEXT.as_bytes(), || drop(TEXT.to_owned())), 1);
    }

    #[test]
    fn what_is_no_longer_in_use_is_wiped_too() {
        let left = given_back_with(TEXT.as_bytes(), || {
            let mut bytes = Wiped::new(TEXT.as_bytes().to_vec());
            bytes.clear();
            bytes.push(b'x');
            let mut text = Wiped::new(TEXT.to_owned());
            text.clear();
        });
        assert_eq!(left, 0);
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Wiped::new(TEXT.to_owned())), "Wiped(…)");
    }
}
