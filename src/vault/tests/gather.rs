//! Commits that share a sync.

use super::*;

/// How often the vault's writer has synced the journal for commits.
fn syncs(vault: &Vault) -> u64 {
    let text = vault.shared().unwrap().metrics.render();
    let count = text.lines().find_map(|line| line.strip_prefix("consentry_vault_write_duration_seconds_count "));
    count.unwrap().parse().unwrap()
}

#[tokio::test]
async fn commits_that_others_are_about_to_follow_wait_for_them_and_share_a_sync() {
    let fixture = Fixture::new();
    let (vault, _) = with_gathering(&fixture, |_| {}, Gathering::patient());
    let first = vault.announce();
    vault.commit(vec![put(1)]).await.unwrap();
    assert_eq!(syncs(&vault), 1, "one that is alone waits for nobody");
    let more: Vec<_> = (0..5).map(|_| vault.announce()).collect();
    let commits = async |vault: &Vault, grant: u8| vault.commit(vec![put(grant)]).await.unwrap();
    let (two, three, four) = tokio::join!(commits(&vault, 2), commits(&vault, 3), commits(&vault, 4));
    assert_eq!((two, three, four), (3, 4, 5));
    assert_eq!(syncs(&vault), 2);
    drop((first, more));
    vault.commit(vec![put(5)]).await.unwrap();
    assert_eq!((syncs(&vault), grants(&vault)), (3, vec![1, 2, 3, 4, 5]), "nobody is waited for who has gone");
}

#[tokio::test]
async fn a_commit_is_durable_before_long_though_whoever_was_announced_never_commits() {
    let fixture = Fixture::new();
    let (vault, _) = with_memory(&fixture, |_| {});
    let _others: Vec<_> = (0..64).map(|_| vault.announce()).collect();
    vault.commit(vec![put(1)]).await.unwrap();
    assert_eq!(grants(&vault), [1]);
}
