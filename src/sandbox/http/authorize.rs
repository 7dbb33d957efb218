//! The consent page: `/connect/authorize` (RFC 6749 section 4.1, with PKCE and OAuth 2.0 Form Post Response Mode).

use axum::{
    body::Bytes,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use url::{Host, Url};

use super::{
    App,
    page::{escape, hidden, page, sending_page},
    params::{self, Params},
    scope_words,
};
use crate::sandbox::{
    people::{PEOPLE, organization_name},
    rules::{Approval, Scopes},
};

/// How many users the page offers; others can still be named by `login_hint`.
const MAX_OFFERED: usize = 50;
/// The length of an S256 challenge: 32 bytes in base64url.
const CHALLENGE: usize = 43;
/// The parameters that travel through the page's form.
const CARRIED: [&str; 8] = [
    "client_id",
    "redirect_uri",
    "response_type",
    "response_mode",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
];

pub(super) async fn by_query(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    authorize(&app, &Params::parse(query.unwrap_or_default().as_bytes()))
}

/// The page's own form, or an authorization request by POST.
pub(super) async fn by_form(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    if !params::is_form(&headers) {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    authorize(&app, &Params::parse(&body))
}

fn authorize(app: &App, params: &Params) -> Response {
    let way_back = match WayBack::read(app, params) {
        Ok(way_back) => way_back,
        Err(problem) => return refuse_page(problem),
    };
    let (scopes, challenge) = match wanted(params) {
        Ok(wanted) => wanted,
        Err((error, description)) => return way_back.error(error, description),
    };
    let approve = |user: &str| {
        let approval = Approval {
            user: user.to_owned(),
            redirect_uri: way_back.redirect_uri.clone(),
            challenge: challenge.clone(),
            scopes,
        };
        way_back.code(app.issuer.new_code(app.now(), approval).expose())
    };
    match (params.get("decision"), params.get("prompt")) {
        (Some("approve"), _) => match params.get("user").filter(|user| app.issuer.knows_user(user)) {
            Some(user) => approve(user),
            None => refuse_page("Choose who signs in, then approve."),
        },
        (Some(_), _) => way_back.error("access_denied", "the person refused"),
        (None, Some("none")) => match params.get("login_hint").filter(|user| app.issuer.knows_user(user)) {
            Some(user) => approve(user),
            None => way_back.error("login_required", "nobody of that name can sign in"),
        },
        (None, _) => consent_page(app, params, &way_back, scopes),
    }
}

/// Where the answer goes, and how.
struct WayBack {
    redirect_uri: String,
    url: Url,
    by_form: bool,
    state: Option<String>,
    /// Who answers (RFC 9207), so that a client with several issuers cannot be led to take one for another.
    issuer: String,
}

impl WayBack {
    /// What is wrong here is told to the person: an answer must not be sent where the client does not live
    /// (RFC 6749 section 4.1.2.1).
    fn read(app: &App, params: &Params) -> Result<Self, &'static str> {
        if params.repeats() {
            return Err("A parameter is there twice.");
        }
        if params.get("client_id") != Some(app.issuer.terms().client_id.as_str()) {
            return Err("The client_id is not the one of this sandbox.");
        }
        let redirect_uri = params.get("redirect_uri").ok_or("The redirect_uri is missing.")?.to_owned();
        let url = Url::parse(&redirect_uri).map_err(|_| "The redirect_uri is not an address.")?;
        if url.fragment().is_some() {
            return Err("The redirect_uri must have no fragment.");
        }
        if !(url.scheme() == "https" || url.scheme() == "http" && is_loopback(&url)) {
            return Err("The redirect_uri has to be https, or http on this machine.");
        }
        let by_form = match params.get("response_mode") {
            None | Some("query") => false,
            Some("form_post") => true,
            Some(_) => return Err("The response_mode has to be query or form_post."),
        };
        let state = params.get("state").map(str::to_owned);
        Ok(Self { redirect_uri, url, by_form, state, issuer: app.base.clone() })
    }

    fn code(&self, code: &str) -> Response {
        self.send(&[("code", code)])
    }

    fn error(&self, error: &str, description: &str) -> Response {
        self.send(&[("error", error), ("error_description", description)])
    }

    fn send(&self, fields: &[(&str, &str)]) -> Response {
        let mut fields = fields.to_vec();
        fields.push(("iss", &self.issuer));
        if let Some(state) = &self.state {
            fields.push(("state", state));
        }
        if self.by_form {
            return sending_page("Back to the application", &self.redirect_uri, &fields);
        }
        let mut url = self.url.clone();
        url.query_pairs_mut().extend_pairs(fields);
        Redirect::to(url.as_str()).into_response()
    }
}

type Problem = (&'static str, &'static str);

/// The scopes and PKCE's challenge; what is wrong with them is told to the client.
fn wanted(params: &Params) -> Result<(Scopes, Option<String>), Problem> {
    match params.get("response_type") {
        Some("code") => {}
        Some(_) => return Err(("unsupported_response_type", "response_type has to be code")),
        None => return Err(("invalid_request", "response_type is missing")),
    }
    let scopes = params
        .get("scope")
        .and_then(Scopes::parse)
        .ok_or(("invalid_scope", "the scopes are dineropublicapi:read, dineropublicapi:write and offline_access"))?;
    let challenge = match (params.get("code_challenge"), params.get("code_challenge_method")) {
        (None, None) => None,
        (Some(challenge), Some("S256")) if is_challenge(challenge) => Some(challenge.to_owned()),
        (Some(_), Some("S256")) => return Err(("invalid_request", "code_challenge is not one of S256")),
        _ => return Err(("invalid_request", "PKCE takes code_challenge with code_challenge_method S256")),
    };
    Ok((scopes, challenge))
}

fn is_challenge(text: &str) -> bool {
    text.len() == CHALLENGE && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn refuse_page(problem: &str) -> Response {
    (StatusCode::BAD_REQUEST, page("This request cannot be approved", &format!("<p>{}</p>", escape(problem))))
        .into_response()
}

fn consent_page(app: &App, params: &Params, way_back: &WayBack, scopes: Scopes) -> Response {
    let carried: Vec<(&str, &str)> =
        CARRIED.iter().filter_map(|name| params.get(name).map(|value| (*name, value))).collect();
    let hint = params.get("login_hint");
    let people = app.issuer.people(MAX_OFFERED);
    let checked = people.iter().position(|(user, _)| hint == Some(&**user)).unwrap_or(0);
    let choices: Vec<String> = people
        .iter()
        .enumerate()
        .map(|(at, (user, organizations))| {
            let name = PEOPLE.iter().find(|person| *person.user == **user).map_or(&**user, |person| person.name);
            let owned: Vec<String> = organizations.iter().map(|id| organization_name(id)).collect();
            format!(
                "<label><input type=\"radio\" name=\"user\" value=\"{}\"{}> {} – {}</label>",
                escape(user),
                if at == checked { " checked" } else { "" },
                escape(name),
                escape(&owned.join(", "))
            )
        })
        .collect();
    let body = format!(
        "<p>This is the consentry sandbox, and stands in for Visma Connect: nobody here is real.</p>\
         <p>The application <code>{}</code> asks for <code>{}</code>, and wants you sent back to <code>{}</code>.</p>\
         <form method=\"post\" action=\"/connect/authorize\">{}\
         <fieldset><legend>Who signs in? The consent reaches every company of theirs.</legend>{}</fieldset>\
         <button name=\"decision\" value=\"approve\">Approve</button>\
         <button name=\"decision\" value=\"refuse\">Refuse</button></form>",
        escape(&app.issuer.terms().client_id),
        escape(&scope_words(scopes)),
        escape(&way_back.redirect_uri),
        hidden(&carried),
        choices.concat()
    );
    page("Give access to your accounts?", &body)
}
