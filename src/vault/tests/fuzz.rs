//! What may stand in the vault's files: anything.

use std::{collections::BTreeMap, fs};

use bolero::check;
use zeroize::Zeroizing;

use super::super::{
    cipher::Cipher,
    codec::{Encoder, Meta, Record},
    folder::Folder,
    keyring::Keyring,
    name::{Kind, Name, Namer},
};
use crate::{
    model::{Credential, Fingerprint, Grant, GrantId, Intent, Organization, Secret, Timestamp},
    tests::{Edit, allocated, edited},
    vault::Stray,
};

/// Where an error names it, a secret is out.
const SECRET: &str = "hush-Secret-of-a-record";

fn bytes_of<R: Record>(record: &R) -> Vec<u8> {
    Encoder::new().encode(record, |bytes| Ok(bytes.to_vec())).expect("it was read from fewer bytes")
}

/// Reads `bytes` as a record; what can be read is written and read back the same.
fn reads<R: Record>(bytes: &[u8]) {
    let (read, asked) = allocated(|| R::read(bytes));
    // serde takes room for at most 1 MiB of a list before its elements are there; nothing is taken on a length's word.
    assert!(asked <= 64 * bytes.len() + 8 * 1024 * 1024, "{asked} bytes for a record of {}", bytes.len());
    match read {
        Ok(record) => {
            let again = bytes_of(&record);
            let read = R::read(&again).expect("it was just written");
            assert_eq!(bytes_of(&read), again);
        }
        Err(error) => assert!(!error.to_string().contains(SECRET), "{error}"),
    }
}

#[test]
fn a_record_is_read_as_it_was_written_or_not_at_all() {
    let grant = Grant { credential: Credential::RefreshToken(Secret::new(SECRET)), ..super::grant(1) };
    let organization = Organization {
        id: "DK-1".parse().expect("an id"),
        grant: grant.id,
        labels: [("team".to_owned(), SECRET.to_owned())].into(),
        added_at: Timestamp::default(),
    };
    let intent = Intent {
        grant: GrantId::from_bytes([1; 16]),
        fingerprint: Fingerprint([2; 16]),
        attempt: 1,
        first_at: Timestamp::default(),
        first_boot: std::time::Duration::from_secs(7),
        boot_id: 3,
    };
    let stray = Stray {
        grant: grant.id,
        at: Timestamp::default(),
        why: "late".into(),
        refresh_token: Some(Secret::new(SECRET)),
        access_token: Secret::new(SECRET),
    };
    let written =
        [bytes_of(&grant), bytes_of(&organization), bytes_of(&intent), bytes_of(&stray), bytes_of(&Meta::NEW)];
    check!().with_type::<(u8, Vec<Edit>)>().for_each(|(which, edits)| {
        let bytes = edited(&written[usize::from(*which) % written.len()], edits);
        reads::<Grant>(&bytes);
        reads::<Organization>(&bytes);
        reads::<Intent>(&bytes);
        reads::<Stray>(&bytes);
        reads::<Meta>(&bytes);
    });
}

#[test]
fn a_seal_opens_only_as_it_was_made() {
    let key = Zeroizing::new([7; 32]);
    let cipher = Cipher::new([1; 16], BTreeMap::from([(1, key.clone()), (2, key)]), 2);
    let name: Name = Namer::new(&[9; 32]).name(Kind::Grant, b"a");
    let sealed = cipher.seal(&name, 77, SECRET.as_bytes()).expect("sealed");
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let bytes = edited(&sealed, edits);
        match cipher.open(&name, bytes.clone()) {
            Ok(opened) => {
                assert_eq!(bytes, sealed, "an altered seal opens");
                assert_eq!((&opened.plaintext[..], opened.sequence), (SECRET.as_bytes(), 77));
            }
            Err(error) => {
                assert_ne!(bytes, sealed, "{error}");
                assert!(!error.to_string().contains(SECRET), "{error}");
            }
        }
    });
}

#[test]
fn a_keyring_is_read_as_it_was_written_or_not_at_all() {
    let mut keyring = Keyring::generate().expect("keys");
    keyring.recipients = vec!["age1example".to_owned(), "age1another".to_owned()];
    let written = keyring.encode().expect("short").to_vec();
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let bytes = edited(&written, edits);
        let (read, asked) = allocated(|| Keyring::decode(&bytes));
        assert!(asked <= 64 * bytes.len() + 8 * 1024 * 1024, "{asked} bytes for a keyring of {}", bytes.len());
        let Ok(read) = read else { return };
        assert!(read.data_keys.contains_key(&read.current));
        let Ok(again) = read.encode() else { return };
        let reread = Keyring::decode(&again).expect("it was just written");
        assert!(reread.data_keys == read.data_keys && reread.recipients == read.recipients);
        assert_eq!((reread.vault, reread.current), (read.vault, read.current));
    });
}

#[test]
fn a_format_file_names_its_format_or_is_refused() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = Folder::at(temporary.path());
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let bytes = edited(br#"{"format":1,"vault":"00112233445566778899aabbccddeeff"}"#, edits);
        fs::write(folder.format(), bytes).expect("ours");
        match folder.plate() {
            Ok(plate) => assert_eq!(plate.format, super::super::folder::FORMAT),
            Err(error) => assert!(error.to_string().len() < 500, "{error}"),
        }
    });
}
