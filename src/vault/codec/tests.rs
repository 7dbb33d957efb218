use std::time::Duration;

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::model::{
    AccessToken, BootMoment, ClientCredentials, Consent, Credential, DoubtReason, FailingReason, Fingerprint, GrantId,
    Refusals, Secret, State, Timestamp, Usage,
};

fn bytes_of<R: Record>(record: &R) -> Vec<u8> {
    Encoder::new().encode(record, |bytes| Ok(bytes.to_vec())).unwrap()
}

/// Everything about a grant, its secrets included, as text to compare.
fn told(grant: &Grant) -> String {
    let secrets = (
        grant.credential.secret().expose(),
        grant.client.as_ref().map(|client| client.secret.expose()),
        grant.access.as_ref().map(|access| access.token.expose()),
    );
    format!("{grant:?} {secrets:?}")
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::from_millis)
}

fn secret() -> impl Strategy<Value = Secret> {
    "\\PC{0,40}".prop_map(Secret::new)
}

fn fingerprint() -> impl Strategy<Value = Fingerprint> {
    any::<[u8; 16]>().prop_map(Fingerprint)
}

fn duration() -> impl Strategy<Value = Duration> {
    (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn usage() -> impl Strategy<Value = Usage> {
    prop_oneof![Just(Usage::Reuse), Just(Usage::OneTime)]
}

const STATES: [State; 12] = [
    State::Active,
    State::Failing(FailingReason::Unverified),
    State::Failing(FailingReason::Refused),
    State::Failing(FailingReason::ProviderUnavailable),
    State::Failing(FailingReason::RateLimited),
    State::Failing(FailingReason::ClientRefused),
    State::Failing(FailingReason::VaultUnavailable),
    State::InDoubt(DoubtReason::NoAnswer),
    State::InDoubt(DoubtReason::Crashed),
    State::InDoubt(DoubtReason::Restored),
    State::InDoubt(DoubtReason::RolledBack),
    State::Lost,
];

fn consent() -> impl Strategy<Value = Consent> {
    (time(), option::of(time()), any::<bool>(), usage(), option::of(usage()), duration(), vec(duration(), 0..4))
        .prop_map(|(granted_at, expires_at, assumed, expected, shown, grace, warned)| Consent {
            granted_at,
            expires_at,
            assumed,
            expected,
            shown,
            grace,
            warned,
        })
}

fn access() -> impl Strategy<Value = AccessToken> {
    (secret(), "[A-Za-z]{0,8}", option::of("[a-z: ]{0,30}"), time(), time(), option::of((any::<u128>(), duration())))
        .prop_map(|(token, token_type, scope, issued_at, expires_at, boot)| AccessToken {
            token,
            token_type,
            scope,
            issued_at,
            expires_at,
            issued_boot: boot.map(|(boot_id, at)| BootMoment { boot_id, at }),
        })
}

fn grant() -> impl Strategy<Value = Grant> {
    let who = (any::<[u8; 16]>(), "[a-z0-9-]{1,20}", secret(), any::<bool>(), fingerprint(), vec(fingerprint(), 0..5));
    let what = (
        option::of(("[a-z]{0,8}", secret()).prop_map(|(id, secret)| ClientCredentials { id, secret })),
        option::of(access()),
        prop::sample::select(STATES.to_vec()),
        any::<bool>(),
        option::of("\\PC{0,20}"),
        option::of(consent()),
    );
    let when = (time(), option::of(time()), option::of(time()), option::of(time()));
    let counts = (
        any::<u32>(),
        option::of((any::<u32>(), time()).prop_map(|(count, first_at)| Refusals { count, first_at })),
        vec("[A-Za-z0-9._:@-]{1,20}", 0..4),
        any::<u32>(),
    );
    (who, what, when, counts).prop_map(|(who, what, when, counts)| Grant {
        id: GrantId::from_bytes(who.0),
        provider: who.1.parse().unwrap(),
        credential: if who.3 { Credential::ApiKey(who.2) } else { Credential::RefreshToken(who.2) },
        fingerprint: who.4,
        spent: who.5,
        client: what.0,
        access: what.1,
        state: what.2,
        since: when.0,
        paused: what.3,
        subject: what.4,
        consent: what.5,
        refreshed_at: when.1,
        failures: counts.0,
        retry_at: when.2,
        refusals: counts.1,
        last_fetched_at: when.3,
        organizations: counts.2.iter().map(|id| id.parse().unwrap()).collect(),
        epoch: counts.3,
    })
}

proptest! {
    #[test]
    fn a_grant_reads_back_as_it_was(grant in grant()) {
        let read = Grant::read(&bytes_of(&grant)).unwrap();
        prop_assert_eq!(told(&read), told(&grant));
    }

    #[test]
    fn a_grant_cut_short_anywhere_is_refused(grant in grant(), at in any::<prop::sample::Index>()) {
        let bytes = bytes_of(&grant);
        prop_assert!(Grant::read(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn an_organization_reads_back_as_it_was(
        id in "[A-Za-z0-9._:@-]{1,128}",
        grant in any::<[u8; 16]>(),
        labels in prop::collection::btree_map("\\PC{0,10}", "\\PC{0,10}", 0..5),
        added_at in time(),
    ) {
        let organization =
            Organization { id: id.parse().unwrap(), grant: GrantId::from_bytes(grant), labels, added_at };
        prop_assert_eq!(Organization::read(&bytes_of(&organization)).unwrap(), organization);
    }

    #[test]
    fn an_intent_reads_back_as_it_was(
        grant in any::<[u8; 16]>(),
        fingerprint in fingerprint(),
        attempt in any::<u32>(),
        first_at in time(),
        first_boot in duration(),
        boot_id in any::<u128>(),
    ) {
        let grant = GrantId::from_bytes(grant);
        let intent = Intent { grant, fingerprint, attempt, first_at, first_boot, boot_id };
        prop_assert_eq!(Intent::read(&bytes_of(&intent)).unwrap(), intent);
    }

    #[test]
    fn garbage_is_an_error_or_a_record_and_never_a_panic(mut bytes in vec(any::<u8>(), 0..200), version in any::<bool>()) {
        if let (true, Some(first)) = (version, bytes.first_mut()) {
            *first = VERSION;
        }
        let _ = Grant::read(&bytes);
        let _ = Organization::read(&bytes);
        let _ = Intent::read(&bytes);
        let _ = Stray::read(&bytes);
        let _ = Meta::read(&bytes);
    }
}

#[test]
fn a_stray_reads_back_as_it_was() {
    let stray = Stray {
        grant: GrantId::from_bytes([1; 16]),
        at: Timestamp::from_millis(5),
        why: "the grant was replaced meanwhile".to_owned(),
        refresh_token: Some(Secret::new("refresh")),
        access_token: Secret::new("access"),
    };
    let read = Stray::read(&bytes_of(&stray)).unwrap();
    assert_eq!(format!("{read:?}"), format!("{stray:?}"));
    assert_eq!(read.refresh_token.as_ref().map(Secret::expose), Some("refresh"));
    assert_eq!(read.access_token.expose(), "access");
    for reason in [DoubtReason::Restored, DoubtReason::RolledBack] {
        let meta = Meta { epoch: 7, reason };
        assert_eq!(Meta::read(&bytes_of(&meta)).unwrap(), meta);
    }
}

#[test]
fn bytes_after_the_end_and_newer_versions_are_refused() {
    let mut bytes = bytes_of(&Meta::NEW);
    bytes.push(0);
    assert!(Meta::read(&bytes).unwrap_err().to_string().contains("bytes follow"));
    assert!(Meta::read(&[META_VERSION + 1, 1]).unwrap_err().to_string().contains("version"));
    assert!(Intent::read(&[VERSION + 1, 1]).unwrap_err().to_string().contains("version"));
    assert!(Meta::read(&[]).is_err());
}

#[test]
fn a_record_that_is_too_large_is_refused_and_leaves_no_secret_behind() {
    let stray = Stray {
        grant: GrantId::from_bytes([1; 16]),
        at: Timestamp::from_millis(5),
        why: String::new(),
        refresh_token: Some(Secret::new("first secret")),
        access_token: Secret::new("x".repeat(MAX_RECORD_BYTES)),
    };
    let mut encoder = Encoder::new();
    let error = encoder.encode(&stray, |_| Ok(())).unwrap_err();
    assert!(matches!(error, VaultError::TooLarge { .. }), "{error}");
    assert!(encoder.buffer.iter().all(|byte| *byte == 0));
}

#[test]
fn the_vaults_own_record_is_fixed_to_the_byte_and_its_first_version_is_read() {
    assert_eq!(Meta::read(&[1, 3]).unwrap(), Meta { epoch: 3, ..Meta::NEW });
    assert_eq!(bytes_of(&Meta { epoch: 3, reason: DoubtReason::Restored }), [2, 3, 0]);
    assert_eq!(bytes_of(&Meta { epoch: 3, reason: DoubtReason::RolledBack }), [2, 3, 1]);
}

#[test]
fn the_form_of_version_1_is_fixed_to_the_byte() {
    let intent = Intent {
        grant: GrantId::from_bytes([1; 16]),
        fingerprint: Fingerprint([2; 16]),
        attempt: 3,
        first_at: Timestamp::from_millis(4),
        first_boot: Duration::new(5, 6),
        boot_id: 7,
    };
    let expected = [&[1][..], &[1; 16], &[2; 16], &[3, 8, 5, 6, 7]].concat();
    assert_eq!(bytes_of(&intent), expected);

    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let grant = Grant {
        id: GrantId::from_bytes([1; 16]),
        provider: "dinero".parse().unwrap(),
        credential: Credential::ApiKey(Secret::new("key")),
        fingerprint: Fingerprint([2; 16]),
        spent: vec![Fingerprint([3; 16])],
        client: None,
        access: Some(AccessToken {
            token: Secret::new("token"),
            token_type: "Bearer".to_owned(),
            scope: None,
            issued_at: Timestamp::from_millis(1),
            expires_at: Timestamp::from_millis(2),
            issued_boot: Some(BootMoment { boot_id: 300, at: Duration::new(7, 8) }),
        }),
        state: State::Lost,
        since: Timestamp::from_millis(-1),
        paused: true,
        subject: None,
        consent: Some(Consent {
            granted_at: Timestamp::from_millis(1),
            expires_at: None,
            assumed: true,
            expected: Usage::Reuse,
            shown: Some(Usage::OneTime),
            grace: Duration::ZERO,
            warned: vec![Duration::from_secs(9)],
        }),
        refreshed_at: None,
        failures: 300,
        retry_at: None,
        refusals: Some(Refusals { count: 1, first_at: Timestamp::from_millis(3) }),
        last_fetched_at: None,
        organizations: vec!["42".parse().unwrap()],
        epoch: 1,
    };
    let expected = [
        vec![1; 16],
        text("dinero"),
        [vec![1], text("key")].concat(),
        vec![2; 16],
        [vec![1], vec![3; 16]].concat(),
        vec![0],
        [vec![1], text("token"), text("Bearer"), vec![0, 2, 4]].concat(),
        vec![11, 1, 1, 0],
        vec![1, 2, 0, 1, 0, 1, 1, 0, 0, 1, 9, 0],
        vec![0, 0xac, 0x02, 0],
        vec![1, 1, 6],
        vec![0, 1],
        text("42"),
        vec![1],
    ];
    let expected = expected.concat();
    let newest = [&[2], &expected[..], &[1, 0xac, 0x02, 7, 8]].concat();
    assert_eq!(bytes_of(&grant), newest);

    // Version 1 ended earlier.
    let older = Grant::read(&[&[1], &expected[..]].concat()).unwrap();
    assert_eq!(older.access.as_ref().unwrap().issued_boot, None);
    assert_eq!(bytes_of(&older), [&[2], &expected[..], &[0]].concat());
}
