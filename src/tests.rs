//! What the fuzz targets of all rooms share: changes to bytes that were right, and an allocator that tells how much was
//! asked for and whether what is given back still holds a secret.
//!
//! Every room's targets are in its `tests/fuzz.rs`. Each runs for a second in `cargo test`; `make fuzz FOR=60s` takes longer.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};

use bolero::TypeGenerator;
use mimalloc::MiMalloc;

/// Pieces that parsers care about, for where a random byte would hardly ever be one.
const WORDS: [&[u8]; 26] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b"=",
    b"#",
    b"\n",
    b"%00",
    b"%2F",
    b"..",
    b"\xff\xff\xff\xff",
    b"\0",
    b"\xef\xbb\xbf",
    b"'",
];

/// One change to bytes. Places are taken modulo the length, so that every change changes something.
#[derive(Clone, Copy, Debug, TypeGenerator)]
pub(crate) enum Edit {
    /// Another byte in its place.
    Set(u16, u8),
    /// One bit the other way round.
    Flip(u16, u8),
    /// A byte more.
    Insert(u16, u8),
    /// One of [`WORDS`] more.
    Word(u16, u8),
    /// So many bytes less.
    Remove(u16, u8),
    /// So many bytes from one place at another too.
    Copy(u16, u16, u8),
    /// Nothing from there on.
    Cut(u16),
}

/// `bytes` with all `edits`, one after the other.
pub(crate) fn edited(bytes: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for edit in edits {
        let length = bytes.len();
        let place = |at: u16| usize::from(at) % (length + 1);
        let end = |at: u16, count: u8| (place(at) + usize::from(count)).min(length);
        match *edit {
            Edit::Set(at, to) => bytes.iter_mut().skip(place(at)).take(1).for_each(|byte| *byte = to),
            Edit::Flip(at, bit) => bytes.iter_mut().skip(place(at)).take(1).for_each(|byte| *byte ^= 1 << (bit % 8)),
            Edit::Insert(at, byte) => bytes.insert(place(at), byte),
            Edit::Word(at, which) => {
                let word = WORDS[usize::from(which) % WORDS.len()];
                bytes.splice(place(at)..place(at), word.iter().copied());
            }
            Edit::Remove(at, count) => drop(bytes.drain(place(at)..end(at, count))),
            Edit::Copy(from, to, count) => {
                let piece = bytes[place(from)..end(from, count)].to_vec();
                bytes.splice(place(to)..place(to), piece);
            }
            Edit::Cut(at) => bytes.truncate(place(at)),
        }
    }
    bytes
}

/// The bytes that this thread asks the allocator for in `work`, those that it gives back meanwhile included.
pub(crate) fn allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ASKED.get();
    let done = work();
    (done, ASKED.get() - before)
}

/// How many blocks of memory this thread gives back in `work` that still hold `secret`, which has to be longer than
/// what an allocator overwrites of its own.
pub(crate) fn given_back_with(secret: &'static [u8], work: impl FnOnce()) -> usize {
    SOUGHT.set(secret);
    FOUND.set(0);
    work();
    SOUGHT.set(&[]);
    FOUND.get()
}

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
    static SOUGHT: Cell<&'static [u8]> = const { Cell::new(&[]) };
    static FOUND: Cell<usize> = const { Cell::new(0) };
}

/// The worker's allocator, watched.
struct Watched;

#[global_allocator]
static ALLOCATOR: Watched = Watched;

#[expect(unsafe_code, reason = "an allocator cannot be watched from outside; this one is in no release")]
// SAFETY: every call is handed on as it came, so that what holds of `MiMalloc` holds of this.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get().wrapping_add(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let sought = SOUGHT.get();
        if !sought.is_empty() {
            // SAFETY: the block is the caller's until it is given back below, and of that size. C may look at bytes that
            // were never written.
            let found = unsafe { libc::memmem(block.cast(), layout.size(), sought.as_ptr().cast(), sought.len()) };
            if !found.is_null() {
                FOUND.set(FOUND.get() + 1);
            }
        }
        // SAFETY: as the caller promised.
        unsafe { MiMalloc.dealloc(block, layout) }
    }
}

#[test]
fn memory_that_is_given_back_with_a_secret_in_it_is_noticed() {
    const PLAIN: &[u8] = b"a text that nobody wipes";
    assert_eq!(given_back_with(PLAIN, || drop(PLAIN.to_vec())), 1);
    assert!(allocated(|| drop(vec![0_u8; 1000])).1 >= 1000);
}

/// What a future that waits for nothing comes to: what a vault on this machine reads.
pub(crate) trait AtOnce: Future + Sized {
    fn at_once(self) -> Self::Output {
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(self).poll(context) {
            std::task::Poll::Ready(output) => output,
            std::task::Poll::Pending => panic!("it waits for something"),
        }
    }
}

impl<F: Future> AtOnce for F {}
