//! What is done to the vault as a whole. It takes the role admin for every organization, since it concerns them all.

use axum::{
    Extension,
    extract::State,
    http::{HeaderValue, StatusCode, Uri, header},
    response::IntoResponse,
};
use tokio::sync::oneshot;

use super::{
    Api, Peer,
    audit::{self, Action, On},
    download::download,
    problems::Refusal,
    request,
    routes::{Answer, json},
};
use crate::{config::Role, serve::Streamed, task, vault::VaultError, wire::Code};

/// `POST /v1/vault/keys`
pub(super) async fn rotate_key(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_everywhere(&peer, Role::Admin, Action::RotateKey)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let key = api
        .change(async move {
            let result = keeper.rotate_data_key().await;
            let outcome = result.as_ref().map_or_else(|error| error.code().word(), |_| "started");
            audit::record(&peer, Action::RotateKey, On::Vault, outcome);
            result
        })
        .await?;
    Ok(json(StatusCode::ACCEPTED, &key))
}

/// `GET /v1/vault/recipients`
pub(super) async fn recipients(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_everywhere(&peer, Role::Admin, Action::ListRecipients)?;
    request::no_query(&uri)?;
    Ok(json(StatusCode::OK, &api.keeper()?.recipients().await?))
}

/// `PUT /v1/vault/recipients/{recipient}`
pub(super) async fn add_recipient(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_everywhere(&peer, Role::Admin, Action::AddRecipient)?;
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
            audit::record(&peer, Action::AddRecipient, On::Recipient(&recipient), outcome);
            result
        })
        .await?;
    Ok(json(if is_new { StatusCode::CREATED } else { StatusCode::OK }, &recipients))
}

/// `DELETE /v1/vault/recipients/{recipient}`
pub(super) async fn remove_recipient(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_everywhere(&peer, Role::Admin, Action::RemoveRecipient)?;
    let recipient = request::recipient(&uri)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let recipients = api
        .change(async move {
            let result = keeper.remove_recipient(recipient.clone()).await;
            let outcome = result.as_ref().map_or_else(|error| error.code().word(), |_| "removed");
            audit::record(&peer, Action::RemoveRecipient, On::Recipient(&recipient), outcome);
            result
        })
        .await?;
    Ok(json(StatusCode::OK, &recipients))
}

/// `GET /v1/vault/backup`: the backup is made while it is sent.
pub(super) async fn backup(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_everywhere(&peer, Role::Admin, Action::Backup)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let (upload, mut download) = download();
    let (refused, refusal) = oneshot::channel();
    task::spawn_blocking(move || {
        let mut upload = upload;
        match keeper.back_up(&mut upload) {
            Ok(made) => {
                upload.finish();
                audit::record(&peer, Action::Backup, On::Vault, "done");
                tracing::info!(vault.records = made.records, vault.commit = made.sequence, "a backup was taken");
            }
            Err(error) => {
                audit::record(&peer, Action::Backup, On::Vault, "failed");
                tracing::warn!(%error, "a backup could not be taken");
                // Where nothing was sent yet, the caller is told why.
                let _too_late = refused.send(error);
                upload.fail();
            }
        }
    });
    if !download.has_begun().await {
        let error = refusal.await.map_err(|_| Refusal::internal())?;
        return Err(refused_because(&error));
    }
    let mut response = download.into_body().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.extensions_mut().insert(Streamed);
    Ok(response)
}

fn refused_because(error: &VaultError) -> Refusal {
    match error {
        VaultError::BackupUnderWay => Refusal::again(Code::TooManyRequests, error.to_string()),
        error => Refusal::again(Code::VaultUnavailable, error.to_string()),
    }
}
