//! What is done to the vault as a whole. It takes the role admin for every organization, since it concerns them all.

use axum::{
    Extension,
    extract::State,
    http::{StatusCode, Uri},
};

use super::{
    Api, Peer, Reach,
    audit::{self, Action},
    problems::Refusal,
    request,
    routes::{Answer, json},
};
use crate::{config::Role, wire::Code};

/// `POST /v1/vault/keys`
pub(super) async fn rotate_key(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_all(&peer, Action::RotateKey)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let key = api
        .change(async move {
            let result = keeper.rotate_data_key().await;
            let outcome = result.as_ref().map_or_else(|error| error.code().word(), |_| "started");
            audit::record_vault(&peer, Action::RotateKey, None, outcome);
            result
        })
        .await?;
    Ok(json(StatusCode::ACCEPTED, &key))
}

/// `GET /v1/vault/recipients`
pub(super) async fn recipients(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_all(&peer, Action::ListRecipients)?;
    request::no_query(&uri)?;
    Ok(json(StatusCode::OK, &api.keeper()?.recipients().await?))
}

/// `PUT /v1/vault/recipients/{recipient}`
pub(super) async fn add_recipient(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_all(&peer, Action::AddRecipient)?;
    let recipient = request::recipient(&uri)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let (recipients, is_new) = api
        .change(async move {
            let result = keeper.add_recipient(recipient.clone()).await;
            let outcome = match &result {
                Ok((_, true)) => "added",
                Ok((_, false)) => "unchanged",
                Err(error) => error.code().word(),
            };
            audit::record_vault(&peer, Action::AddRecipient, Some(&recipient), outcome);
            result
        })
        .await?;
    Ok(json(if is_new { StatusCode::CREATED } else { StatusCode::OK }, &recipients))
}

/// `DELETE /v1/vault/recipients/{recipient}`
pub(super) async fn remove_recipient(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_all(&peer, Action::RemoveRecipient)?;
    let recipient = request::recipient(&uri)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let recipients = api
        .change(async move {
            let result = keeper.remove_recipient(recipient.clone()).await;
            let outcome = result.as_ref().map_or_else(|error| error.code().word(), |_| "removed");
            audit::record_vault(&peer, Action::RemoveRecipient, Some(&recipient), outcome);
            result
        })
        .await?;
    Ok(json(StatusCode::OK, &recipients))
}

impl Api {
    /// Refuses a caller who is not admin of every organization.
    fn permitted_all(&self, peer: &Peer, action: Action) -> Result<(), Refusal> {
        if matches!(self.access().scope(peer, Role::Admin), Reach::All) {
            return Ok(());
        }
        audit::record_vault(peer, action, None, "denied");
        let detail = format!(
            "user {} may not do this; that takes an [[access]] rule with role admin for all organizations (\"*\")",
            peer.uid
        );
        Err(Refusal::new(Code::Forbidden, detail))
    }
}
