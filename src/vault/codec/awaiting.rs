//! The forms of version 1 of consents that have not taken their place, and of links that were revoked. As the other forms,
//! neither may ever change once it was released.

use serde::{Deserialize, Serialize};

use crate::model::{AwaitReason, Awaiting, GrantId, InvalidId, Place, RevokedLinks, Timestamp};

#[derive(Serialize, Deserialize)]
pub(super) struct AwaitingForm<'a> {
    grant: GrantId,
    /// Organization, and the grant that it had.
    #[serde(borrow)]
    places: Vec<(&'a str, Option<GrantId>)>,
    generation: u32,
    since: Timestamp,
    reason: ReasonForm,
}

#[derive(Serialize, Deserialize)]
enum ReasonForm {
    Unfinished,
    FirstConnection,
    AnotherPerson,
    UnknownPerson,
}

impl<'a> From<&'a Awaiting> for AwaitingForm<'a> {
    fn from(awaiting: &'a Awaiting) -> Self {
        Self {
            grant: awaiting.grant,
            places: awaiting.places.iter().map(|place| (place.organization.as_str(), place.replaces)).collect(),
            generation: awaiting.generation,
            since: awaiting.since,
            reason: match awaiting.reason {
                AwaitReason::Unfinished => ReasonForm::Unfinished,
                AwaitReason::FirstConnection => ReasonForm::FirstConnection,
                AwaitReason::AnotherPerson => ReasonForm::AnotherPerson,
                AwaitReason::UnknownPerson => ReasonForm::UnknownPerson,
            },
        }
    }
}

impl TryFrom<AwaitingForm<'_>> for Awaiting {
    type Error = InvalidId;

    fn try_from(form: AwaitingForm<'_>) -> Result<Self, InvalidId> {
        let place = |(organization, replaces): (&str, _)| Ok(Place { organization: organization.parse()?, replaces });
        Ok(Self {
            grant: form.grant,
            places: form.places.into_iter().map(place).collect::<Result<_, _>>()?,
            generation: form.generation,
            since: form.since,
            reason: match form.reason {
                ReasonForm::Unfinished => AwaitReason::Unfinished,
                ReasonForm::FirstConnection => AwaitReason::FirstConnection,
                ReasonForm::AnotherPerson => AwaitReason::AnotherPerson,
                ReasonForm::UnknownPerson => AwaitReason::UnknownPerson,
            },
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct RevokedLinksForm<'a> {
    organization: &'a str,
    until: u32,
}

impl<'a> From<&'a RevokedLinks> for RevokedLinksForm<'a> {
    fn from(revoked: &'a RevokedLinks) -> Self {
        Self { organization: revoked.organization.as_str(), until: revoked.until }
    }
}

impl TryFrom<RevokedLinksForm<'_>> for RevokedLinks {
    type Error = InvalidId;

    fn try_from(form: RevokedLinksForm<'_>) -> Result<Self, InvalidId> {
        Ok(Self { organization: form.organization.parse()?, until: form.until })
    }
}
