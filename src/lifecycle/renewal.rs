//! What becomes of a consent that a person gave: the grant it makes, and the organizations that it may serve.

use std::time::Duration;

use super::{Enrolling, EnrolmentError, ended::UNTOLD_LIFETIME, new_grant};
use crate::{
    clock::Now,
    config::ProviderConfig,
    model::{
        AccessToken, Answer, AwaitReason, BootMoment, Credential, Fingerprint, Grant, GrantId, OrganizationId, Secret,
        State, Timestamp,
    },
};

/// How long a consent waits for an operator before it is forgotten: longer than a holiday, and as long as other unfinished
/// enrolments whose token cannot be had again.
pub const AWAITING_KEPT: Duration = super::UNFINISHED_KEPT;

/// What the issuer gave for an authorization code.
#[derive(Debug)]
pub struct Redeemed<'a> {
    /// Its answer.
    pub answer: &'a Answer,
    /// The refresh token in it.
    pub refresh_token: &'a Secret,
    /// That token's fingerprint.
    pub fingerprint: Fingerprint,
    /// When the request left: neither consent nor access token can have begun much earlier.
    pub asked: Now,
    /// This boot of the machine.
    pub boot_id: u128,
    /// The vault's epoch.
    pub epoch: u32,
}

/// The grant of a new consent. It works already: the code's exchange has proven it. It serves nobody yet.
pub fn new_consent(id: GrantId, redeemed: &Redeemed<'_>, provider: &ProviderConfig) -> Result<Grant, EnrolmentError> {
    let Redeemed { answer, asked, .. } = redeemed;
    let enrolling = Enrolling {
        credential: Credential::RefreshToken(redeemed.refresh_token.clone()),
        client: None,
        granted_at: Some(asked.wall),
        expires_at: None,
        usage: None,
        grace: None,
    };
    let grant = new_grant(id, redeemed.fingerprint, enrolling, provider, asked.wall, redeemed.epoch)?;
    let lifetime = answer.expires_in.unwrap_or(UNTOLD_LIFETIME);
    Ok(Grant {
        access: Some(AccessToken {
            token: answer.access_token.clone(),
            token_type: answer.token_type.clone(),
            scope: answer.scope.clone(),
            issued_at: asked.wall,
            expires_at: asked.wall + lifetime,
            issued_boot: Some(BootMoment { boot_id: redeemed.boot_id, at: asked.boot }),
        }),
        state: State::Active,
        subject: answer.subject.clone(),
        refreshed_at: Some(asked.wall),
        ..grant
    })
}

/// What is known of the organizations that a consent reaches.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'a> {
    /// These.
    Listed(&'a [String]),
    /// The provider does not tell.
    Untold,
}

/// How an organization stands that a consent may be for.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// It has nothing yet, or something of another provider.
    New,
    /// It has a consent of the same provider.
    Connected {
        /// Who gave that, if known.
        subject: Option<&'a str>,
    },
}

/// Whether a consent may serve an organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may.
    Connect,
    /// Once an operator says so.
    Confirm(AwaitReason),
    /// It reaches others and not this one.
    Beyond,
}

/// Whether a consent given by `subject` may serve an organization (rule 14 of the design). A list of what it reaches
/// settles it. Without one, the same person as before may speak for it again, and all else is for an operator to say:
/// tokens of the wrong company would open the wrong books.
pub fn judge(
    organization: &OrganizationId,
    reach: Reach<'_>,
    subject: Option<&str>,
    before: Standing<'_>,
) -> Judgement {
    match (reach, before) {
        (Reach::Listed(ids), _) if ids.iter().any(|id| id == organization.as_str()) => Judgement::Connect,
        (Reach::Listed(_), _) => Judgement::Beyond,
        (Reach::Untold, Standing::New) => Judgement::Confirm(AwaitReason::FirstConnection),
        (Reach::Untold, Standing::Connected { subject: before }) => match (before, subject) {
            (Some(before), Some(now)) if before == now => Judgement::Connect,
            (Some(_), Some(_)) => Judgement::Confirm(AwaitReason::AnotherPerson),
            _ => Judgement::Confirm(AwaitReason::UnknownPerson),
        },
    }
}

/// The generation of a link that is made now: the second of its making, so that revoking ends what was made before and
/// nothing that comes after, also where the clock went back. `revoked`: links of this generation and earlier are revoked.
pub fn generation(now: Timestamp, revoked: Option<u32>) -> u32 {
    let seconds = u32::try_from(now.as_seconds().max(0)).unwrap_or(u32::MAX);
    revoked.map_or(seconds, |revoked| seconds.max(revoked.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::lifecycle::enrolment::tests::visma as provider;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn answer(expires_in: Option<Duration>) -> Answer {
        Answer {
            access_token: Secret::new("at"),
            token_type: "Bearer".into(),
            expires_in,
            scope: None,
            refresh_token: Some(Secret::new("rt")),
            subject: Some("birgit".into()),
            client_id: None,
        }
    }

    fn made(answer: &Answer) -> Grant {
        let refresh_token = Secret::new("rt");
        let redeemed = Redeemed {
            answer,
            refresh_token: &refresh_token,
            fingerprint: Fingerprint([1; 16]),
            asked: Now { wall: NOW, boot: Duration::from_secs(9) },
            boot_id: 5,
            epoch: 3,
        };
        new_consent(GrantId::from_bytes([2; 16]), &redeemed, &provider()).expect("fits")
    }

    #[test]
    fn a_new_consent_is_dated_works_and_serves_nobody_yet() {
        let grant = made(&answer(Some(Duration::from_hours(1))));
        let consent = grant.consent.as_ref().expect("a consent");
        assert_eq!((consent.granted_at, consent.assumed, consent.warned.len()), (NOW, false, 0));
        assert_eq!(consent.expires_at, Some(NOW + provider().consent_lifetime.expect("it ends")));
        assert_eq!((grant.state, grant.epoch, grant.subject.as_deref()), (State::Active, 3, Some("birgit")));
        assert!(grant.organizations.is_empty() && grant.is_one_time());
        assert_eq!(grant.access.expect("a token").expires_at, NOW + Duration::from_hours(1));
        let untold = made(&answer(None)).access.expect("a token");
        assert_eq!(untold.lifetime(), UNTOLD_LIFETIME);
    }

    const LIST: &[&str] = &["a", "b"];
    const EMPTY: &[&str] = &[];

    #[rstest]
    #[case("a", Some(LIST), Some("x"), Standing::New, Judgement::Connect)]
    #[case("a", Some(LIST), None, Standing::Connected { subject: Some("y") }, Judgement::Connect)]
    #[case("c", Some(LIST), Some("x"), Standing::Connected { subject: Some("x") }, Judgement::Beyond)]
    #[case("a", Some(EMPTY), Some("x"), Standing::Connected { subject: Some("x") }, Judgement::Beyond)]
    #[case("a", None, Some("x"), Standing::Connected { subject: Some("x") }, Judgement::Connect)]
    #[case("a", None, Some("x"), Standing::Connected { subject: Some("y") }, Judgement::Confirm(AwaitReason::AnotherPerson))]
    #[case("a", None, None, Standing::Connected { subject: Some("y") }, Judgement::Confirm(AwaitReason::UnknownPerson))]
    #[case("a", None, None, Standing::Connected { subject: None }, Judgement::Confirm(AwaitReason::UnknownPerson))]
    #[case("a", None, Some("x"), Standing::New, Judgement::Confirm(AwaitReason::FirstConnection))]
    fn only_a_list_or_the_same_person_lets_a_consent_serve_an_organization(
        #[case] organization: &str,
        #[case] listed: Option<&[&str]>,
        #[case] subject: Option<&str>,
        #[case] before: Standing<'_>,
        #[case] expected: Judgement,
    ) {
        let listed = listed.map(|ids| ids.iter().map(ToString::to_string).collect::<Vec<_>>());
        let reach = listed.as_deref().map_or(Reach::Untold, Reach::Listed);
        assert_eq!(judge(&organization.parse().expect("valid"), reach, subject, before), expected);
    }

    #[test]
    fn a_link_made_after_a_revocation_is_of_a_later_generation_whatever_the_clock_says() {
        let now = generation(NOW, None);
        assert_eq!(generation(NOW, Some(now)), now + 1);
        assert_eq!(generation(NOW - Duration::from_hours(9), Some(now)), now + 1);
        assert_eq!(generation(NOW + Duration::from_secs(5), Some(now)), now + 5);
    }
}
