use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    App,
    params::{self, Params},
    struck,
};
use crate::{
    model::{ClientCredentials, Secret},
    sandbox::rules::{Denied, Granted, Request},
};

/// `POST /connect/token`: Visma Connect's.
pub(super) async fn connect(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let params = Params::parse(&body);
    let asked = checked_form(&headers, &params).and_then(|()| {
        let client = params::client(&headers, &params)?;
        Ok((client, Asked::at_connect(&params)?))
    });
    respond(&app, asked, &Dialect { tokens: connect_tokens, error: connect_error }).await
}

/// `POST /dineroapi/oauth/token`: Dinero's for personal integrations.
pub(super) async fn personal(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let params = Params::parse(&body);
    let asked = checked_form(&headers, &params)
        .and_then(|()| Ok((params::personal_client(&headers), Asked::at_dinero(&params)?)));
    respond(&app, asked, &Dialect { tokens: personal_tokens, error: personal_error }).await
}

/// `POST /connect/revocation` (RFC 7009).
pub(super) async fn revocation(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let params = Params::parse(&body);
    let revoked = checked_form(&headers, &params).and_then(|()| {
        let client = params::client(&headers, &params)?;
        let token = params.secret("token").ok_or(Denied::InvalidRequest("token is missing"))?;
        app.issuer.revoke(app.now(), &client, &token)
    });
    match revoked {
        Ok(()) => StatusCode::OK.into_response(),
        Err(denied) => (StatusCode::BAD_REQUEST, Json(connect_error(denied))).into_response(),
    }
}

/// How an endpoint words its answers.
struct Dialect {
    tokens: fn(&Granted) -> Value,
    error: fn(Denied) -> Value,
}

/// A request that owns what it holds.
enum Asked {
    Refresh(Secret),
    Code { code: Secret, redirect_uri: String, verifier: Option<String> },
    ApiKey(Secret),
}

impl Asked {
    fn at_connect(params: &Params) -> Result<Self, Denied> {
        match params.get("grant_type") {
            Some("refresh_token") => {
                let token = params.secret("refresh_token");
                Ok(Self::Refresh(token.ok_or(Denied::InvalidRequest("refresh_token is missing"))?))
            }
            Some("authorization_code") => Ok(Self::Code {
                code: params.secret("code").ok_or(Denied::InvalidRequest("code is missing"))?,
                redirect_uri: params
                    .get("redirect_uri")
                    .ok_or(Denied::InvalidRequest("redirect_uri is missing"))?
                    .to_owned(),
                verifier: params.get("code_verifier").map(str::to_owned),
            }),
            Some(_) => Err(Denied::UnsupportedGrantType),
            None => Err(Denied::InvalidRequest("grant_type is missing")),
        }
    }

    /// The API key is both the name and the password.
    fn at_dinero(params: &Params) -> Result<Self, Denied> {
        match params.get("grant_type") {
            Some("password") => match (params.secret("username"), params.secret("password")) {
                (Some(name), Some(password)) if name.same_as(&password) => Ok(Self::ApiKey(password)),
                _ => Err(Denied::InvalidRequest("the API key belongs into both username and password")),
            },
            Some(_) => Err(Denied::UnsupportedGrantType),
            None => Err(Denied::InvalidRequest("grant_type is missing")),
        }
    }

    fn request(&self) -> Request<'_> {
        match self {
            Self::Refresh(token) => Request::Refresh(token),
            Self::Code { code, redirect_uri, verifier } => {
                Request::Code { code, redirect_uri, verifier: verifier.as_deref() }
            }
            Self::ApiKey(key) => Request::ApiKey(key),
        }
    }
}

/// Travels in, meets its fault, is exchanged or not, and travels out.
async fn respond(app: &App, asked: Result<(ClientCredentials, Asked), Denied>, dialect: &Dialect) -> Response {
    app.travel().await;
    let request = asked.as_ref().ok().map(|(_, asked)| asked.request());
    let fault = app.issuer.next_fault(request.as_ref());
    let kept_out = fault.as_ref().filter(|fault| !fault.processes());
    let now = app.now();
    let response = match (kept_out, &asked) {
        (Some(fault), asked) => {
            let client = asked.as_ref().map_or("", |(client, _)| client.id.as_str());
            app.issuer.not_processed(now, client, request.as_ref(), fault);
            Response::new(Body::empty())
        }
        (None, Ok((client, asked))) => match app.issuer.exchange(now, client, &asked.request(), fault.as_ref()) {
            Ok(granted) => {
                let mut tokens = (dialect.tokens)(&granted);
                struck::alter(fault.as_ref(), &mut tokens);
                unstored(StatusCode::OK, tokens)
            }
            Err(denied) => unstored(StatusCode::BAD_REQUEST, (dialect.error)(denied)),
        },
        (None, Err(denied)) => {
            app.issuer.reject(now, "", *denied);
            unstored(StatusCode::BAD_REQUEST, (dialect.error)(*denied))
        }
    };
    let response = match &fault {
        Some(fault) => struck::answer(fault, response).await,
        None => response,
    };
    app.travel().await;
    response
}

/// RFC 6749 section 3.2: a form, each parameter once.
fn checked_form(headers: &HeaderMap, params: &Params) -> Result<(), Denied> {
    if !params::is_form(headers) {
        return Err(Denied::InvalidRequest("the body has to be application/x-www-form-urlencoded"));
    }
    if params.repeats() {
        return Err(Denied::InvalidRequest("a parameter is there twice"));
    }
    Ok(())
}

fn connect_tokens(granted: &Granted) -> Value {
    let mut tokens = json!({
        "access_token": granted.access_token.expose(),
        "expires_in": granted.expires_in.as_secs(),
        "token_type": "Bearer",
        "scope": granted.scope,
    });
    if let (Some(token), Some(fields)) = (&granted.refresh_token, tokens.as_object_mut()) {
        fields.insert("refresh_token".to_owned(), token.expose().into());
    }
    tokens
}

/// Bare, as the real one is: what is wrong with a credential stays in the record.
fn connect_error(denied: Denied) -> Value {
    json!({ "error": denied.code() })
}

fn personal_tokens(granted: &Granted) -> Value {
    json!({
        "access_token": granted.access_token.expose(),
        "token_type": "Bearer",
        "expires_in": granted.expires_in.as_secs(),
        "refresh_token": "",
        "scope": granted.scope,
    })
}

/// Dinero hides the OAuth error in a string of JSON.
fn personal_error(denied: Denied) -> Value {
    json!({ "message": json!({ "error": denied.code() }).to_string() })
}

/// RFC 6749 section 5.1: no cache may keep a token.
fn unstored(status: StatusCode, body: Value) -> Response {
    (status, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
}
