use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{App, params};
use crate::sandbox::people::organization_name;

/// `GET /v1/organizations`: what the access token reaches.
pub(super) async fn organizations(State(app): State<App>, headers: HeaderMap) -> Response {
    let Some(reached) = reach(&app, &headers) else { return unauthorized() };
    let list: Vec<Value> =
        reached.iter().map(|id| json!({ "id": as_dinero_writes(id), "name": organization_name(id) })).collect();
    Json(list).into_response()
}

/// `GET /v1/{organization}/contacts`: one thing to try an access token on.
pub(super) async fn contacts(State(app): State<App>, Path(organization): Path<String>, headers: HeaderMap) -> Response {
    let Some(reached) = reach(&app, &headers) else { return unauthorized() };
    if reached.iter().all(|id| **id != *organization) {
        let body = json!({ "code": 90, "message": "this token does not reach that organization" });
        return (StatusCode::FORBIDDEN, Json(body)).into_response();
    }
    let contact = json!({ "ContactGuid": "00000000-0000-4000-8000-000000000001", "Name": "Kunde nr. 1" });
    Json(json!({ "Collection": [contact], "Pagination": { "Page": 0, "PageSize": 100, "Result": 1 } })).into_response()
}

fn reach(app: &App, headers: &HeaderMap) -> Option<Vec<std::sync::Arc<str>>> {
    app.issuer.reach(app.now(), &params::bearer(headers)?)
}

/// Dinero's ids are numbers; ids that a test made up stay text.
fn as_dinero_writes(id: &str) -> Value {
    match id.parse::<u32>() {
        Ok(number) if number.to_string() == id => number.into(),
        _ => id.into(),
    }
}

fn unauthorized() -> Response {
    let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
}
