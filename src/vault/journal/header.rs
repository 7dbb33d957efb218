//! The journal's header; the parent's doc comment states its bytes.

/// How much of the file each of the two headers takes.
pub(super) const HEADER_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"cnstryJH";
const FORMAT: u32 = 1;
const CHECKED_BYTES: usize = 80;

/// What counts since the last checkpoint, opening or closing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) vault: [u8; 16],
    pub(super) generation: u64,
    pub(super) checkpoint: u64,
    pub(super) capacity: u64,
    pub(super) clean: Option<[u8; 16]>,
}

impl Header {
    /// Where in the file it goes.
    pub(super) const fn place(&self) -> u64 {
        (self.generation % 2) * HEADER_BYTES as u64
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut page = [0; HEADER_BYTES];
        page[..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        page[16..32].copy_from_slice(&self.vault);
        page[32..40].copy_from_slice(&self.generation.to_le_bytes());
        page[40..48].copy_from_slice(&self.checkpoint.to_le_bytes());
        page[48..56].copy_from_slice(&self.capacity.to_le_bytes());
        page[56..64].copy_from_slice(&u64::from(self.clean.is_some()).to_le_bytes());
        page[64..80].copy_from_slice(&self.clean.unwrap_or_default());
        let checksum = crc32c::crc32c(&page[..CHECKED_BYTES]);
        page[CHECKED_BYTES..CHECKED_BYTES + 4].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    fn decode(page: &[u8]) -> Option<Self> {
        let number = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"));
        let whole = page[..8] == *MAGIC
            && page[8..12] == FORMAT.to_le_bytes()
            && page[CHECKED_BYTES..CHECKED_BYTES + 4] == crc32c::crc32c(&page[..CHECKED_BYTES]).to_le_bytes();
        whole.then(|| Self {
            vault: page[16..32].try_into().expect("sixteen bytes"),
            generation: number(32),
            checkpoint: number(40),
            capacity: number(48),
            clean: (number(56) == 1).then(|| page[64..80].try_into().expect("sixteen bytes")),
        })
    }

    /// The one of both that counts.
    pub(super) fn newest(pages: &[u8]) -> Result<Self, String> {
        let (even, odd) = pages.split_at(HEADER_BYTES);
        [Self::decode(even), Self::decode(odd)]
            .into_iter()
            .flatten()
            .max_by_key(|header| header.generation)
            .ok_or_else(|| "neither of its headers is whole".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(generation: u64) -> Header {
        Header {
            vault: [7; 16],
            generation,
            checkpoint: 5,
            capacity: 4096,
            clean: (generation == 2).then_some([3; 16]),
        }
    }

    #[test]
    fn the_newer_of_two_headers_counts_and_the_older_one_where_that_is_torn() {
        let mut pages = [header(2).encode(), header(3).encode()].concat();
        assert_eq!(Header::newest(&pages), Ok(header(3)));
        pages[HEADER_BYTES + 41] ^= 1;
        assert_eq!(Header::newest(&pages), Ok(header(2)));
        pages[0] ^= 1;
        assert!(Header::newest(&pages).is_err());
    }

    #[test]
    fn a_header_with_any_checked_bit_changed_does_not_count() {
        for byte in 0..CHECKED_BYTES + 4 {
            let mut page = header(2).encode();
            page[byte] ^= 0x10;
            assert_eq!(Header::decode(&page), None, "byte {byte}");
        }
    }
}
