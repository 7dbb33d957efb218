use std::{future::Future, sync::Arc};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use hyper::{body::Incoming, service::Service as _};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    Api, Peer, Reach,
    audit::{self, Action, On},
    confirm, enrolments, events, fetch, link,
    problems::Refusal,
    request, vault,
};
use crate::{
    config::Role,
    keeper::{Enrolled, Keeper, KeeperError, Served},
    model::OrganizationId,
    serve::catching_panics,
    task,
    wire::{Code, ENROLMENT_CHANGED, HEALTHZ, READYZ, Resolution},
};

/// The router, ready to be called by a connection.
pub(super) type Routes = TowerToHyperService<Router>;

/// Every route of the API.
pub(super) fn router(api: Api, stopping: CancellationToken) -> Routes {
    let router = Router::new()
        .route("/v1/organizations/{org}/token", get(token))
        .route("/v1/organizations/{org}/token/refresh", post(refresh))
        .route("/v1/organizations", get(list).post(enrolments::enrol))
        .route("/v1/organizations/{org}", get(show).put(enrol).delete(remove))
        .route("/v1/organizations/{org}/pause", post(pause))
        .route("/v1/organizations/{org}/resume", post(resume))
        .route("/v1/organizations/{org}/resolve", post(resolve))
        .route("/v1/organizations/{org}/confirm", post(confirm::confirm))
        .route("/v1/organizations/{org}/consent-link", post(link::make).delete(link::revoke))
        .route("/v1/status", get(status))
        .route("/v1/events", get(events::follow))
        .route("/v1/vault/keys", post(vault::rotate_key))
        .route("/v1/vault/recipients", get(vault::recipients))
        .route("/v1/vault/recipients/{recipient}", put(vault::add_recipient).delete(vault::remove_recipient))
        .route("/v1/vault/backup", get(vault::backup))
        .route(HEALTHZ, get(healthz))
        .route(READYZ, get(readyz))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(Extension(events::Stopping(stopping)))
        .with_state(api);
    TowerToHyperService::new(router)
}

/// Answers one request of `peer`, whatever happens while it does.
pub(super) async fn answer(routes: Routes, peer: Peer, mut request: Request<Incoming>) -> Response {
    request.extensions_mut().insert(peer);
    let answered = async { routes.call(request).await.unwrap_or_else(|never| match never {}) };
    let mut response = catching_panics(answered, || {
        tracing::error!("a request handler panicked; this is a fault of the worker");
        Refusal::internal().into_response()
    })
    .await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) type Answer = Result<Response, Refusal>;

async fn token(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Response {
    let served = async {
        let organization = api.permitted(&uri, &peer, Role::Fetch, Action::Fetch)?;
        let min_ttl = request::min_ttl(&uri)?;
        let keeper = api.keeper()?;
        let served = keeper.token(&organization, min_ttl).await;
        match served {
            Ok(served) => Ok(served),
            Err(error) => Err(api.with_remedy(&keeper, &peer, &organization, error).await),
        }
    };
    api.counted(served).await
}

async fn refresh(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri, headers: HeaderMap) -> Response {
    let served = async {
        let organization = api.permitted(&uri, &peer, Role::Fetch, Action::Refresh)?;
        request::no_query(&uri)?;
        let rejected = request::rejected(&headers)?;
        let keeper = api.keeper()?;
        let served = keeper.refresh(&organization, rejected.as_deref()).await;
        match served {
            Ok(served) => Ok(served),
            Err(error) => Err(api.with_remedy(&keeper, &peer, &organization, error).await),
        }
    };
    api.counted(served).await
}

async fn list(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    let access = api.access();
    let reach = reach_to_operate(access.scope(&peer, Role::Operate), &peer)?;
    let filter = request::filter(&uri)?;
    let mut page = api.keeper()?.list(filter, &|organization| reach.covers(organization)).await?;
    page.next_cursor = page.next_cursor.and_then(|next| Some(request::to_cursor(&next.parse().ok()?)));
    Ok(json(StatusCode::OK, &page))
}

async fn show(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    let organization = api.permitted(&uri, &peer, Role::Operate, Action::Show)?;
    request::no_query(&uri)?;
    Ok(json(StatusCode::OK, &api.keeper()?.show(&organization).await?))
}

async fn enrol(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri, body: Body) -> Answer {
    let organization = api.permitted(&uri, &peer, Role::Operate, Action::Enrol)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let enrolment = request::enrolment(&request::body(body).await?)?;
    let enrolled = api
        .change(async move {
            let result = keeper.enrol(organization.clone(), enrolment).await;
            audit::record_enrolment(&peer, &organization, &result);
            result
        })
        .await?;
    let status = status_of(&enrolled);
    let mut response = json(status, &enrolled.organization);
    let changed = HeaderValue::from_static(if enrolled.changed { "true" } else { "false" });
    response.headers_mut().insert(ENROLMENT_CHANGED, changed);
    Ok(response)
}

/// The status of an enrolment that went well.
pub(super) const fn status_of(enrolled: &Enrolled) -> StatusCode {
    if enrolled.created { StatusCode::CREATED } else { StatusCode::OK }
}

async fn remove(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    let organization = api.permitted(&uri, &peer, Role::Admin, Action::Remove)?;
    let revoke = request::revoke(&uri)?;
    let keeper = api.keeper()?;
    api.change(async move {
        let result = keeper.remove(&organization, revoke).await;
        let outcome = match &result {
            Ok(()) if revoke => "removed, with revocation",
            Ok(()) => "removed",
            Err(error) => error.code().word(),
        };
        audit::record(&peer, Action::Remove, &organization, outcome);
        result
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn pause(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    set_paused(api, peer, uri, true).await
}

async fn resume(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    set_paused(api, peer, uri, false).await
}

async fn set_paused(api: Api, peer: Peer, uri: Uri, paused: bool) -> Answer {
    let action = if paused { Action::Pause } else { Action::Resume };
    let organization = api.permitted(&uri, &peer, Role::Operate, action)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let organization = api
        .change(async move {
            let result = keeper.set_paused(&organization, paused).await;
            let outcome = result.as_ref().map_or_else(|error| error.code().word(), |_| "done");
            audit::record(&peer, action, &organization, outcome);
            result
        })
        .await?;
    Ok(json(StatusCode::OK, &organization))
}

async fn resolve(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri, body: Body) -> Answer {
    let organization = api.permitted(&uri, &peer, Role::Operate, Action::Resolve)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let resolution = request::resolution(&request::body(body).await?)?;
    let organization = api
        .change(async move {
            let result = keeper.resolve(&organization, resolution).await;
            let done = match resolution {
                Resolution::Retry => "retried",
                Resolution::Abandon => "abandoned",
            };
            let outcome = match (&result, resolution) {
                (Ok(_), _) => done.to_owned(),
                (Err(error), Resolution::Retry) => format!("retry: {}", error.code().word()),
                (Err(error), Resolution::Abandon) => format!("abandon: {}", error.code().word()),
            };
            audit::record(&peer, Action::Resolve, &organization, &outcome);
            result
        })
        .await?;
    Ok(json(StatusCode::OK, &organization))
}

async fn status(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri) -> Answer {
    let access = api.access();
    reach_to_operate(access.scope(&peer, Role::Operate), &peer)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let turn = Arc::clone(&api.0.counting).acquire_owned().await.map_err(|_| Refusal::internal())?;
    // It counts over every organization, which takes too long for a thread that serves connections.
    let here = tokio::runtime::Handle::current();
    let counted = task::spawn_blocking(move || {
        let _turn = turn;
        match access.scope(&peer, Role::Operate) {
            Reach::All => task::block_on(&here, keeper.status(None)),
            reach => task::block_on(&here, keeper.status(Some(&|organization| reach.covers(organization)))),
        }
    });
    let status = counted.await.map_err(|_| Refusal::internal())?;
    Ok(json(StatusCode::OK, &status))
}

async fn healthz(State(api): State<Api>) -> Answer {
    // While there is no keeper the vault is being opened.
    let Ok(keeper) = api.keeper() else { return Ok(json(StatusCode::OK, &Health { status: "ok" })) };
    if keeper.wants_restart().await {
        let why = "the vault took no writes, and its disk takes them again: restart the worker";
        Err(KeeperError::VaultUnavailable(why.to_owned()).into())
    } else {
        Ok(json(StatusCode::OK, &Health { status: "ok" }))
    }
}

async fn readyz(State(api): State<Api>) -> Answer {
    if api.keeper()?.is_ready() {
        Ok(json(StatusCode::OK, &Health { status: "ready" }))
    } else {
        Err(Refusal::new(Code::Starting, "the index is still being loaded; try again soon"))
    }
}

async fn not_found() -> Refusal {
    Refusal::new(Code::NotFound, "there is no such path; docs/openapi.yaml lists those that there are")
}

async fn method_not_allowed() -> Refusal {
    Refusal::new(Code::MethodNotAllowed, "this path has no such method; the Allow header lists those that it has")
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

impl Api {
    /// The organization in the path, if `peer` may do what needs `role` to it. Asked before anything is looked up, so
    /// that the answer is the same whether it exists or not.
    pub(super) fn permitted(
        &self,
        uri: &Uri,
        peer: &Peer,
        role: Role,
        action: Action,
    ) -> Result<OrganizationId, Refusal> {
        let organization = request::organization(uri)?;
        self.permitted_on(&organization, peer, role, action).map(|()| organization)
    }

    /// Whether `peer` may do what needs `role` to the organization, whether it exists or not.
    pub(super) fn permitted_on(
        &self,
        organization: &OrganizationId,
        peer: &Peer,
        role: Role,
        action: Action,
    ) -> Result<(), Refusal> {
        if self.0.access.load().may(peer, role, organization) {
            return Ok(());
        }
        audit::record(peer, action, organization, "denied");
        let detail = format!(
            "user {} may not {} this organization; that takes an [[access]] rule with role {} or higher",
            peer.uid,
            action.word(),
            word(role)
        );
        Err(Refusal::new(Code::Forbidden, detail))
    }

    /// Whether `peer` may do what needs `role` to everything there is: a rule for some organizations is not enough.
    pub(super) fn permitted_everywhere(&self, peer: &Peer, role: Role, action: Action) -> Result<(), Refusal> {
        if matches!(self.0.access.load().scope(peer, role), Reach::All) {
            return Ok(());
        }
        audit::record(peer, action, On::Vault, "denied");
        let detail = format!(
            "user {} may not do this; that takes an [[access]] rule with role {} for every organization",
            peer.uid,
            word(role)
        );
        Err(Refusal::new(Code::Forbidden, detail))
    }

    /// What a fetch is refused with. Of a consent that is lost whoever may operate on it is told where it is renewed; a link
    /// is not for everybody who may fetch a token.
    async fn with_remedy(
        &self,
        keeper: &Keeper,
        peer: &Peer,
        organization: &OrganizationId,
        error: KeeperError,
    ) -> Refusal {
        let tell =
            matches!(error, KeeperError::Lost { .. }) && self.0.access.load().may(peer, Role::Operate, organization);
        let renewal_url = if tell { keeper.renewal_url(organization).await } else { None };
        Refusal::from(error).renewable_at(renewal_url)
    }

    /// Answers a fetch or forced refresh, and counts it whatever came of it.
    async fn counted(&self, served: impl Future<Output = Result<Served, Refusal>>) -> Response {
        let start = self.0.clock.boot();
        let result = served.await;
        let took = self.0.clock.boot().saturating_sub(start);
        match result {
            Ok(served) => {
                self.0.metrics.fetched(served.degraded().is_some(), took);
                fetch::routed(served)
            }
            Err(refusal) => {
                self.0.metrics.fetch_refused(refusal.code, took);
                refusal.into_response()
            }
        }
    }

    /// Runs a change to its end, also if its caller goes away meanwhile.
    pub(super) async fn change<T, E>(
        &self,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, Refusal>
    where
        T: Send + 'static,
        E: Into<Refusal> + Send + 'static,
    {
        task::spawn_on(&self.0.changes, change).await.map_err(|_| Refusal::internal())?.map_err(Into::into)
    }

    pub(super) fn keeper(&self) -> Result<Arc<Keeper>, Refusal> {
        self.0.keeper.get().ok_or_else(|| Refusal::new(Code::Starting, "the vault is not open yet; try again soon"))
    }
}

/// Refuses a caller who may not operate on anything at all.
pub(super) fn reach_to_operate<'a>(reach: Reach<'a>, peer: &Peer) -> Result<Reach<'a>, Refusal> {
    if matches!(reach, Reach::None) {
        let detail = format!("user {} may not do this; that takes an [[access]] rule with role operate", peer.uid);
        return Err(Refusal::new(Code::Forbidden, detail));
    }
    Ok(reach)
}

const fn word(role: Role) -> &'static str {
    match role {
        Role::Fetch => "fetch",
        Role::Operate => "operate",
        Role::Admin => "admin",
    }
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let Ok(bytes) = serde_json::to_vec(body) else { return Refusal::internal().into_response() };
    let mut response = (status, Body::from(bytes)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
