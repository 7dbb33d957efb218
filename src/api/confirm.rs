//! What an operator decides about a consent that waits.

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
    request,
    routes::{Answer, json},
};
use crate::{config::Role, wire::Confirmation};

/// `POST /v1/organizations/{org}/confirm`: accepted, it answers with the organization as it is then; declined, with nothing,
/// since there need be no such organization.
pub(super) async fn confirm(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri, body: Body) -> Answer {
    let organization = api.permitted(&uri, &peer, Role::Operate, Action::Confirm)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let confirmation = request::confirmation(&request::body(body).await?)?;
    let confirmed = api
        .change(async move {
            let result = match confirmation {
                Confirmation::Accept => keeper.confirm(&organization).await.map(Some),
                Confirmation::Decline => keeper.decline(&organization).await.map(|()| None),
            };
            let outcome = match &result {
                Ok(Some(_)) => "accepted",
                Ok(None) => "declined",
                Err(error) => error.code().word(),
            };
            audit::record(&peer, Action::Confirm, &organization, outcome);
            result
        })
        .await?;
    Ok(match confirmed {
        Some(organization) => json(StatusCode::OK, &organization),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}
