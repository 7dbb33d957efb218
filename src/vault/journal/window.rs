use std::io;

use super::{FRAMES_AT, frame::Frame, storage::Storage};

/// The frames of a journal, read as far ahead as the longest of them may reach: the whole is sixteen megabytes, of which nothing
/// is needed again.
pub(super) struct Window<'a> {
    file: &'a dyn Storage,
    /// Of all frames, in bytes.
    length: usize,
    /// Of the longest that there may be.
    longest: usize,
    /// Where what is in memory begins.
    start: usize,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) const fn new(file: &'a dyn Storage, length: usize, longest: usize) -> Self {
        Self { file, length, longest, start: 0, bytes: Vec::new() }
    }

    /// The frame that starts at `at`, if a whole one does. What is asked for goes forward.
    pub(super) fn frame(&mut self, at: usize) -> io::Result<Option<Frame<'_>>> {
        if self.start + self.bytes.len() < (at + self.longest).min(self.length) {
            self.move_to(at)?;
        }
        Ok(Frame::read(&self.bytes, at - self.start))
    }

    /// Twice the longest frame from `at` on, so that it is seldom moved.
    fn move_to(&mut self, at: usize) -> io::Result<()> {
        let passed = (at - self.start).min(self.bytes.len());
        self.bytes.drain(..passed);
        self.start = at;
        let known = self.bytes.len();
        self.bytes.resize((2 * self.longest).min(self.length.saturating_sub(at)), 0);
        self.file.read_exact_at(&mut self.bytes[known..], FRAMES_AT + (at + known) as u64)
    }
}
