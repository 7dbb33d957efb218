//! What stays of a grant that goes: nothing, but that its one-time tokens are spent.

use std::time::Duration;

use crate::model::{Credential, Grant, GrantId, Secret, State, Timestamp, Usage};

/// How long an enrolment that was not finished is kept where its token was never sent: whoever enrols it has it still.
/// Longer than any enrolment takes.
pub const UNSPENT_KEPT: Duration = Duration::from_hours(1);
/// How long one is kept whose token was sent, so that what it has rotated to cannot be had again.
pub const UNFINISHED_KEPT: Duration = Duration::from_hours(30 * 24);
/// How long the spent tokens of a grant that is gone are remembered: longer than the longest consent, which is a year.
pub const GRAVE_KEPT: Duration = Duration::from_hours(400 * 24);

/// What is to be remembered of a one-time grant that goes, so that a spent token of it is never taken for a new one
/// (rule 13 of the design): its fingerprints, and no secret. `None` where no token of it is spent. `sent`: an intent was
/// open, so that the current token may be spent as well.
pub fn grave(grant: &Grant, sent: bool, id: GrantId, now: Timestamp) -> Option<Grant> {
    let perhaps_spent = sent || matches!(grant.state, State::InDoubt(_));
    let current = perhaps_spent.then_some(grant.fingerprint).filter(|current| !grant.spent.contains(current));
    let mut spent = grant.spent.clone();
    spent.extend(current);
    if spent.is_empty() {
        return None;
    }
    let fingerprint = spent.remove(0);
    Some(Grant {
        id,
        provider: grant.provider.clone(),
        credential: Credential::RefreshToken(Secret::new("")),
        fingerprint,
        spent,
        client: None,
        access: None,
        state: State::Lost,
        since: now,
        paused: false,
        subject: None,
        consent: None,
        refreshed_at: None,
        failures: 0,
        retry_at: None,
        refusals: None,
        last_fetched_at: None,
        organizations: Vec::new(),
        epoch: grant.epoch,
    })
}

/// Whether a stored grant is one that is gone, kept for what [`grave`] says.
pub fn is_grave(grant: &Grant) -> bool {
    grant.state == State::Lost && grant.organizations.is_empty() && grant.credential.secret().expose().is_empty()
}

/// Whether a grant without organizations, whose enrolment was not finished, may go now. `sent`: an intent is open.
pub fn may_go(grant: &Grant, sent: bool, now: Timestamp) -> bool {
    if !grant.organizations.is_empty() {
        return false;
    }
    let reusable = grant.consent.as_ref().is_none_or(|consent| consent.shown == Some(Usage::Reuse));
    let held_elsewhere = grant.spent.is_empty() && !sent && (reusable || grant.refreshed_at.is_none());
    let kept = if held_elsewhere || grant.state == State::Lost { UNSPENT_KEPT } else { UNFINISHED_KEPT };
    now.since(grant.since.max(grant.refreshed_at.unwrap_or_default())) >= kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lifecycle::ended::tests::{consent_grant, key_grant, now},
        model::{DoubtReason, FailingReason, Fingerprint},
    };

    fn buried(grant: &Grant, sent: bool) -> Option<Vec<Fingerprint>> {
        let grave = grave(grant, sent, GrantId::from_bytes([9; 16]), now().wall)?;
        assert!(is_grave(&grave) && !format!("{grave:?}").contains("alice"));
        Some([vec![grave.fingerprint], grave.spent].concat())
    }

    #[test]
    fn spent_tokens_are_remembered_and_living_ones_are_not() {
        let mut grant = consent_grant();
        assert_eq!(buried(&grant, false), None, "nothing is spent");
        assert_eq!(buried(&grant, true), Some(vec![Fingerprint([1; 16])]), "it may be");
        grant.spent = vec![Fingerprint([5; 16]), Fingerprint([6; 16])];
        assert_eq!(buried(&grant, false), Some(grant.spent.clone()));
        grant.state = State::InDoubt(DoubtReason::Restored);
        assert_eq!(buried(&grant, false).map(|spent| spent.len()), Some(3));
        assert_eq!(buried(&key_grant(), false), None);
        assert!(!is_grave(&grant));
    }

    #[test]
    fn an_unfinished_enrolment_goes_soon_if_its_token_is_held_elsewhere_and_late_if_not() {
        let mut grant = consent_grant();
        assert!(!may_go(&grant, false, now().wall + UNFINISHED_KEPT), "it serves somebody");
        grant.organizations.clear();
        grant.refreshed_at = None;
        grant.state = State::Failing(FailingReason::Unverified);
        let after = |grant: &Grant, sent, passed| may_go(grant, sent, now().wall + passed);
        assert!(!after(&grant, false, UNSPENT_KEPT - Duration::from_secs(1)));
        assert!(after(&grant, false, UNSPENT_KEPT));
        assert!(!after(&grant, true, UNSPENT_KEPT), "it may be spent");
        grant.refreshed_at = Some(now().wall);
        assert!(!after(&grant, false, UNSPENT_KEPT), "an answer without a token shows nothing");
        grant.spent.push(Fingerprint([5; 16]));
        assert!(!after(&grant, false, UNFINISHED_KEPT - Duration::from_secs(1)));
        assert!(after(&grant, false, UNFINISHED_KEPT));
        grant.state = State::Lost;
        assert!(after(&grant, false, UNSPENT_KEPT));
    }
}
