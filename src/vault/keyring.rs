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
//! by the other, as long as the vault lives. Data keys come and go: a new one is added, every record is sealed anew under
//! it, and then the older ones are left out. The file is only ever replaced whole.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::Path,
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
use crate::config::MAX_RECIPIENTS;

const VERSION: u8 = 2;
/// How much of a recipient that is none is repeated, in characters.
const MAX_SHOWN: usize = 80;
/// The most data keys in a keyring: rotations that were begun while an earlier one could not be finished.
const MAX_DATA_KEYS: usize = 64;
/// The longest plaintext of a keyring, in bytes.
const MAX_PLAINTEXT_BYTES: usize = 64 * 1024;

/// The keys of one vault.
#[derive(Clone)]
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
        self.set_recipients(identity, recipients)?;
        folder::write_new(&folder.keyring(), &self.encrypt()?)?;
        folder::write_new(&folder.recipients(), self.recipients_text().as_bytes())
    }

    /// Of a new vault: `identity` and `recipients` open it.
    pub(super) fn set_recipients(&mut self, identity: &Identity, recipients: &[String]) -> Result<(), VaultError> {
        self.recipients.clear();
        for recipient in identity.recipients().map(|own| own.to_string()).chain(recipients.iter().cloned()) {
            self.add_recipient(&recipient)?;
        }
        Ok(())
    }

    /// Puts this keyring in the place of the one in the folder, as [`folder::replace`] does.
    pub(super) fn replace(&self, folder: &Folder) -> Result<(), VaultError> {
        folder::replace(&folder.keyring(), &self.encrypt()?)
    }

    /// Brings the list for people in line with the keyring, which alone counts: what fails is only logged.
    pub(super) fn tell_recipients(&self, folder: &Folder) {
        let (path, text) = (folder.recipients(), self.recipients_text());
        if folder::read_small(&path).is_ok_and(|found| found == text.as_bytes()) {
            return;
        }
        if let Err(error) = folder::replace(&path, text.as_bytes()) {
            tracing::warn!(error = %error, "the list of who can open the vault is not up to date; the keyring is");
        }
    }

    /// Its recipients, for people.
    pub(super) fn recipients_text(&self) -> String {
        self.recipients.join("\n") + "\n"
    }

    /// Adds a data key, which is the one that seals.
    pub(super) fn add_data_key(&mut self) -> Result<(), VaultError> {
        if self.data_keys.len() >= MAX_DATA_KEYS {
            return Err(VaultError::TooMany { what: "data keys", limit: MAX_DATA_KEYS });
        }
        let newest = self.data_keys.last_key_value().map_or(0, |(number, _)| *number);
        let number = newest.checked_add(1).ok_or(VaultError::TooMany { what: "data keys", limit: MAX_DATA_KEYS })?;
        let mut key = Key::default();
        fill(key.as_mut_slice())?;
        self.data_keys.insert(number, key);
        self.current = number;
        Ok(())
    }

    /// Forgets every data key but the one that seals.
    pub(super) fn forget_older(&mut self) {
        let current = self.current;
        self.data_keys.retain(|number, _| *number == current);
    }

    /// Adds a public key to those that open it; gives whether it is new.
    pub(super) fn add_recipient(&mut self, text: &str) -> Result<bool, VaultError> {
        let recipient = parse_recipient(text)?.to_string();
        if self.recipients.contains(&recipient) {
            return Ok(false);
        }
        if self.recipients.len() >= MAX_RECIPIENTS {
            return Err(VaultError::TooMany { what: "recipients", limit: MAX_RECIPIENTS });
        }
        self.recipients.push(recipient);
        Ok(true)
    }

    /// Removes a public key from those that open it; one of `own` must remain.
    pub(super) fn remove_recipient(&mut self, text: &str, own: &[String]) -> Result<(), VaultError> {
        let recipient = parse_recipient(text)?.to_string();
        if !self.recipients.contains(&recipient) {
            return Err(VaultError::UnknownRecipient { recipient });
        }
        if !self.recipients.iter().any(|kept| *kept != recipient && own.contains(kept)) {
            return Err(VaultError::OwnRecipient { recipient });
        }
        self.recipients.retain(|kept| *kept != recipient);
        Ok(())
    }

    /// Opens the keyring with one of the identities.
    pub(super) fn read(folder: &Folder, identity: &Identity) -> Result<Self, VaultError> {
        let path = folder.keyring();
        let damaged = |detail: &str| VaultError::Damaged { what: "its keyring", detail: detail.to_owned() };
        let sealed = folder::read_small(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged("it is missing"),
            _ => VaultError::io(&path, &error),
        })?;
        Self::open(&sealed, identity, &recipients(folder), folder.path())
    }

    /// Opens a keyring that is in `place`, where it is said to be encrypted to `listed`, with one of the identities.
    pub(super) fn open(
        sealed: &[u8],
        identity: &Identity,
        listed: &[String],
        place: &Path,
    ) -> Result<Self, VaultError> {
        let damaged = |detail: &str| VaultError::Damaged { what: "its keyring", detail: detail.to_owned() };
        let decryptor = age::Decryptor::new_buffered(sealed).map_err(|_| damaged("it is not an age file"))?;
        let mut reader = decryptor.decrypt(identity.keys()).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys if listed.contains(&identity.recipient()) => damaged(
                "it is not encrypted to the identity, although recipients.txt lists it: one of the two was replaced",
            ),
            age::DecryptError::NoMatchingKeys => VaultError::WrongIdentity {
                path: place.to_owned(),
                identity: identity.recipient(),
                recipients: listed.to_vec(),
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

    /// The keyring, encrypted to its recipients.
    pub(super) fn encrypt(&self) -> Result<Vec<u8>, VaultError> {
        let failed = |why: String| VaultError::Engine { detail: format!("age could not encrypt the keyring: {why}") };
        let plaintext = self.encode()?;
        let recipients = self.recipients.iter().map(|text| parse_recipient(text)).collect::<Result<Vec<_>, _>>()?;
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
    parse_listed(&text.unwrap_or_default())
}

/// Reads [`Keyring::recipients_text`].
pub(super) fn parse_listed(text: &str) -> Vec<String> {
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

/// Reads a public key. What does not look like one is not repeated: it may be a secret.
pub(super) fn parse_recipient(text: &str) -> Result<age::x25519::Recipient, VaultError> {
    let text = text.trim();
    text.parse().map_err(|why| {
        if text.get(..15).is_some_and(|start| start.eq_ignore_ascii_case("AGE-SECRET-KEY-")) {
            let why = "it is an identity, which is secret: treat it as leaked where others could see it";
            return VaultError::Recipient { what: "what was given".to_owned(), why };
        }
        let shown = text.starts_with("age1").then(|| format!("{:?}", text.chars().take(MAX_SHOWN).collect::<String>()));
        VaultError::Recipient { what: shown.unwrap_or_else(|| "what was given".to_owned()), why }
    })
}

fn fill(bytes: &mut [u8]) -> Result<(), VaultError> {
    let filled = SystemRandom::new().fill(bytes);
    filled.map_err(|_| VaultError::Engine { detail: "the system has no randomness".to_owned() })
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
    fn a_recipient_that_is_none_is_named_and_a_secret_is_not() {
        let refusal = |text: &str| parse_recipient(text).err().unwrap().to_string();
        assert!(refusal("age1oops").contains("\"age1oops\""), "{}", refusal("age1oops"));
        for secret in ["AGE-SECRET-KEY-1HUNTER2", "age-secret-key-1hunter2", "hunter2"] {
            assert!(!refusal(secret).to_lowercase().contains("hunter2"), "{}", refusal(secret));
        }
        assert!(refusal(&format!("age1{}", "x".repeat(5000))).len() < 300);
    }

    #[test]
    fn recipients_come_and_go_but_never_the_last_of_the_workers_own() {
        let temporary = tempfile::tempdir().unwrap();
        let identity = |name: &str| Identity::create(&temporary.path().join(name)).unwrap();
        let (worker, next, recovery) = (identity("worker"), identity("next"), identity("recovery"));
        let folder = Folder::at(&temporary.path().join("vault"));
        folder.make().unwrap();
        let mut keyring = Keyring::generate().unwrap();
        keyring.write_new(&folder, &worker, &[]).unwrap();
        assert!(keyring.add_recipient(&recovery.recipient()).unwrap());
        assert!(!keyring.add_recipient(&format!(" {} ", recovery.recipient())).unwrap(), "it is there already");
        keyring.replace(&folder).unwrap();
        assert!(Keyring::read(&folder, &recovery).is_ok() && Keyring::read(&folder, &worker).is_ok());

        let own = [worker.recipient()];
        let refused = |keyring: &mut Keyring, who: &Identity| keyring.remove_recipient(&who.recipient(), &own).err();
        assert!(matches!(refused(&mut keyring, &worker), Some(VaultError::OwnRecipient { .. })));
        assert!(matches!(refused(&mut keyring, &next), Some(VaultError::UnknownRecipient { .. })));
        keyring.remove_recipient(&recovery.recipient(), &own).unwrap();
        keyring.replace(&folder).unwrap();
        assert!(Keyring::read(&folder, &recovery).is_err() && Keyring::read(&folder, &worker).is_ok());

        // One of two identities of the worker's own may go.
        keyring.add_recipient(&next.recipient()).unwrap();
        keyring.remove_recipient(&worker.recipient(), &[worker.recipient(), next.recipient()]).unwrap();
        assert_eq!(keyring.recipients, [next.recipient()]);
        for _ in 1..MAX_RECIPIENTS {
            let one = age::x25519::Identity::generate().to_public().to_string();
            keyring.add_recipient(&one).unwrap();
        }
        let error = keyring.add_recipient(&worker.recipient()).err().unwrap();
        assert!(error.to_string().contains("at most 64 recipients"), "{error}");
    }

    #[test]
    fn a_data_key_is_added_under_a_new_number_and_the_older_ones_can_be_forgotten() {
        let mut keyring = Keyring::generate().unwrap();
        keyring.add_data_key().unwrap();
        assert_eq!((keyring.current, keyring.data_keys.len()), (2, 2));
        assert!(keyring.data_keys[&1] != keyring.data_keys[&2]);
        let read = Keyring::decode(&keyring.encode().unwrap()).unwrap();
        assert!(read.data_keys == keyring.data_keys && read.current == 2);
        keyring.forget_older();
        assert_eq!(keyring.data_keys.keys().copied().collect::<Vec<_>>(), [2]);
        for _ in 1..MAX_DATA_KEYS {
            keyring.add_data_key().unwrap();
        }
        assert!(matches!(keyring.add_data_key(), Err(VaultError::TooMany { .. })));
        assert!(Keyring::decode(&keyring.encode().unwrap()).unwrap().data_keys == keyring.data_keys);
    }
}
