//! The issuer's HTTP surface: discovery, the consent page, the token endpoints, a little of Dinero's API, and the control
//! surface. It turns requests into steps of the [`Issuer`] and strikes with the faults; it decides nothing.

mod authorize;
mod control;
mod page;
mod params;
mod protected;
mod start;
mod struck;
mod token;

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use url::Url;

pub(super) use struck::DropConnection;

use super::{
    issuer::Issuer,
    rules::{SCOPES, Scopes},
};
use crate::{clock::SharedClock, model::Timestamp};

/// The largest request body, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What every handler has.
#[derive(Clone, Debug)]
pub(super) struct App {
    issuer: Issuer,
    clock: SharedClock,
    /// Without a slash at its end.
    base: String,
    latency: Duration,
}

impl App {
    pub(super) fn new(issuer: Issuer, clock: SharedClock, url: &Url, latency: Duration) -> Self {
        Self { issuer, clock, base: url.as_str().trim_end_matches('/').to_owned(), latency }
    }

    fn now(&self) -> Timestamp {
        self.clock.now().wall
    }

    /// The way in, or the way out.
    async fn travel(&self) {
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency / 2).await;
        }
    }
}

pub(super) fn router(app: App) -> Router {
    let beside = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/connect/authorize", get(authorize::by_query).post(authorize::by_form))
        .route("/connect/revocation", post(token::revocation))
        .route("/v1/organizations", get(protected::organizations))
        .route("/v1/{organization}/contacts", get(protected::contacts))
        .layer(middleware::from_fn_with_state(app.clone(), struck::elsewhere));
    Router::new()
        .route("/connect/token", post(token::connect))
        .route("/dineroapi/oauth/token", post(token::personal))
        .merge(beside)
        .nest("/sandbox", control::router())
        .route("/", get(start::page))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}

/// `OpenID` Connect Discovery 1.0, the part that an OAuth client reads.
async fn discovery(State(app): State<App>) -> Json<Value> {
    let base = &app.base;
    Json(json!({
        "issuer": base,
        "authorization_endpoint": format!("{base}/connect/authorize"),
        "token_endpoint": format!("{base}/connect/token"),
        "revocation_endpoint": format!("{base}/connect/revocation"),
        "scopes_supported": SCOPES,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query", "form_post"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
    }))
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, page::page("Not found", "<p>There is nothing here. <a href=\"/\">What there is</a></p>"))
        .into_response()
}

/// Text for people: the scopes in words.
fn scope_words(scopes: Scopes) -> String {
    scopes.words().join(" ")
}
