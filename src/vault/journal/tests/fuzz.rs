//! What may stand in the journal: anything.

use bolero::check;

use super::*;
use crate::tests::{Edit, edited};

/// Bytes of the file from where frames are.
const FROM: usize = 2 * HEADER_BYTES;
/// How far the frames of [`written`] reach, and a little more.
const TO: usize = FROM + 1024;

/// The file of a journal with commits 11 to 14, and those.
fn written() -> (Fixture, Vec<u8>, Vec<Batch>) {
    let fixture = Fixture::filled(14);
    let bytes = std::fs::read(&fixture.path).unwrap();
    (fixture, bytes, (11..=14).map(batch).collect())
}

#[test]
fn no_commit_is_read_that_was_not_written() {
    let (fixture, bytes, batches) = written();
    check!().with_type::<(Vec<Edit>, bool)>().for_each(|(edits, in_header)| {
        let (from, to) = if *in_header { (0, FROM) } else { (FROM, TO) };
        let mut altered = bytes.clone();
        let piece = edited(&bytes[from..to], edits);
        let kept = piece.len().min(to - from);
        altered[from..from + kept].copy_from_slice(&piece[..kept]);
        std::fs::write(&fixture.path, &altered).unwrap();
        let read = Journal::open(&fixture.path, VAULT, true).and_then(|journal| journal.batches());
        // Less is an unsynced tail, or told by an error; other than what was written is never right.
        assert!(read.is_err() || batches.starts_with(&read.unwrap()));
    });
}

#[test]
fn a_frame_whose_checksum_is_right_is_what_it_says_or_refused() {
    let (fixture, bytes, _) = written();
    let payload = FROM + FRAME_HEADER_BYTES..FROM + FRAME_HEADER_BYTES + batch(11).payload_bytes();
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let piece = edited(&bytes[payload.clone()], edits);
        // As it would stand in a file that somebody made on purpose.
        let mut frame = bytes[FROM..FROM + FRAME_HEADER_BYTES - 8].to_vec();
        frame.extend_from_slice(&u32::try_from(piece.len()).unwrap().to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame), &piece);
        frame.extend_from_slice(&checksum.to_le_bytes());
        frame.extend_from_slice(&piece);
        let read = frame::Frame::read(&frame, 0).expect("its checksum is right");
        assert_eq!(read.payload, piece);
        let Some(batch) = Batch::decode(11, read.payload) else { return };
        let mut again = Vec::new();
        let standing = Standing { magic: Magic::Commit, generation: 2, sequence: 11, durable_through: 10 };
        frame::write(&mut again, standing, &batch);
        assert_eq!(&again[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + piece.len()], piece, "read as something else");
    });
    drop(fixture);
}

#[test]
fn a_header_whose_checksum_is_right_opens_a_journal_or_is_refused() {
    let (fixture, bytes, batches) = written();
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let mut altered = bytes.clone();
        for page in [0, HEADER_BYTES] {
            let piece = edited(&bytes[page + 12..page + 80], edits);
            let kept = piece.len().min(68);
            altered[page + 12..page + 12 + kept].copy_from_slice(&piece[..kept]);
            let checksum = crc32c::crc32c(&altered[page..page + 80]);
            altered[page + 80..page + 84].copy_from_slice(&checksum.to_le_bytes());
        }
        std::fs::write(&fixture.path, &altered).unwrap();
        let Ok(journal) = Journal::open(&fixture.path, VAULT, true) else { return };
        assert!(journal.bytes() <= altered.len() as u64, "room is taken for what is not there");
        if let Ok(read) = journal.batches() {
            assert!(read.iter().all(|read| batches.contains(read)));
        }
    });
}
