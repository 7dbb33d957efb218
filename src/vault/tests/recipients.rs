//! Who can open the vault.

use super::{
    rekey::{GRANTS, filled, settled},
    *,
};

#[tokio::test]
async fn who_is_added_opens_the_vault_and_who_is_removed_opens_nothing_written_later_under_a_new_key() {
    let fixture = Fixture::new();
    let vault = filled(&fixture).await;
    let other = fixture.temporary.path().join("other.txt");
    let identity = Identity::create(&other).unwrap();
    let opens = |fixture: &Fixture| {
        let crashed = fixture.crashed();
        let as_other = Fixture { identity: Identity::read(&other).unwrap(), ..crashed };
        as_other.try_open().map(|vault| grants(&vault).len())
    };
    assert!(matches!(opens(&fixture), Err(VaultError::WrongIdentity { .. })));
    let (all, is_new) = vault.add_recipient(identity.recipient()).unwrap();
    let own = Recipient { key: fixture.identity.recipient(), own: true };
    assert!(is_new && all == [own.clone(), Recipient { key: identity.recipient(), own: false }]);
    assert!(!vault.add_recipient(identity.recipient()).unwrap().1);
    assert_eq!(opens(&fixture).unwrap(), usize::from(GRANTS));
    let listed = fs::read_to_string(fixture.path("recipients.txt")).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), [fixture.identity.recipient(), identity.recipient()]);

    let copied = fs::read(fixture.path("keyring.age")).unwrap();
    assert!(matches!(vault.remove_recipient(own.key.clone()), Err(VaultError::OwnRecipient { .. })));
    assert_eq!(vault.remove_recipient(identity.recipient()).unwrap(), [own]);
    assert!(matches!(opens(&fixture), Err(VaultError::WrongIdentity { .. })));
    // A copy of the keyring from before still opens what is there...
    let with_copy = |vault_of: &Fixture| {
        let crashed = vault_of.crashed();
        fs::write(crashed.path("keyring.age"), &copied).unwrap();
        opens(&crashed)
    };
    assert!(with_copy(&fixture).is_ok());
    // ...until there is a new data key.
    vault.rotate_data_key().unwrap();
    settled(&vault);
    let error = with_copy(&fixture).unwrap_err();
    assert!(error.to_string().contains("a data key that is not there"), "{error}");
    vault.close().unwrap();
    let vault = fixture.open();
    assert_eq!(vault.recipients().unwrap().len(), 1, "it is remembered");
}

#[tokio::test]
async fn a_list_for_people_that_says_something_else_is_mended_and_never_believed() {
    let fixture = Fixture::new();
    let vault = fixture.open();
    let stranger = age::x25519::Identity::generate().to_public().to_string();
    vault.close().unwrap();
    let listed = fs::read_to_string(fixture.path("recipients.txt")).unwrap();
    fs::write(fixture.path("recipients.txt"), format!("{listed}{stranger}\n")).unwrap();
    let vault = fixture.open();
    assert_eq!(fs::read_to_string(fixture.path("recipients.txt")).unwrap(), listed);
    vault.rotate_data_key().unwrap();
    settled(&vault);
    assert_eq!(fixture.keyring().recipients, [fixture.identity.recipient()]);
}
