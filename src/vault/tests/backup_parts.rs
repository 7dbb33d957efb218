//! Backups that are not as they were written.

use std::{
    fs,
    io::{self, Read, Write},
};

use super::{backup::backup_of, *};
use crate::vault::backup::{Input, Part};

#[tokio::test]
async fn a_backup_that_was_cut_short_or_altered_is_refused_and_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    // More than one chunk of age's, so that the cut can come between two.
    for number in 0..=u8::MAX {
        vault.commit(vec![put(number)]).await.unwrap();
    }
    let backup = backup_of(&vault);
    let chunk = 64 * 1024 + 16;
    assert!(backup.len() > chunk + 300);
    let header = backup.windows(5).position(|window| window == b"\n--- ").unwrap() + 5 + 43 + 1 + 16;
    let new = fixture.elsewhere(Vec::new());
    let cuts = [0, 1, 20, 100, header, header + 40, header + chunk - 1, header + chunk, header + chunk + 1];
    for cut in cuts.into_iter().chain([backup.len() - 1, backup.len() - 40]) {
        new.restore_refused(&backup[..cut]);
    }
    for at in [0, 30, header - 8, header + 3, header + 50, header + chunk + 5, backup.len() - 1] {
        let mut altered = backup.clone();
        altered[at] ^= 1;
        new.restore_refused(&altered);
    }
    new.restore_refused(&[&backup[..], b"x"].concat());
    new.restore_refused(b"PLAIN TEXT");
    new.restore(&backup).unwrap();
}

/// The plaintext of a backup, cut at each of its parts.
fn parts_of(fixture: &Fixture, backup: &[u8]) -> Vec<Vec<u8>> {
    let decryptor = age::Decryptor::new_buffered(backup).unwrap();
    let mut plain = Vec::new();
    decryptor.decrypt(fixture.identity.keys()).unwrap().read_to_end(&mut plain).unwrap();
    let mut parts = vec![plain[..36].to_vec()];
    let mut at = 36;
    while at < plain.len() {
        let length = u32::from_le_bytes(plain[at + 1..at + 5].try_into().unwrap()) as usize;
        parts.push(plain[at..at + 5 + length].to_vec());
        at += 5 + length;
    }
    parts
}

fn encrypted(fixture: &Fixture, parts: &[Vec<u8>]) -> Vec<u8> {
    let recipients: Vec<_> = fixture.identity.recipients().collect();
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as _)).unwrap();
    let mut file = Vec::new();
    let mut writer = encryptor.wrap_output(&mut file).unwrap();
    writer.write_all(&parts.concat()).unwrap();
    writer.finish().unwrap();
    file
}

/// An output by way of which commits come while the backup is made.
struct Committing<'a>(&'a Vault, Vec<u8>);
impl Write for Committing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.is_empty() {
            for number in 2..4 {
                let commit = self.0.commit(vec![put(number), Change::DeleteGrant(id(1))]);
                std::thread::scope(|scope| {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    scope.spawn(move || runtime.block_on(commit).unwrap());
                });
            }
            bring_up(self.0).unwrap();
        }
        self.1.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_backup_whose_parts_are_not_as_they_were_written_is_refused_at_every_part() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    vault.commit(vec![put(1), put(2), put(3)]).await.unwrap();
    let mut output = Committing(&vault, Vec::new());
    vault.backup(Timestamp::default(), &mut output).unwrap();
    let parts = parts_of(&fixture, &output.1);
    let kinds: Vec<_> = parts[1..].iter().map(|part| part[0]).collect();
    assert_eq!(kinds, [1, 1, 1, 2, 2, 3, 4], "what was removed before it was read is not there");
    let new = fixture.elsewhere(Vec::new());
    // A record that a commit wrote over counts for nothing: without it the outcome is the same.
    let (mut refused, mut the_same) = (0, 0);
    let mut attempt = |parts: &[Vec<u8>]| {
        let backup = encrypted(&fixture, parts);
        if new.restore(&backup).is_err() {
            new.restore_refused(&backup);
            refused += 1;
            return;
        }
        the_same += 1;
        let restored = new.open();
        assert_eq!(grants(&restored), [2, 3]);
        for number in [2, 3] {
            let sequence = |vault: &Vault| vault.grant(id(number)).at_once().unwrap().unwrap().sequence;
            assert_eq!(sequence(&restored), sequence(&vault));
        }
        drop(restored);
        fs::remove_dir_all(&new.config.path).unwrap();
    };
    for at in 0..parts.len() {
        attempt(&[&parts[..at], &parts[at + 1..]].concat());
        attempt(&[&parts[..=at], &parts[at..]].concat());
        attempt(&parts[..at]);
        if at > 0 {
            let mut swapped = parts.clone();
            swapped.swap(at - 1, at);
            attempt(&swapped);
        }
        // When it was begun is the one thing in it on which nothing depends.
        let last = if at == 0 { 8 } else { parts[at].len() - 1 };
        let mut altered = parts.clone();
        altered[at][last] ^= 1;
        attempt(&altered);
    }
    assert!(refused > 30 && the_same <= 4, "{refused} refused, {the_same} without effect");
    let mut newer = parts.clone();
    newer[0][8] = 2;
    assert!(new.restore_refused(&encrypted(&fixture, &newer)).contains("newer version"));
    new.restore(&encrypted(&fixture, &parts)).expect("as it was written");
    assert_eq!(grants(&new.open()), [2, 3]);
}

#[test]
fn the_parts_of_a_backup_are_fixed_to_the_byte() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let backup = backup_of(&vault);
    let parts = parts_of(&fixture, &backup);
    let header = [&b"cnstryBK"[..], &[1, 0, 0, 0], &1000_u64.to_le_bytes(), &1_u64.to_le_bytes(), &1_u64.to_le_bytes()];
    assert_eq!(parts[0], header.concat());
    assert_eq!(parts.len(), 4);
    let name = Namer::new(&fixture.keyring().name_key).name(Kind::Meta, b"vault");
    assert_eq!((parts[1][0], &parts[1][5..22]), (1, &name.as_bytes()[..]));
    assert_eq!((parts[2][0], &parts[2][5..]), (3, &fixture.keyring().encode().unwrap()[..]));
    let (mut input, _) = Input::open(&fixture.identity, &backup[..]).unwrap();
    let mut last = input.next().unwrap();
    while !matches!(last, Part::End(_)) {
        last = input.next().unwrap();
    }
    let Part::End(mark) = last else { unreachable!() };
    assert_eq!((parts[3][0], &parts[3][5..]), (4, &mark.encode()[..]));
}
