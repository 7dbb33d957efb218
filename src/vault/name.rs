//! Under which name a record is kept: a keyed hash of its id, so that a stolen file shows no organization numbers.
//!
//! ```text
//! offset  bytes  what
//!      0      1  kind
//!      1     16  HMAC-SHA256(name key, kind || id), its first 16 bytes
//! ```

use ring::hmac;

/// How many bytes of the hash are kept. At 128 bits, two of a million ids share a name with a chance below 10^-26.
const HASH_BYTES: usize = 16;
/// The length of every name.
pub(super) const NAME_BYTES: usize = 1 + HASH_BYTES;

/// What a record is. The numbers are part of the format and are never given out anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A grant, named by its id.
    Grant = 1,
    /// An organization, named by its id.
    Organization = 2,
    /// An intent, named by its grant's id.
    Intent = 3,
    /// A stray, named at random.
    Stray = 4,
    /// What the vault keeps about itself, named by a word.
    Meta = 5,
    /// A row of the outbox, named by its event's id.
    Event = 6,
    /// A consent that has not taken its place, named by its grant's id.
    Awaiting = 7,
    /// Links that were revoked, named by their organization.
    RevokedLinks = 8,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = 8;
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Grant,
        Self::Organization,
        Self::Intent,
        Self::Stray,
        Self::Meta,
        Self::Event,
        Self::Awaiting,
        Self::RevokedLinks,
    ];

    /// Its number in the format.
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// Its place in a table of all kinds.
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// Its word in messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Grant => "a grant's record",
            Self::Organization => "an organization's record",
            Self::Intent => "an intent's record",
            Self::Stray => "a stray's record",
            Self::Meta => "the vault's own record",
            Self::Event => "an event's record",
            Self::Awaiting => "the record of a consent that waits",
            Self::RevokedLinks => "the record of revoked links",
        }
    }
}

/// The name of a record in the engine, which shows what kind of record it is and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name([u8; NAME_BYTES]);

impl Name {
    /// Reads one back; `None` if `bytes` is no name of a known kind.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let name = Self(bytes.try_into().ok()?);
        Kind::ALL.iter().any(|kind| kind.byte() == name.0[0]).then_some(name)
    }

    /// What kind of record it names.
    pub fn kind(&self) -> Kind {
        Kind::ALL[usize::from(self.0[0]) - 1]
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; NAME_BYTES] {
        &self.0
    }
}

/// A part of the names of every kind. Names are hashes: parts of one size have about as many records each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Of the first two bytes of the hash, the first number and the one behind the last.
    from: u32,
    to: u32,
}

impl Part {
    /// How many numbers two bytes have.
    const NUMBERS: u32 = 1 << 16;
    /// All names.
    pub const ALL: Self = Self { from: 0, to: Self::NUMBERS };

    /// More threads than this have not more from it: the disk and the engine's own locks are shared.
    const MOST: usize = 8;

    /// All names, in as many parts as there are cores for this process, up to eight.
    pub fn by_cores() -> Vec<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::split(u32::try_from(cores.min(Self::MOST)).unwrap_or(1))
    }

    /// All names in so many parts, at least one.
    pub(super) fn split(parts: u32) -> Vec<Self> {
        let bound = |number: u32| Self::NUMBERS * number / parts;
        (0..parts).map(|number| Self { from: bound(number), to: bound(number + 1) }).collect()
    }

    /// Whether it has this name.
    pub(super) fn contains(self, name: &Name) -> bool {
        (self.from..self.to).contains(&u32::from(u16::from_be_bytes([name.0[1], name.0[2]])))
    }

    /// Its names of one kind: from the first on, and before the second, in order of their bytes.
    pub(super) fn bounds(self, kind: Kind) -> (Vec<u8>, Vec<u8>) {
        let bound = |number: u32| match u16::try_from(number) {
            Ok(number) => [&[kind.byte()][..], &number.to_be_bytes()].concat(),
            Err(_) => vec![kind.byte() + 1],
        };
        (bound(self.from), bound(self.to))
    }
}

/// Makes names.
pub(super) struct Namer(hmac::Key);

impl Namer {
    /// Names under `key`, which never changes in a vault's life.
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The name of the record of that kind with that id.
    pub(super) fn name(&self, kind: Kind, id: &[u8]) -> Name {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[kind.byte()]);
        context.update(id);
        let mut name = [0; NAME_BYTES];
        name[0] = kind.byte();
        name[1..].copy_from_slice(&context.sign().as_ref()[..HASH_BYTES]);
        Name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_key_kind_and_id_and_shows_only_the_kind() {
        let (one, two) = (Namer::new(&[1; 32]), Namer::new(&[2; 32]));
        let name = one.name(Kind::Organization, b"4711");
        assert_eq!(name, one.name(Kind::Organization, b"4711"));
        assert_eq!(name.kind(), Kind::Organization);
        assert_ne!(name, two.name(Kind::Organization, b"4711"));
        assert_ne!(name.0[1..], one.name(Kind::Grant, b"4711").0[1..]);
        assert_ne!(name, one.name(Kind::Organization, b"4712"));
    }

    #[test]
    fn every_name_is_in_one_part_and_between_its_bounds() {
        let namer = Namer::new(&[1; 32]);
        for parts in [1, 2, 3, 7] {
            for number in 0..100_u8 {
                let name = namer.name(Kind::Grant, &[number]);
                let of: Vec<_> = Part::split(parts).into_iter().filter(|part| part.contains(&name)).collect();
                let (from, to) = of[0].bounds(Kind::Grant);
                assert_eq!(of.len(), 1);
                assert!(from.as_slice() <= &name.as_bytes()[..] && &name.as_bytes()[..] < to.as_slice());
            }
            assert!(Part::split(parts).last().unwrap().contains(&Name([0xff; NAME_BYTES])));
        }
        assert_eq!(Part::split(1), [Part::ALL]);
    }

    #[test]
    fn only_names_of_known_kinds_are_read_back() {
        for kind in Kind::ALL {
            let name = Namer::new(&[1; 32]).name(kind, b"x");
            assert_eq!(Name::parse(name.as_bytes()), Some(name));
            assert_eq!(name.kind(), kind);
        }
        assert_eq!(Name::parse(&[0; NAME_BYTES]), None);
        assert_eq!(Name::parse(&[Kind::RevokedLinks.byte() + 1; NAME_BYTES]), None);
        assert_eq!(Name::parse(&[1; NAME_BYTES - 1]), None);
    }
}
