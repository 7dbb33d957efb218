//! Memory that held a secret is wiped before anybody else gets it.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::super::{
    cipher::Cipher,
    codec::{Encoder, Record as _},
};
use super::*;
use crate::tests::given_back_with;

#[test]
fn nothing_of_a_record_that_was_sealed_and_opened_is_left_in_memory() {
    const SECRET: &str = "hush-Secret-of-a-record-that-is-wiped";
    let cipher = Cipher::new([1; 16], BTreeMap::from([(1, Zeroizing::new([7; 32]))]), 1);
    let name = Namer::new(&[9; 32]).name(Kind::Grant, b"a");
    let left = given_back_with(SECRET.as_bytes(), || {
        let grant = Grant { credential: Credential::RefreshToken(Secret::new(SECRET)), ..grant(1) };
        let sealed = Encoder::new().encode(&grant, |plaintext| cipher.seal(&name, 1, plaintext)).unwrap();
        drop(grant);
        let opened = cipher.open(&name, sealed).unwrap();
        let read = Grant::read(&opened.plaintext).unwrap();
        assert_eq!(read.credential.secret().expose(), SECRET);
    });
    assert_eq!(left, 0);
}
