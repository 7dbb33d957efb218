//! A vault that went back in time, as the keeper takes it up.

use super::*;
use crate::{
    model::{AccessToken, Consent, DoubtReason, Fingerprint, Grant, GrantId, State},
    vault::Change,
};

const EACH: u16 = 300;

fn stored(number: u16, credential: Credential, shown: Option<Usage>) -> Vec<Change> {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&number.to_le_bytes());
    let now = Timestamp::from_millis(1_800_000_000_000);
    let organization: OrganizationId = format!("o{number}").parse().expect("valid");
    let consent = matches!(credential, Credential::RefreshToken(_)).then(|| Consent {
        granted_at: now,
        expires_at: None,
        assumed: false,
        expected: Usage::Reuse,
        shown,
        grace: Duration::ZERO,
        warned: vec![],
    });
    let grant = Grant {
        id: GrantId::from_bytes(id),
        provider: "test".parse().expect("valid"),
        credential,
        fingerprint: Fingerprint(id),
        spent: vec![],
        client: None,
        access: Some(AccessToken {
            token: Secret::new("access"),
            token_type: "Bearer".into(),
            scope: None,
            issued_at: now,
            expires_at: now + HOUR,
            issued_boot: None,
        }),
        state: State::Active,
        since: now,
        paused: false,
        subject: None,
        consent,
        refreshed_at: Some(now),
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: vec![organization.clone()],
        epoch: 1,
    };
    let organization =
        crate::model::Organization { id: organization, grant: grant.id, labels: [].into(), added_at: now };
    vec![Change::PutGrant(Box::new(grant)), Change::PutOrganization(Box::new(organization))]
}

#[tokio::test]
async fn every_one_time_grant_of_an_earlier_epoch_is_in_doubt_in_a_few_commits_and_the_others_are_as_they_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, identity) = (vault_config(&folder), folder.path().join("identity.txt"));
    let identity = Identity::create(&identity).expect("made");
    Vault::create(&config, &identity).expect("made");
    let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("opened");
    for number in 0..EACH {
        let token = |kind: &str| Credential::RefreshToken(Secret::new(format!("{kind}-{number}")));
        let changes = [
            stored(number, token("one"), None),
            stored(EACH + number, token("reuse"), Some(Usage::Reuse)),
            stored(2 * EACH + number, Credential::ApiKey(Secret::new(format!("key-{number}"))), None),
        ];
        vault.commit(changes.into_iter().flatten().collect()).await.expect("stored");
    }
    vault.close().expect("closed");
    Vault::accept(&config, &identity).expect("accepted");

    let issuer = Arc::new(Issuer::default());
    let clock = ManualClock::at(Timestamp::from_millis(1_800_000_000_000) + Duration::from_mins(1));
    let mut commits = 0;
    for start in 0..2 {
        let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("opened");
        let before = vault.commit(vec![]).await.expect("nothing");
        let keeper = keeper(&vault, &issuer, &clock, KeepWarm::Always, &[provider_config()]);
        while !keeper.is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for number in 0..3 * EACH {
            let shown = keeper.show(&org(&format!("o{number}"))).await.expect("there");
            let expected = if number < EACH { ("in_doubt", Some("restored")) } else { ("active", None) };
            assert_eq!((&*shown.state, shown.reason.as_deref()), expected, "o{number}");
            assert!(keeper.token(&org(&format!("o{number}")), Duration::ZERO).await.is_ok(), "its access token lives");
        }
        let id = GrantId::from_bytes([0; 16]);
        let stored = vault.grant(id).at_once().expect("readable").expect("there");
        assert_eq!((stored.value.epoch, stored.value.state), (2, State::InDoubt(DoubtReason::Restored)));
        assert_eq!(issuer.count(), 0);
        keeper.drain().await;
        commits = vault.commit(vec![]).await.expect("nothing") - before - 1;
        vault.close().expect("closed");
        assert!(
            if start == 0 { (1..=4).contains(&commits) } else { commits == 0 },
            "{commits} commits at start {start}"
        );
    }
    assert_eq!(commits, 0, "a second start finds nothing to change");
}

#[tokio::test]
async fn an_organization_that_its_grant_does_not_list_is_listed_again_and_keeps_it_when_another_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, identity) = (vault_config(&folder), folder.path().join("identity.txt"));
    let identity = Identity::create(&identity).expect("made");
    Vault::create(&config, &identity).expect("made");
    let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("opened");
    let mut changes = stored(0, Credential::RefreshToken(Secret::new("reuse-0")), Some(Usage::Reuse));
    let (grant, added_at) = (GrantId::from_bytes([0; 16]), Timestamp::from_millis(1_800_000_000_000));
    let forgotten = crate::model::Organization { id: org("forgotten"), grant, labels: [].into(), added_at };
    changes.push(Change::PutOrganization(Box::new(forgotten)));
    vault.commit(changes).await.expect("stored");
    vault.close().expect("closed");
    Vault::accept(&config, &identity).expect("accepted");

    let vault = Vault::open(&config, &identity, Metrics::new(&[])).expect("opened");
    let clock = ManualClock::at(Timestamp::from_millis(1_800_000_000_000) + Duration::from_mins(1));
    let keeper = keeper(&vault, &Arc::new(Issuer::default()), &clock, KeepWarm::Always, &[provider_config()]);
    while !keeper.is_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lists = || vault.grant(grant).at_once().expect("readable").map(|stored| stored.value.organizations);
    assert_eq!(lists(), Some(vec![org("o0"), org("forgotten")]));
    keeper.remove(&org("o0"), false).await.expect("removed");
    assert_eq!(lists(), Some(vec![org("forgotten")]), "the grant goes with its last organization");
    assert!(keeper.token(&org("forgotten"), Duration::ZERO).await.is_ok());
}
