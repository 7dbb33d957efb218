//! The bytes of a backup; the parent's doc comment states them.

use std::io::{self, BufReader, Read, Write};

use age::stream::{StreamReader, StreamWriter};
use zeroize::Zeroizing;

use crate::{
    model::Timestamp,
    vault::{
        Identity, VaultError,
        engine::Mark,
        journal::Batch,
        name::{NAME_BYTES, Name},
    },
};

const MAGIC: &[u8; 8] = b"cnstryBK";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 3 * 8;
const PART_HEADER_BYTES: usize = 1 + 4;
const RECORD: u8 = 1;
const COMMIT: u8 = 2;
const KEYRING: u8 = 3;
const END: u8 = 4;
/// The longest part that is read, in bytes: above the largest commit of the largest journal.
const MAX_PART_BYTES: u32 = 160 * 1024 * 1024;
/// How much of the file is read at once, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// What a backup says before all else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::vault) struct Header {
    /// When it was begun.
    pub(in crate::vault) begun_at: Timestamp,
    /// The last commit before it was begun.
    pub(in crate::vault) sequence: u64,
    /// How many records there were then; the end says how many there are in it.
    pub(in crate::vault) records: u64,
}

/// A part of a backup.
pub(in crate::vault) enum Part {
    /// A record as it was read.
    Record(Name, Vec<u8>),
    /// A commit that was made meanwhile.
    Commit(Batch),
    /// The keyring's plaintext.
    Keyring(Zeroizing<Vec<u8>>),
    /// The mark at the end; nothing follows.
    End(Mark),
}

/// A backup that is being written.
pub(in crate::vault) struct Output<W: Write> {
    age: StreamWriter<W>,
}

impl<W: Write> Output<W> {
    pub(in crate::vault) fn begin(
        recipients: &[age::x25519::Recipient],
        header: Header,
        output: W,
    ) -> Result<Self, VaultError> {
        let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as _))
            .map_err(|error| VaultError::BackupUnwritten { why: error.to_string() })?;
        let mut this = Self { age: encryptor.wrap_output(output).map_err(|error| unwritten(&error))? };
        this.write(MAGIC)?;
        this.write(&FORMAT.to_le_bytes())?;
        this.write(&header.begun_at.as_millis().to_le_bytes())?;
        this.write(&header.sequence.to_le_bytes())?;
        this.write(&header.records.to_le_bytes())?;
        Ok(this)
    }

    pub(in crate::vault) fn record(&mut self, name: &Name, sealed: &[u8]) -> Result<(), VaultError> {
        self.part(RECORD, &[name.as_bytes(), sealed])
    }

    pub(in crate::vault) fn commit(&mut self, batch: &Batch) -> Result<(), VaultError> {
        let mut payload = Vec::with_capacity(batch.payload_bytes());
        batch.encode(&mut payload);
        self.part(COMMIT, &[&batch.sequence.to_le_bytes(), &payload])
    }

    pub(in crate::vault) fn keyring(&mut self, plaintext: &[u8]) -> Result<(), VaultError> {
        self.part(KEYRING, &[plaintext])
    }

    /// Writes the last part, and whatever is still held back.
    pub(in crate::vault) fn end(mut self, mark: &Mark) -> Result<(), VaultError> {
        self.part(END, &[&mark.encode()])?;
        self.age.finish().and_then(|mut output| output.flush()).map_err(|error| unwritten(&error))
    }

    fn part(&mut self, kind: u8, pieces: &[&[u8]]) -> Result<(), VaultError> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let length = u32::try_from(bytes).ok().filter(|length| *length <= MAX_PART_BYTES);
        let limit = MAX_PART_BYTES as usize;
        let length = length.ok_or(VaultError::TooLarge { what: "a part of a backup", bytes, limit })?;
        self.write(&[kind])?;
        self.write(&length.to_le_bytes())?;
        pieces.iter().try_for_each(|piece| self.write(piece))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), VaultError> {
        self.age.write_all(bytes).map_err(|error| unwritten(&error))
    }
}

/// A backup that is being read.
pub(in crate::vault) struct Input<R: Read> {
    age: StreamReader<BufReader<R>>,
}

impl<R: Read> Input<R> {
    /// Opens a backup with one of the identities.
    pub(in crate::vault) fn open(identity: &Identity, input: R) -> Result<(Self, Header), VaultError> {
        let input = BufReader::with_capacity(READ_BYTES, input);
        let decryptor = age::Decryptor::new_buffered(input).map_err(|error| match error {
            age::DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => unread(&error),
            _ => unusable("it is not a backup: not a file that age encrypted, in its binary form"),
        })?;
        let age = decryptor.decrypt(identity.keys()).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => unusable(&format!(
                "it is not encrypted to the identity {}; name one that it is encrypted to in vault.identity_file",
                identity.recipient()
            )),
            error => unusable(&error.to_string()),
        })?;
        let mut this = Self { age };
        let mut bytes = [0; HEADER_BYTES];
        this.fill(&mut bytes)?;
        if bytes[..8] != *MAGIC {
            return Err(unusable("what it holds is not a backup of a vault"));
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let format = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        if format != FORMAT {
            return Err(unusable(&format!(
                "its format is {format}, and this version of consentry knows format {FORMAT}; use the newer version"
            )));
        }
        let begun_at = Timestamp::from_millis(number(12).cast_signed());
        Ok((this, Header { begun_at, sequence: number(20), records: number(28) }))
    }

    /// The next part. After the last one it has been seen that nothing follows.
    pub(in crate::vault) fn next(&mut self) -> Result<Part, VaultError> {
        let mut header = [0; PART_HEADER_BYTES];
        self.fill(&mut header)?;
        let length = u32::from_le_bytes(header[1..].try_into().expect("four bytes"));
        if length > MAX_PART_BYTES {
            return Err(unusable("a part of it is longer than any can be"));
        }
        // It grows with what is really there, whatever the length says; a keyring's buffer does not have to grow.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length.min(64 * 1024) as usize));
        let read = (&mut self.age).take(length.into()).read_to_end(&mut bytes).map_err(|error| unread(&error))?;
        if read < length as usize {
            return Err(cut_short());
        }
        let sense = |what: Option<Part>| what.ok_or_else(|| unusable("a part of it makes no sense"));
        match header[0] {
            RECORD => sense(
                bytes
                    .split_at_checked(NAME_BYTES)
                    .and_then(|(name, sealed)| Some(Part::Record(Name::parse(name)?, sealed.to_vec()))),
            ),
            COMMIT => sense(bytes.split_first_chunk().and_then(|(sequence, payload)| {
                Some(Part::Commit(Batch::decode(u64::from_le_bytes(*sequence), payload)?))
            })),
            KEYRING => Ok(Part::Keyring(bytes)),
            END => {
                self.must_end()?;
                sense(Mark::decode(&bytes).map(Part::End))
            }
            _ => sense(None),
        }
    }

    fn must_end(&mut self) -> Result<(), VaultError> {
        match self.age.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(unusable("something follows its end")),
            Err(error) => Err(unread(&error)),
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), VaultError> {
        self.age.read_exact(bytes).map_err(|error| unread(&error))
    }
}

fn unwritten(error: &io::Error) -> VaultError {
    VaultError::BackupUnwritten { why: error.to_string() }
}

/// Sorts a failure to read on: age tells by the same type that the bytes are wrong and that there are none.
fn unread(error: &io::Error) -> VaultError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => cut_short(),
        io::ErrorKind::InvalidData => unusable("it was altered"),
        _ => unusable(&format!("it cannot be read: {error}")),
    }
}

fn cut_short() -> VaultError {
    unusable("it was cut short")
}

fn unusable(detail: &str) -> VaultError {
    VaultError::BackupUnusable { detail: detail.to_owned() }
}
