//! One request, and what answers it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Request, header},
    response::Response,
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    Offer, Pages, begin, callback, date,
    language::Language,
    page::{Form, Page, Part},
    route::Route,
    texts::{self, About, Subject},
    trouble::Trouble,
};
use crate::{clock::Now, serve::catching_panics};

/// The largest body that is read, in bytes: an issuer's form with its code.
const MAX_BODY: usize = 16 * 1024;
/// How long the whole body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// When to come back to a worker that starts, in seconds.
const SOON: HeaderValue = HeaderValue::from_static("5");

/// A request, read as far as every page needs it.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) offer: Arc<Offer>,
    pub(super) language: Language,
    pub(super) headers: HeaderMap,
    pub(super) now: Now,
}

/// Answers a request, whatever happens while it does.
pub(super) async fn answer(pages: Pages, address: IpAddr, request: Request<Incoming>) -> Response {
    let language = Language::preferred(request.headers());
    let offer = pages.0.offer.load_full();
    let is_https = offer.as_ref().is_some_and(|offer| offer.is_https());
    let answered = async {
        let offer = offer.ok_or(Trouble::Starting)?;
        respond(&pages, offer, language, address, request.map(Body::new)).await
    };
    let refused = |trouble: Trouble| plain(language, trouble).respond(is_https);
    let answered = async { answered.await.unwrap_or_else(refused) };
    let mut response = catching_panics(answered, || {
        tracing::error!("a consent page's handler panicked; this is a fault of the worker");
        refused(Trouble::Internal)
    })
    .await;
    if response.status() == Trouble::Starting.status() {
        response.headers_mut().insert(header::RETRY_AFTER, SOON);
    }
    response
}

/// Answers a request; an error is one that no link is known to.
pub(super) async fn respond(
    pages: &Pages,
    offer: Arc<Offer>,
    language: Language,
    address: IpAddr,
    request: Request<Body>,
) -> Result<Response, Trouble> {
    let now = pages.0.clock.now();
    if !pages.0.rate.admits(address, now.boot) {
        return Err(Trouble::TooMany);
    }
    let (head, body) = request.into_parts();
    let is_https = offer.is_https();
    let route = Route::of(head.uri.path(), offer.prefix());
    if route == Route::Nothing {
        return Err(Trouble::NotFound);
    }
    if !route.takes(head.method.as_str()) {
        let mut response = plain(language, Trouble::Method(route.methods())).respond(is_https);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(route.methods()));
        return Ok(response);
    }
    let asking = Asking { offer: Arc::clone(&offer), language, headers: head.headers, now };
    match route {
        Route::Invitation(token) => begin::page(pages, &asking, token).await,
        Route::Start(token) => {
            let form = form(&asking.headers, body).await?;
            begin::start(pages, &asking, token, &form).await
        }
        Route::Callback(provider) => {
            let returned = match head.method.as_str() {
                "POST" => form(&asking.headers, body).await?,
                _ => Bytes::copy_from_slice(head.uri.query().unwrap_or_default().as_bytes()),
            };
            callback::answer(pages, &asking, provider, &returned).await
        }
        Route::Done => Ok(callback::done(pages, &asking)),
        Route::Nothing => Err(Trouble::NotFound),
    }
}

/// A form's body, whole.
async fn form(headers: &HeaderMap, body: Body) -> Result<Bytes, Trouble> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let read = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let bytes = read.map_err(|_| Trouble::Malformed)?.map_err(|_| Trouble::TooLarge)?.to_bytes();
    if bytes.is_empty() || kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        Ok(bytes)
    } else {
        Err(Trouble::Malformed)
    }
}

/// The page of a trouble that no link is known to.
fn plain(language: Language, trouble: Trouble) -> Page {
    trouble_page(language, trouble, About::default(), None)
}

/// The page of a trouble; `again` leads to another try.
fn trouble_page(language: Language, trouble: Trouble, about: About<'_>, again: Option<Form>) -> Page {
    let (title, said) = texts::trouble(language, trouble, about);
    let mut parts: Vec<Part> = said.into_iter().map(Part::Text).collect();
    parts.extend(again.map(Part::Form));
    Page { language, word: trouble.word(), status: trouble.status(), title, parts, looks_again: false }
}

impl Asking {
    /// The page of a trouble that came of a link; `reference` is that of the log's line.
    pub(super) fn trouble(&self, trouble: Trouble, subject: Option<&Subject>, reference: Option<&str>) -> Page {
        let day = match trouble {
            Trouble::Expired(at) => Some(date::day(at, &self.offer.time_zone, self.language)),
            _ => None,
        };
        let again = subject.filter(|_| trouble.is_worth_another_try()).map(|subject| self.again(trouble, subject));
        let about = About { asker: Some(&self.offer.name), subject, day: day.as_deref() };
        let mut page = trouble_page(self.language, trouble, about, again);
        if let Some(reference) = reference {
            let label = texts::labels(self.language).reference;
            page.parts.push(Part::Reference(label, reference.to_owned()));
        }
        page
    }

    fn again(&self, trouble: Trouble, subject: &Subject) -> Form {
        let labels = texts::labels(self.language);
        let another = trouble == Trouble::WrongOrganization;
        Form {
            action: self.start_path(&subject.token),
            button: if another { labels.another_user } else { labels.again }.to_owned(),
            field: another.then_some(begin::ANOTHER_USER),
            origin: self.offer.local_origins(),
        }
    }

    /// Where the button of a link's page leads to.
    pub(super) fn start_path(&self, token: &str) -> String {
        format!("{}/c/{token}/start", self.offer.prefix())
    }

    /// The page as the answer to this request.
    pub(super) fn show(&self, page: Page) -> Response {
        page.respond(self.offer.is_https())
    }
}

impl Offer {
    /// The origins of issuers that are reached by plain http, which are on this machine: sandboxes.
    pub(super) fn local_origins(&self) -> Option<String> {
        let urls = self.providers.values().flat_map(|provider| {
            let config = provider.config();
            [config.issuer.as_ref(), config.authorize_url.as_ref()]
        });
        let local = urls.flatten().filter(|url| url.scheme() == "http");
        let origins: Vec<String> = local.map(|url| url.origin().ascii_serialization()).collect();
        (!origins.is_empty()).then(|| origins.join(" "))
    }
}
