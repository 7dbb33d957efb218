//! The vault's keys, encrypted by age to every recipient.
//!
//! The plaintext of `keyring.age` is postcard's encoding of, in this order: version (one byte, 2), vault id (16
//! bytes), name key (32 bytes), fingerprint key (32 bytes), number of the data key that seals (varint), the data
//! keys (a varint count, then each as its varint number and 32 bytes), and the recipients (a varint count, then each as
//! its varint length and text). `recipients.txt` says the same in clear, for people and for errors; nothing is ever
//! encrypted to a key because that file lists it, since whoever can write to the folder could add one.
//!
//! Version 1 was the same without the recipients.
//!
//! The name and fingerprint keys are made once and never change: records are found by the one, and secrets recognised
//! by the other, as long as the vault lives. Data keys can be added.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{
    cipher::Key,
    error::VaultError,
    folder::{self, Folder},
    identity::Identity,
};

const VERSION: u8 = 2;
/// The most recipients a vault is encrypted to.
const MAX_RECIPIENTS: usize = 64;
/// The longest plaintext of a keyring, in bytes.
const MAX_PLAINTEXT_BYTES: usize = 64 * 1024;

/// The keys of one vault.
pub(super) struct Keyring {
    pub(super) vault: [u8; 16],
    pub(super) name_key: Key,
    pub(super) fingerprint_key: Key,
    /// The number of the data key that seals; always among `data_keys`.
    pub(super) current: u32,
    pub(super) data_keys: BTreeMap<u32, Key>,
    /// The public keys it is encrypted to.
    pub(super) recipients: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Form {
    version: u8,
    vault: [u8; 16],
    name_key: [u8; 32],
    fingerprint_key: [u8; 32],
    current: u32,
    data_keys: Vec<(u32, [u8; 32])>,
    recipients: Vec<String>,
}

impl Drop for Form {
    fn drop(&mut self) {
        self.name_key.zeroize();
        self.fingerprint_key.zeroize();
        for (_, key) in &mut self.data_keys {
            key.zeroize();
        }
    }
}

impl Keyring {
    /// Makes the keys of a new vault.
    pub(super) fn generate() -> Result<Self, VaultError> {
        let random = SystemRandom::new();
        let fill = |bytes: &mut [u8]| {
            random.fill(bytes).map_err(|_| VaultError::Engine { detail: "the system has no randomness".to_owned() })
        };
        let (mut vault, mut name_key, mut fingerprint_key, mut data_key) =
            ([0; 16], Key::default(), Key::default(), Key::default());
        fill(&mut vault)?;
        fill(name_key.as_mut_slice())?;
        fill(fingerprint_key.as_mut_slice())?;
        fill(data_key.as_mut_slice())?;
        let data_keys = BTreeMap::from([(1, data_key)]);
        Ok(Self { vault, name_key, fingerprint_key, current: 1, data_keys, recipients: vec![] })
    }

    /// Writes the keyring of a new vault, encrypted to `identity` and `recipients`, and the list of who can open it.
    pub(super) fn write_new(
        &mut self,
        folder: &Folder,
        identity: &Identity,
        recipients: &[String],
    ) -> Result<(), VaultError> {
        let recipients = parse_recipients(identity, recipients)?;
        self.recipients = recipients.iter().map(ToString::to_string).collect();
        folder::write_new(&folder.keyring(), &self.encrypt(&recipients)?)?;
        folder::write_new(&folder.recipients(), (self.recipients.join("\n") + "\n").as_bytes())
    }

    /// Opens the keyring with one of the identities.
    pub(super) fn read(folder: &Folder, identity: &Identity) -> Result<Self, VaultError> {
        let path = folder.keyring();
        let damaged = |detail: &str| VaultError::Damaged { what: "its keyring", detail: detail.to_owned() };
        let sealed = folder::read_small(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged("it is missing"),
            _ => VaultError::io(&path, &error),
        })?;
        let decryptor = age::Decryptor::new_buffered(&sealed[..]).map_err(|_| damaged("it is not an age file"))?;
        let mut reader = decryptor.decrypt(identity.keys()).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys if recipients(folder).contains(&identity.recipient()) => damaged(
                "it is not encrypted to the identity, although recipients.txt lists it: one of the two was replaced",
            ),
            age::DecryptError::NoMatchingKeys => VaultError::WrongIdentity {
                path: folder.path().to_owned(),
                identity: identity.recipient(),
                recipients: recipients(folder),
            },
            other => damaged(&other.to_string()),
        })?;
        let mut plaintext = Zeroizing::new(vec![0; MAX_PLAINTEXT_BYTES]);
        let mut length = 0;
        loop {
            match reader.read(&mut plaintext[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(_) => return Err(damaged("it was altered")),
            }
        }
        let mut keyring = Self::decode(&plaintext[..length])?;
        if keyring.recipients.is_empty() {
            // Of version 1: nobody but this identity is known to open it.
            keyring.recipients = vec![identity.recipient()];
        }
        Ok(keyring)
    }

    /// Reads the plaintext; of version 1, `recipients` stays empty.
    pub(super) fn decode(plaintext: &[u8]) -> Result<Self, VaultError> {
        let damaged = |detail: &str| VaultError::Damaged { what: "its keyring", detail: detail.to_owned() };
        let read = match plaintext.first() {
            Some(&VERSION) => postcard::from_bytes::<Form>(plaintext),
            // Its recipients, which it lacks, come last: an empty list stands for them.
            Some(1) => postcard::from_bytes::<Form>(&Zeroizing::new([plaintext, &[0]].concat())),
            _ => return Err(damaged("its version is unknown")),
        };
        let mut form = read.map_err(|_| damaged("its contents make no sense"))?;
        let data_keys: BTreeMap<_, _> =
            form.data_keys.iter().map(|(number, key)| (*number, Zeroizing::new(*key))).collect();
        if !data_keys.contains_key(&form.current) {
            return Err(damaged("the data key in use is missing"));
        }
        Ok(Self {
            vault: form.vault,
            name_key: Zeroizing::new(form.name_key),
            fingerprint_key: Zeroizing::new(form.fingerprint_key),
            current: form.current,
            data_keys,
            recipients: std::mem::take(&mut form.recipients),
        })
    }

    /// The plaintext, in a buffer that is wiped.
    pub(super) fn encode(&self) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let form = Form {
            version: VERSION,
            vault: self.vault,
            name_key: *self.name_key,
            fingerprint_key: *self.fingerprint_key,
            current: self.current,
            data_keys: self.data_keys.iter().map(|(number, key)| (*number, **key)).collect(),
            recipients: self.recipients.clone(),
        };
        let mut plaintext = Zeroizing::new(vec![0; MAX_PLAINTEXT_BYTES]);
        let (bytes, limit) = (MAX_PLAINTEXT_BYTES + 1, MAX_PLAINTEXT_BYTES);
        let used = postcard::to_slice(&form, &mut plaintext)
            .map_err(|_| VaultError::TooLarge { what: "the keyring", bytes, limit })?
            .len();
        plaintext.truncate(used);
        Ok(plaintext)
    }

    fn encrypt(&self, recipients: &[age::x25519::Recipient]) -> Result<Vec<u8>, VaultError> {
        let failed = |why: String| VaultError::Engine { detail: format!("age could not encrypt the keyring: {why}") };
        let plaintext = self.encode()?;
        let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as _))
            .map_err(|error| failed(error.to_string()))?;
        let mut sealed = Vec::new();
        encryptor
            .wrap_output(&mut sealed)
            .and_then(|mut writer| {
                writer.write_all(&plaintext)?;
                writer.finish()
            })
            .map_err(|error| failed(error.to_string()))?;
        Ok(sealed)
    }
}

/// Who can open the vault, as its folder says in clear; empty if it does not.
pub(super) fn recipients(folder: &Folder) -> Vec<String> {
    let text = folder::read_small(&folder.recipients()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.unwrap_or_default();
    text.lines().filter(|line| line.starts_with("age1")).take(MAX_RECIPIENTS).map(str::to_owned).collect()
}

/// The recipients that a keyring holds, which were checked when they came into it.
pub(super) fn parse_own(recipients: &[String]) -> Result<Vec<age::x25519::Recipient>, VaultError> {
    let parse = |text: &String| {
        text.parse().map_err(|why: &str| VaultError::Damaged {
            what: "its keyring",
            detail: format!("the recipient {text:?} in it makes no sense ({why})"),
        })
    };
    recipients.iter().map(parse).collect()
}

fn parse_recipients(identity: &Identity, configured: &[String]) -> Result<Vec<age::x25519::Recipient>, VaultError> {
    let mut all: Vec<_> = identity.recipients().collect();
    for text in configured {
        all.push(text.trim().parse().map_err(|why| VaultError::Recipient { recipient: text.clone(), why })?);
    }
    let mut seen = BTreeSet::new();
    all.retain(|recipient| seen.insert(recipient.to_string()));
    if all.len() > MAX_RECIPIENTS {
        return Err(VaultError::TooLarge { what: "a list of recipients", bytes: all.len(), limit: MAX_RECIPIENTS });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipient_opens_it_and_nobody_else_does() {
        let temporary = tempfile::tempdir().unwrap();
        let identity = |name: &str| Identity::create(&temporary.path().join(name)).unwrap();
        let (worker, recovery, stranger) = (identity("worker"), identity("recovery"), identity("stranger"));
        let folder = Folder::at(&temporary.path().join("vault"));
        folder.make().unwrap();
        let mut made = Keyring::generate().unwrap();
        made.write_new(&folder, &worker, &[recovery.recipient(), worker.recipient()]).unwrap();

        for opener in [&worker, &recovery] {
            let read = Keyring::read(&folder, opener).unwrap();
            assert_eq!((read.vault, read.current), (made.vault, 1));
            assert!(read.data_keys == made.data_keys && *read.name_key == *made.name_key);
            assert_eq!(read.recipients, [worker.recipient(), recovery.recipient()]);
        }
        let error = Keyring::read(&folder, &stranger).err().unwrap();
        assert!(matches!(error, VaultError::WrongIdentity { .. }));
        for known in [worker.recipient(), recovery.recipient(), stranger.recipient()] {
            assert!(error.to_string().contains(&known), "{error}");
        }
        assert_eq!(recipients(&folder).len(), 2, "the worker's own key is listed once");
    }

    #[test]
    fn the_first_version_is_read_and_has_no_recipients() {
        let made = Keyring::generate().unwrap();
        let mut plaintext = made.encode().unwrap().to_vec();
        assert_eq!(plaintext.pop(), Some(0), "an empty list");
        plaintext[0] = 1;
        let read = Keyring::decode(&plaintext).unwrap();
        assert!(read.data_keys == made.data_keys && read.recipients.is_empty());
        plaintext[0] = 3;
        assert!(Keyring::decode(&plaintext).is_err());
    }

    #[test]
    fn an_altered_keyring_is_refused_at_every_byte() {
        let temporary = tempfile::tempdir().unwrap();
        let identity = Identity::create(&temporary.path().join("identity")).unwrap();
        let folder = Folder::at(&temporary.path().join("vault"));
        folder.make().unwrap();
        Keyring::generate().unwrap().write_new(&folder, &identity, &[]).unwrap();
        let bytes = std::fs::read(folder.keyring()).unwrap();
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 4;
            std::fs::write(folder.keyring(), altered).unwrap();
            assert!(Keyring::read(&folder, &identity).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_recipient_that_is_none_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let identity = Identity::create(&temporary.path().join("identity")).unwrap();
        let error = parse_recipients(&identity, &["age1oops".to_owned()]).err().unwrap();
        assert!(error.to_string().contains("age1oops"), "{error}");
    }
}
