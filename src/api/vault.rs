//! What concerns the vault as a whole.

use axum::{
    Extension,
    extract::State,
    http::{HeaderValue, Uri, header},
    response::IntoResponse,
};
use tokio::sync::oneshot;

use super::{
    Api, Peer,
    audit::{self, Action},
    download::download,
    problems::Refusal,
    request,
    routes::Answer,
};
use crate::{config::Role, serve::Streamed, vault::VaultError, wire::Code};

/// `GET /v1/vault/backup`: the backup is made while it is sent.
pub(super) async fn backup(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    api.permitted_everywhere(&peer, Role::Admin, Action::Backup)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let (upload, mut download) = download();
    let (refused, refusal) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let mut upload = upload;
        match keeper.back_up(&mut upload) {
            Ok(made) => {
                upload.finish();
                audit::record(&peer, Action::Backup, None, "done");
                tracing::info!(vault.records = made.records, vault.commit = made.sequence, "a backup was taken");
            }
            Err(error) => {
                audit::record(&peer, Action::Backup, None, "failed");
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
