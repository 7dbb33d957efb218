//! The control surface, for demos and tests. It takes JSON only, so that a page in a browser cannot use it unasked.

use axum::{
    Json, Router,
    extract::{Query, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use crate::{
    model::{OrganizationId, Secret, Timestamp, Usage},
    sandbox::{
        fault::Fault,
        record::RECORD_CAPACITY,
        rules::{Refusal, Standing},
    },
};

/// The longest name of a user, in bytes.
const MAX_USER: usize = 128;

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/record", get(record))
        .route("/consents", post(new_consent))
        .route("/api-keys", post(new_api_key))
        .route("/faults", get(faults).post(set_fault).delete(clear_faults))
        .route("/withdraw", post(withdraw))
        .route("/alive", post(alive))
        .route("/client-secrets", put(set_client_secrets))
}

type Body<T> = Result<Json<T>, JsonRejection>;

#[derive(Deserialize)]
struct RecordQuery {
    limit: Option<usize>,
}

async fn record(State(app): State<App>, Query(query): Query<RecordQuery>) -> Json<Value> {
    let entries = app.issuer.last_entries(query.limit.unwrap_or(RECORD_CAPACITY));
    Json(json!({
        "exchanges": app.issuer.exchanges(),
        "replays": app.issuer.replays(),
        "dropped": app.issuer.record_dropped(),
        "entries": entries,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewConsent {
    user: String,
    usage: Option<Usage>,
    #[serde(default)]
    organizations: Vec<OrganizationId>,
    granted_at: Option<Timestamp>,
}

async fn new_consent(State(app): State<App>, body: Body<NewConsent>) -> Response {
    let wanted = match body {
        Ok(Json(wanted)) => wanted,
        Err(rejection) => return bad(&rejection.body_text()),
    };
    if wanted.user.is_empty() || wanted.user.len() > MAX_USER {
        return bad("user needs 1 to 128 bytes");
    }
    let usage = wanted.usage.unwrap_or_else(|| app.issuer.terms().usage);
    let granted_at = wanted.granted_at.unwrap_or_else(|| app.now());
    let organizations: Vec<&str> = wanted.organizations.iter().map(OrganizationId::as_str).collect();
    let token = app.issuer.new_consent_at(granted_at, &wanted.user, usage, &organizations);
    let answer = json!({ "refresh_token": token.expose(), "usage": usage, "granted_at": granted_at });
    (StatusCode::CREATED, Json(answer)).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewApiKey {
    organization: OrganizationId,
}

async fn new_api_key(State(app): State<App>, body: Body<NewApiKey>) -> Response {
    match body {
        Ok(Json(wanted)) => {
            let key = app.issuer.new_api_key(wanted.organization.as_str());
            (StatusCode::CREATED, Json(json!({ "api_key": key.expose() }))).into_response()
        }
        Err(rejection) => bad(&rejection.body_text()),
    }
}

async fn faults(State(app): State<App>) -> Json<Vec<Fault>> {
    Json(app.issuer.faults())
}

async fn set_fault(State(app): State<App>, body: Body<Fault>) -> Response {
    match body {
        Ok(Json(fault)) if !(0.0..=1.0).contains(&fault.probability) => bad("probability goes from 0 to 1"),
        Ok(Json(fault)) if fault.processed.is_some() && !fault.kind.may_choose() => {
            bad("processed is open only for error_500, hang, garbage and html")
        }
        Ok(Json(fault)) if fault.times == Some(0) => bad("times is at least 1"),
        Ok(Json(fault)) => {
            app.issuer.set_fault(fault);
            (StatusCode::CREATED, Json(app.issuer.faults())).into_response()
        }
        Err(rejection) => bad(&rejection.body_text()),
    }
}

async fn clear_faults(State(app): State<App>) -> StatusCode {
    app.issuer.clear_faults();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Withdraw {
    User { user: String },
    ApiKeys { organization: OrganizationId },
}

/// A user withdraws every consent, or every API key of an organization is deleted.
async fn withdraw(State(app): State<App>, body: Body<Withdraw>) -> Response {
    let found = match &body {
        Ok(Json(Withdraw::User { user })) => app.issuer.withdraw(app.now(), user),
        Ok(Json(Withdraw::ApiKeys { organization })) => {
            app.issuer.delete_api_keys(app.now(), organization.as_str()) > 0
        }
        Err(rejection) => return bad(&rejection.body_text()),
    };
    if found { StatusCode::NO_CONTENT.into_response() } else { StatusCode::NOT_FOUND.into_response() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alive {
    token: Box<str>,
}

/// What a token is and how it stands. Asking changes nothing; the token comes in the body, to stay out of addresses.
async fn alive(State(app): State<App>, body: Body<Alive>) -> Response {
    let token = match body {
        Ok(Json(asked)) => Secret::new(asked.token),
        Err(rejection) => return bad(&rejection.body_text()),
    };
    let now = app.now();
    let (kind, alive, standing) = if app.issuer.key_is_alive(&token) {
        ("api_key", true, "live")
    } else if app.issuer.reach(now, &token).is_some() {
        ("access_token", true, "live")
    } else {
        match app.issuer.standing(now, &token) {
            Standing::Dead(Refusal::Unknown) => ("unknown", false, "unknown"),
            Standing::Live => ("refresh_token", true, "live"),
            Standing::InGrace => ("refresh_token", true, "in_grace"),
            Standing::Spent => ("refresh_token", false, "spent"),
            Standing::Dead(why) => ("refresh_token", false, why.word()),
        }
    };
    Json(json!({ "kind": kind, "alive": alive, "standing": standing })).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientSecrets {
    secrets: Vec<Box<str>>,
}

/// The client's secrets are generated anew in the portal.
async fn set_client_secrets(State(app): State<App>, body: Body<ClientSecrets>) -> Response {
    match body {
        Ok(Json(new)) => {
            app.issuer.set_client_secrets(new.secrets.into_iter().map(Secret::new).collect());
            StatusCode::NO_CONTENT.into_response()
        }
        Err(rejection) => bad(&rejection.body_text()),
    }
}

fn bad(detail: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "detail": detail }))).into_response()
}
