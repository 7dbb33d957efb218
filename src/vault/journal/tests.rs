mod fuzz;

use super::*;
use crate::vault::name::{Kind, Namer};

const VAULT: [u8; 16] = [1; 16];
const CAPACITY: u64 = 16 * 1024;

fn batch(sequence: u64) -> Batch {
    let name = |id: &[u8]| Namer::new(&[0; 32]).name(Kind::Grant, id);
    let entries = vec![
        Entry { name: name(&sequence.to_le_bytes()), sealed: Some(vec![0xab; 101]) },
        Entry { name: name(b"gone"), sealed: None },
    ];
    Batch { sequence, entries }
}

struct Fixture {
    _temporary: tempfile::TempDir,
    path: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("journal");
        Journal::create(&path, VAULT, 10, [9; 16], CAPACITY).unwrap();
        Self { _temporary: temporary, path }
    }

    fn open(&self) -> Journal {
        Journal::open(&self.path, VAULT, true).unwrap()
    }

    /// A journal with commits 11 to `last`, each synced by itself.
    fn filled(last: u64) -> Self {
        let fixture = Self::new();
        let mut journal = fixture.open();
        journal.start_over(10, None).unwrap();
        for sequence in 11..=last {
            journal.add(&batch(sequence)).unwrap();
            journal.sync(sequence).unwrap();
        }
        fixture
    }

    fn alter(&self, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    fn sequences(&self) -> Result<Vec<u64>, VaultError> {
        Ok(self.open().batches()?.iter().map(|batch| batch.sequence).collect())
    }
}

/// The length of a frame of `batch`.
const FRAME: u64 = (FRAME_HEADER_BYTES as u64 + 4 + 2 * 21 + 101).next_multiple_of(8);

#[test]
fn commits_read_back_as_they_were_written() {
    let fixture = Fixture::filled(13);
    assert_eq!(fixture.open().batches().unwrap(), [batch(11), batch(12), batch(13)]);
    assert_eq!(std::fs::metadata(&fixture.path).unwrap().len(), FRAMES_AT + CAPACITY);
}

#[test]
fn a_journal_is_read_to_its_end_whatever_the_length_of_its_frames() {
    let fixture = Fixture::new();
    let mut journal = fixture.open();
    journal.start_over(10, None).unwrap();
    let longest = journal.limit() - FRAME_HEADER_BYTES - 4 - 21;
    let mut written = Vec::new();
    for (sequence, bytes) in (11..).zip([1, longest, 700, longest, 1, longest - 1, 1500, longest, 9]) {
        let mut batch = batch(sequence);
        batch.entries.truncate(1);
        batch.entries[0].sealed = Some(vec![0xab; bytes]);
        journal.add(&batch).unwrap();
        journal.sync(sequence).unwrap();
        written.push(batch);
    }
    assert_eq!(fixture.open().batches().unwrap(), written);
    fixture.alter(FRAMES_AT + 60);
    let error = fixture.sequences().unwrap_err();
    assert!(error.to_string().contains("commit 11 is missing"), "{error}");
}

#[test]
fn a_new_journal_is_clean_and_empty() {
    let journal = Fixture::new().open();
    assert_eq!((journal.checkpoint(), journal.clean()), (10, Some([9; 16])));
    assert!(journal.batches().unwrap().is_empty());
}

#[test]
fn starting_over_drops_the_commits_before_the_checkpoint() {
    let fixture = Fixture::filled(13);
    let mut journal = fixture.open();
    journal.start_over(13, None).unwrap();
    assert!(fixture.sequences().unwrap().is_empty());
    journal.add(&batch(14)).unwrap();
    journal.sync(14).unwrap();
    assert_eq!(fixture.sequences().unwrap(), [14]);
}

#[test]
fn a_torn_last_commit_is_left_out() {
    let fixture = Fixture::filled(13);
    fixture.alter(FRAMES_AT + 2 * FRAME + 60);
    assert_eq!(fixture.sequences().unwrap(), [11, 12]);
}

#[test]
fn a_torn_last_commit_that_a_note_proves_synced_is_damage() {
    let fixture = Fixture::filled(12);
    let mut journal = fixture.open();
    journal.start_over(12, None).unwrap();
    journal.add(&batch(13)).unwrap();
    journal.sync(13).unwrap();
    journal.note().unwrap();
    assert_eq!(fixture.sequences().unwrap(), [13]);
    fixture.alter(FRAMES_AT + 60);
    let error = fixture.sequences().unwrap_err();
    assert!(error.to_string().contains("commit 13 is missing"), "{error}");
}

#[test]
fn a_damaged_commit_before_a_synced_one_is_damage_wherever_it_is_hit() {
    for at in 0..FRAME - 8 {
        let fixture = Fixture::filled(13);
        fixture.alter(FRAMES_AT + at);
        assert!(fixture.sequences().unwrap_err().is_damaged(), "byte {at}");
    }
}

#[test]
fn a_group_that_was_torn_in_the_middle_ends_there() {
    let fixture = Fixture::new();
    let mut journal = fixture.open();
    journal.start_over(10, None).unwrap();
    for sequence in 11..=13 {
        journal.add(&batch(sequence)).unwrap();
    }
    journal.sync(13).unwrap();
    fixture.alter(FRAMES_AT + FRAME + 50);
    assert_eq!(fixture.sequences().unwrap(), [11], "nothing proves that 12 was synced");
}

#[test]
fn frames_of_a_torn_group_do_not_come_back_after_starting_over() {
    let fixture = Fixture::new();
    let mut journal = fixture.open();
    journal.start_over(10, None).unwrap();
    journal.add(&batch(11)).unwrap();
    journal.add(&batch(12)).unwrap();
    journal.sync(12).unwrap();
    fixture.alter(FRAMES_AT + 50);
    assert!(fixture.sequences().unwrap().is_empty());
    let mut journal = fixture.open();
    journal.start_over(10, None).unwrap();
    journal.add(&batch(11)).unwrap();
    journal.sync(11).unwrap();
    assert_eq!(fixture.sequences().unwrap(), [11], "the old 12 that follows is of another generation");
}

#[test]
fn a_damaged_newest_header_is_noticed_once_frames_follow_it() {
    let fixture = Fixture::filled(11);
    let generation = fixture.open().header.generation;
    fixture.alter((generation % 2) * HEADER_BYTES as u64 + 40);
    let error = fixture.sequences().unwrap_err();
    assert!(error.to_string().contains("newest header"), "{error}");
}

#[test]
fn a_journal_that_was_cut_short_or_is_anothers_is_refused() {
    let fixture = Fixture::filled(12);
    let other = Journal::open(&fixture.path, [2; 16], true).unwrap_err();
    assert!(other.to_string().contains("another vault"), "{other}");
    for length in [0, 5000, FRAMES_AT, FRAMES_AT + FRAME + 20] {
        OpenOptions::new().write(true).open(&fixture.path).unwrap().set_len(length).unwrap();
        let error = Journal::open(&fixture.path, VAULT, true).unwrap_err();
        assert!(error.is_damaged(), "{length}: {error}");
        OpenOptions::new().write(true).open(&fixture.path).unwrap().set_len(FRAMES_AT + CAPACITY).unwrap();
        if length < FRAMES_AT {
            break;
        }
    }
}

#[test]
fn a_commit_larger_than_the_limit_is_refused_and_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let mut journal = fixture.open();
    journal.start_over(10, None).unwrap();
    let mut large = batch(11);
    large.entries[0].sealed = Some(vec![0; journal.limit()]);
    assert!(matches!(journal.add(&large), Err(VaultError::TooLarge { .. })));
    journal.add(&batch(11)).unwrap();
    journal.sync(11).unwrap();
    assert_eq!(fixture.sequences().unwrap(), [11]);
}

#[test]
fn there_is_always_room_for_a_group_until_a_checkpoint_is_wanted() {
    let fixture = Fixture::new();
    let mut journal = fixture.open();
    journal.start_over(10, None).unwrap();
    let mut sequence = 10;
    for _ in 0..1000 {
        if journal.wants_checkpoint() {
            journal.start_over(sequence, None).unwrap();
        }
        while !journal.group_is_full() {
            sequence += 1;
            journal.add(&batch(sequence)).unwrap();
        }
        journal.sync(sequence).unwrap();
        assert!(journal.position <= journal.header.capacity);
    }
    assert_eq!(std::fs::metadata(&fixture.path).unwrap().len(), FRAMES_AT + CAPACITY);
}

proptest::proptest! {
    #[test]
    fn any_payload_decodes_or_is_refused(bytes in proptest::collection::vec(0_u8..8, 0..200)) {
        if let Some(batch) = Batch::decode(1, &bytes) {
            proptest::prop_assert_eq!(batch.payload_bytes(), bytes.len());
        }
    }
}
