//! The board: a page for people, on the inside listener, off unless configured. It is made here and whole, needs no script,
//! holds no secret but a renewal link that somebody asked for, and changes nothing.

mod calendar;
mod door;
mod html;
mod link;
mod page;
mod query;
mod table;
mod words;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{RawQuery, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use tokio::{sync::Semaphore, time::timeout};
use url::form_urlencoded;
use zeroize::Zeroizing;

pub use self::door::TokenFileError;
use self::{
    door::{COOKIE, Door, LoginError, Refused, SESSION_LIFE, Visit, is_for_loopback, is_from_elsewhere},
    page::{LinkShown, Overview, Place},
    query::Query,
};
use crate::{
    clock::SharedClock,
    config::BoardConfig,
    keeper::{Current, Keeper, KeeperError},
    model::{OrganizationId, Secret},
    task,
};

/// Pages that are made at once: each looks at every organization.
const PAGES_AT_ONCE: usize = 2;
/// The largest form, in bytes, and the longest it may take to come.
const MAX_FORM_BYTES: usize = 8 * 1024;
const FORM_TIMEOUT: Duration = Duration::from_secs(5);

/// On every answer. Forms go to us alone and nobody may frame us; nothing is loaded from elsewhere, and nothing is told to it.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Who made a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitor(pub(super) IpAddr);

/// The board. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    keeper: Current,
    clock: SharedClock,
    door: Door,
    turns: Semaphore,
}

/// An answer in place of the one that was asked for.
struct Instead(Box<Response>);

impl From<Response> for Instead {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Instead {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// Why there is no board.
#[derive(Debug, thiserror::Error)]
#[error("this machine gives no random numbers, so that nobody could be let in to the board")]
pub struct NoChance;

impl Board {
    /// The board that `config` asks for: `None` where it asks for none.
    pub fn of(config: &BoardConfig, keeper: Current, clock: SharedClock) -> Result<Option<Self>, NoChance> {
        if !config.enabled {
            return Ok(None);
        }
        let door = Door::new(config.token_file.clone(), clock.clone()).ok_or(NoChance)?;
        Ok(Some(Self(Arc::new(Parts { keeper, clock, door, turns: Semaphore::new(PAGES_AT_ONCE) }))))
    }

    /// Whether people can log in: the token file is read and fit, or none is needed.
    pub async fn check(&self) -> Result<(), TokenFileError> {
        self.0.door.tokens().await.map(drop)
    }

    pub(super) fn routes<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new()
            .route("/board", get(board))
            .route("/board/", get(async || see("../board")))
            .route("/board/results", get(results))
            .route("/board/login", post(log_in))
            .route("/board/logout", post(log_out))
            .route("/board/link", post(make_link))
            .route("/board/board.css", get(async || asset("text/css; charset=utf-8", include_str!("board.css"))))
            .route("/board/board.js", get(async || asset("text/javascript; charset=utf-8", include_str!("board.js"))))
            .route("/board/icon.svg", get(async || asset("image/svg+xml", include_str!("icon.svg"))))
            .layer(map_response(with_headers))
            .with_state(self)
    }

    async fn admit(&self, headers: &HeaderMap, place: Place, to: &Query) -> Result<Visit, Instead> {
        self.0.door.admit(headers).await.map_err(|refused| refusal(&refused, place, to).into())
    }

    fn keeper(&self, place: Place) -> Result<Arc<Keeper>, Instead> {
        self.0.keeper.get().ok_or_else(|| starting(place).into())
    }
}

async fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn see(address: &'static str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, address)]).into_response()
}

fn starting(place: Place) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "3")], Html(page::starting(place))).into_response()
}

fn refusal(refused: &Refused, place: Place, to: &Query) -> Response {
    let (status, title) = match refused {
        Refused::LogIn => {
            let scheme = [(header::WWW_AUTHENTICATE, "Form realm=\"consentry board\"")];
            return (StatusCode::UNAUTHORIZED, scheme, Html(page::log_in(place, to, None))).into_response();
        }
        Refused::OtherHost | Refused::Proxy => (StatusCode::FORBIDDEN, "Not shown here"),
        Refused::Tokens(error) => {
            tracing::error!(event = "board.token_file", %error, "nobody can look at the board");
            (StatusCode::SERVICE_UNAVAILABLE, "Not now")
        }
    };
    (status, Html(page::message(place, title, &format!("{refused}.")))).into_response()
}

async fn board(State(board): State<Board>, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Instead> {
    let query = Query::read(query.as_deref().unwrap_or_default());
    let visit = board.admit(&headers, Place::Top, &query).await?;
    let keeper = board.keeper(Place::Top)?;
    let _turn = board.0.turns.acquire().await;
    let now = board.0.clock.now().wall;
    let found = keeper.search(query.search(now)).await.map_err(|_| starting(Place::Top))?;
    let counted = Arc::clone(&keeper);
    // Counting over every organization takes too long for a thread that serves connections.
    let here = tokio::runtime::Handle::current();
    let counts = task::spawn_blocking(move || {
        task::block_on(&here, async { (counted.status(None).await, counted.census().await) })
    });
    let counts = counts.await;
    let (status, census) = counts.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
    let (status, census) = (&status, &*census);
    let links = keeper.makes_links();
    let overview = Overview { status, census, found: &found, query: &query, visit: &visit, now, links };
    Ok(Html(page::board(&overview)).into_response())
}

/// What the search found, alone: for the script that searches while somebody types.
async fn results(
    State(board): State<Board>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Instead> {
    let query = Query::read(query.as_deref().unwrap_or_default());
    let visit = board.admit(&headers, Place::Below, &query).await?;
    let keeper = board.keeper(Place::Below)?;
    let _turn = board.0.turns.acquire().await;
    let now = board.0.clock.now().wall;
    let found = keeper.search(query.search(now)).await.map_err(|_| starting(Place::Below))?;
    let rows = table::Rows { query: &query, visit: &visit, now, links: keeper.makes_links() };
    Ok(Html(table::results(&found, &rows).into_string()).into_response())
}

async fn log_in(State(board): State<Board>, request: Request) -> Result<Response, Instead> {
    let from = request.extensions().get::<Visitor>().map_or(IpAddr::from([0, 0, 0, 0]), |from| from.0);
    let (headers, fields) = form(request).await?;
    let to = Query::read(&fields.get("to"));
    if is_from_elsewhere(&headers) {
        return Err(foreign().into());
    }
    let id = match board.0.door.log_in(&Secret::new(fields.get("token").trim()), from).await {
        Ok(id) => id,
        Err(error) => return Err(login_refused(&error, from, &to).into()),
    };
    tracing::info!(event = "board.login", from = %from, "somebody logged in to the board");
    // No path, so that it is that of this form: also behind a proxy that puts one before it.
    let secure = if is_https(&headers) { "; Secure" } else { "" };
    let life = SESSION_LIFE.as_secs();
    let cookie = format!("{COOKIE}={id}; HttpOnly; SameSite=Strict; Max-Age={life}{secure}");
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, format!("../{}", to.address())), (header::SET_COOKIE, cookie)])
        .into_response())
}

fn login_refused(error: &LoginError, from: IpAddr, to: &Query) -> Response {
    let status = match error {
        LoginError::Wrong => StatusCode::UNAUTHORIZED,
        LoginError::Wait(_) => StatusCode::TOO_MANY_REQUESTS,
        LoginError::Tokens(_) | LoginError::NoChance => StatusCode::SERVICE_UNAVAILABLE,
    };
    match error {
        LoginError::Tokens(error) => {
            tracing::error!(event = "board.token_file", %error, "nobody can look at the board");
        }
        error => {
            tracing::warn!(event = "board.login_refused", from = %from, %error, "a login to the board was refused");
        }
    }
    let page = page::log_in(Place::Below, to, Some(&error.to_string()));
    let mut response = (status, Html(page)).into_response();
    if let LoginError::Wait(wait) = error {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    response
}

async fn log_out(State(board): State<Board>, request: Request) -> Result<Response, Instead> {
    let (headers, fields) = form(request).await?;
    let visit = board.admit(&headers, Place::Below, &Query::default()).await?;
    own_form(&headers, &fields, &visit)?;
    board.0.door.log_out(&headers);
    let gone = format!("{COOKIE}=; HttpOnly; SameSite=Strict; Max-Age=0");
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, "../board".to_owned()), (header::SET_COOKIE, gone)]).into_response())
}

async fn make_link(State(board): State<Board>, request: Request) -> Result<Response, Instead> {
    let (headers, fields) = form(request).await?;
    let visit = board.admit(&headers, Place::Below, &Query::default()).await?;
    own_form(&headers, &fields, &visit)?;
    let keeper = board.keeper(Place::Below)?;
    let wrong = |status, text: &str| (status, Html(page::message(Place::Below, "No link", text))).into_response();
    let organization: OrganizationId =
        fields.get("org").parse().map_err(|error| wrong(StatusCode::BAD_REQUEST, &format!("{error}.")))?;
    let made = link::make(&keeper, &organization).await.map_err(|error: KeeperError| {
        let status = StatusCode::from_u16(error.code().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        wrong(status, &format!("{error}."))
    })?;
    tracing::info!(event = "board.link", organization = organization.as_str(), "a renewal link was made on the board");
    if headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json") {
        return Ok(Json(made).into_response());
    }
    let shown = LinkShown { organization: organization.as_str(), url: &made.url, expires_at: made.expires_at };
    Ok(Html(page::link(&shown, &visit)).into_response())
}

/// Refuses a form that is not one of the pages that this visitor was given.
fn own_form(headers: &HeaderMap, fields: &Fields, visit: &Visit) -> Result<(), Instead> {
    if is_from_elsewhere(headers) || !Secret::new(fields.get("form")).same_as(&Secret::new(&*visit.form)) {
        return Err(foreign().into());
    }
    Ok(())
}

fn foreign() -> Response {
    let text =
        "This was sent by a page that is not, or no longer, the board's. Load the board again, and then try once more.";
    (StatusCode::FORBIDDEN, Html(page::message(Place::Below, "Not taken", text))).into_response()
}

/// What a form holds.
struct Fields(Zeroizing<Vec<u8>>);

impl Fields {
    /// The first field of this name; empty where there is none.
    fn get(&self, name: &str) -> String {
        let mut fields = form_urlencoded::parse(&self.0);
        fields.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
    }
}

async fn form(request: Request) -> Result<(HeaderMap, Fields), Instead> {
    let (head, body) = request.into_parts();
    let too_large = || (StatusCode::PAYLOAD_TOO_LARGE, "the form is too large\n").into_response();
    let too_slow = || (StatusCode::REQUEST_TIMEOUT, "the form did not come in time\n").into_response();
    let read = axum::body::to_bytes(Body::new(body), MAX_FORM_BYTES);
    let bytes = timeout(FORM_TIMEOUT, read).await.map_err(|_| too_slow())?.map_err(|_| too_large())?;
    Ok((head.headers, Fields(Zeroizing::new(bytes.to_vec()))))
}

/// Whether the browser surely sees https, at a proxy before us. It tells from which site a form comes where it sees https, and
/// on this machine.
fn is_https(headers: &HeaderMap) -> bool {
    let says = |name: &'static str, beginning| {
        headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.starts_with(beginning))
    };
    says("x-forwarded-proto", "https")
        || says("origin", "https://")
        || (headers.contains_key("sec-fetch-site") && !is_for_loopback(headers))
}
