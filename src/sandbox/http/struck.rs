//! What a fault looks like from outside.

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{Html, IntoResponse, Response},
};
use serde_json::{Value, json};

use super::App;
use crate::sandbox::fault::{Fault, FaultKind};

/// Marks a response that must not be sent: the connection is closed instead.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct DropConnection;

/// A success that stops in the middle of its JSON, with a length that says it is whole.
const GARBAGE: &str = "{\"access_token\":\"eyJhbGciOiJSUzI1NiIsInR5cCI6ImF0K0pXVCJ9.eyJpc3MiOiJ";
const PROXY_PAGE: &str =
    "<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>";

/// The answer under a fault. `answer` is the one that would have been sent, where the exchange happened.
pub(super) async fn answer(fault: &Fault, answer: Response) -> Response {
    match fault.kind {
        FaultKind::Outage => with_retry_after(fault, StatusCode::SERVICE_UNAVAILABLE),
        FaultKind::RateLimit => with_retry_after(fault, StatusCode::TOO_MANY_REQUESTS),
        FaultKind::Error500 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        FaultKind::Hang => std::future::pending().await,
        FaultKind::DropAfter | FaultKind::DropBefore => {
            let mut response = Response::new(Body::empty());
            response.extensions_mut().insert(DropConnection);
            response
        }
        FaultKind::Garbage => {
            let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            (StatusCode::OK, [kind], GARBAGE).into_response()
        }
        FaultKind::Html => (StatusCode::BAD_GATEWAY, Html(PROXY_PAGE)).into_response(),
        FaultKind::InvalidClient => {
            (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_client" }))).into_response()
        }
        FaultKind::Slow => {
            tokio::time::sleep(fault.delay()).await;
            answer
        }
        FaultKind::NoExpiresIn | FaultKind::StringExpiresIn | FaultKind::OmitRefreshToken => answer,
    }
}

/// Changes a token response as a fault asks.
pub(super) fn alter(fault: Option<&Fault>, tokens: &mut Value) {
    let Some(fields) = tokens.as_object_mut() else { return };
    match fault.map(|fault| fault.kind) {
        Some(FaultKind::NoExpiresIn) => {
            fields.remove("expires_in");
        }
        Some(FaultKind::StringExpiresIn) => {
            if let Some(seconds) = fields.get_mut("expires_in") {
                *seconds = Value::String(seconds.to_string());
            }
        }
        Some(FaultKind::OmitRefreshToken) => {
            fields.remove("refresh_token");
        }
        _ => {}
    }
}

/// Faults that are meant for everywhere, outside the token endpoints.
pub(super) async fn elsewhere(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(fault) = app.issuer.next_fault_elsewhere() else { return next.run(request).await };
    let unanswered = if fault.processes() { next.run(request).await } else { Response::new(Body::empty()) };
    answer(&fault, unanswered).await
}

fn with_retry_after(fault: &Fault, status: StatusCode) -> Response {
    (status, [(header::RETRY_AFTER, HeaderValue::from(fault.retry_after().as_secs()))]).into_response()
}
