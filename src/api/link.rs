//! Consent links: made for an organization, and revoked.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{StatusCode, Uri},
    response::IntoResponse,
};

use super::{
    Api, Peer,
    audit::{self, Action},
    problems::Refusal,
    request,
    routes::{Answer, json},
};
use crate::{
    config::Role,
    wire::{Code, ConsentLink},
};

/// `POST /v1/organizations/{org}/consent-link`: a link by which the organization's user gives consent, or gives it anew. Whoever
/// has it may ask in the organization's name, so that the same is needed for every organization that it names.
pub(super) async fn make(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri, body: Body) -> Answer {
    let organization = api.permitted(&uri, &peer, Role::Operate, Action::MakeLink)?;
    request::no_query(&uri)?;
    let wanted = request::link(&request::body(body).await?)?;
    let access = api.access();
    if let Some(other) = wanted.also.iter().find(|other| !access.may(&peer, Role::Operate, other)) {
        audit::record(&peer, Action::MakeLink, other, "denied");
        let detail = format!(
            "user {} may not make links for {other}; that takes an [[access]] rule with role operate",
            peer.uid
        );
        return Err(Refusal::new(Code::Forbidden, detail));
    }
    let made = api.keeper()?.link(&organization, wanted.provider.as_ref(), wanted.also).await;
    let outcome = made.as_ref().map_or_else(|error| error.code().word(), |_| "made");
    audit::record(&peer, Action::MakeLink, &organization, outcome);
    let link = made?;
    Ok(json(StatusCode::OK, &ConsentLink { url: link.url, expires_at: link.expires_at }))
}

/// `DELETE /v1/organizations/{org}/consent-link`: ends every link that was made for the organization until now, whether it is
/// known or not.
pub(super) async fn revoke(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    let organization = api.permitted(&uri, &peer, Role::Operate, Action::RevokeLinks)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    api.change(async move {
        let result = keeper.revoke_links(&organization).await;
        let outcome = result.as_ref().map_or_else(|error| error.code().word(), |()| "revoked");
        audit::record(&peer, Action::RevokeLinks, &organization, outcome);
        result
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
