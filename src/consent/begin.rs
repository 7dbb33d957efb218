//! From the link to the issuer.

use axum::{http::header, response::Response};

use super::{
    Pages,
    answer::Asking,
    authorize::{self, Asked},
    cookie, date,
    flows::{Going, random},
    language,
    page::{Form, Page, Part, see_other},
    texts::{self, Subject},
    trouble::Trouble,
};
use crate::{
    config::{Kind, ProviderConfig},
    keeper::ConsentRequest,
    links::Invitation,
    metrics::Flow,
    model::Secret,
};

/// The form's field that asks the issuer to let another user sign in.
pub(super) const ANOTHER_USER: (&str, &str) = ("as", "another");
/// The label by which people know an organization.
const NAME_LABEL: &str = "name";

/// The page of a link: who asks for what.
pub(super) async fn page(pages: &Pages, asking: &Asking, token: &str) -> Result<Response, Trouble> {
    let (request, subject) = match invited(pages, asking, token).await {
        Ok((_, request, subject)) => (request, subject),
        Err(trouble) => return Ok(asking.show(asking.trouble(trouble, None, None))),
    };
    let (language, offer) = (asking.language, &asking.offer);
    let ends = request.expires_at.map(|at| (date::day(at, &offer.time_zone, language), at <= asking.now.wall));
    let (title, said) = texts::invitation(language, &subject, request.renewal, ends);
    let form = Form {
        action: asking.start_path(token),
        button: texts::go_on(language, &subject.issuer),
        field: None,
        origin: offer.local_origins(),
    };
    let mut parts: Vec<Part> = said.into_iter().map(Part::Text).collect();
    parts.insert(1, facts(asking, &request, &subject));
    parts.push(Part::Form(form));
    let status = axum::http::StatusCode::OK;
    Ok(asking.show(Page { language, word: "invitation", status, title, parts, looks_again: false }))
}

fn facts(asking: &Asking, request: &ConsentRequest, subject: &Subject) -> Part {
    let (language, labels) = (asking.language, texts::labels(asking.language));
    let organizations: Vec<String> =
        std::iter::once(subject.organization.clone()).chain(request.also.iter().map(ToString::to_string)).collect();
    let provider = asking.offer.providers.get(&request.provider);
    let lifetime = provider.and_then(|provider| provider.config().consent_lifetime);
    let until = lifetime.map(|lifetime| date::day(asking.now.wall + lifetime, &asking.offer.time_zone, language));
    let mut facts = vec![
        (labels.asker, vec![subject.asker.clone()]),
        (if organizations.len() == 1 { labels.organization } else { labels.organizations }, organizations),
        (labels.issuer, vec![subject.issuer.clone()]),
    ];
    if !request.scopes.is_empty() {
        facts.push((labels.scopes, request.scopes.iter().map(|scope| texts::scope(language, scope)).collect()));
    }
    facts.push((labels.until, vec![until.unwrap_or_else(|| labels.withdrawn.to_owned())]));
    Part::Facts(facts)
}

/// The button of that page: begins a flow, and sends the person to the issuer.
pub(super) async fn start(pages: &Pages, asking: &Asking, token: &str, form: &[u8]) -> Result<Response, Trouble> {
    if !is_own(asking) {
        return Err(Trouble::Foreign);
    }
    let (invitation, _, subject) = match invited(pages, asking, token).await {
        Ok(invited) => invited,
        Err(trouble) => return Ok(asking.show(asking.trouble(trouble, None, None))),
    };
    let provider = asking.offer.providers.get(&invitation.provider).ok_or(Trouble::NotOffered)?;
    let endpoint = match provider.authorize_endpoint().await {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let name = invitation.provider.as_str();
            tracing::warn!(provider.name = name, %error, "nobody can be sent to the issuer to give consent");
            return Ok(asking.show(asking.trouble(Trouble::Unavailable, Some(&subject), None)));
        }
    };
    let is_https = asking.offer.is_https();
    let (redirect_uri, verifier) =
        (asking.offer.redirect_uri(&invitation.provider), provider.config().pkce.then(|| Secret::new(random())));
    let provider_name = invitation.provider.clone();
    let going = Going {
        invitation,
        verifier: verifier.clone(),
        redirect_uri: redirect_uri.clone(),
        issuer: endpoint.issuer,
        sends_issuer: endpoint.sends_issuer,
        subject,
    };
    let begun = pages.0.flows.begin(cookie::read(&asking.headers, is_https), token, going, asking.now.boot);
    pages.0.metrics.flow(&provider_name, Flow::Begun);
    let locale = language::for_issuer(&asking.headers);
    let asked = Asked {
        redirect_uri: &redirect_uri,
        state: &begun.state,
        verifier: verifier.as_ref(),
        is_https,
        locale: locale.as_deref(),
        another_user: url::form_urlencoded::parse(form).any(|(key, value)| (&*key, &*value) == ANOTHER_USER),
    };
    let mut response = see_other(authorize::url(&endpoint.url, provider.config(), &asked).as_str(), is_https);
    response.headers_mut().insert(header::SET_COOKIE, cookie::set(&begun.session, is_https));
    Ok(response)
}

/// Whether the button of our own page was pressed, as far as the browser tells (Fetch Metadata). A page of another site
/// could otherwise send somebody on to the issuer in a single click that was meant for something else.
fn is_own(asking: &Asking) -> bool {
    asking.headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin" || site == "none")
}

/// What the link asks for, if it is still good.
async fn invited(
    pages: &Pages,
    asking: &Asking,
    token: &str,
) -> Result<(Invitation, ConsentRequest, Subject), Trouble> {
    let invitation = asking.offer.links.open(token, asking.now.wall)?;
    let keeper = pages.0.keeper.get().ok_or(Trouble::Starting)?;
    let request = keeper.begin_consent(&invitation).await.map_err(|error| Trouble::from(&error))?;
    let provider = asking.offer.providers.get(&invitation.provider).ok_or(Trouble::NotOffered)?;
    let name = request.labels.get(NAME_LABEL).filter(|name| !name.trim().is_empty());
    let subject = Subject {
        asker: asking.offer.name.clone(),
        id: request.organization.clone(),
        organization: name.cloned().unwrap_or_else(|| request.organization.to_string()),
        issuer: issuer_name(provider.config()),
        token: token.to_owned(),
    };
    Ok((invitation, request, subject))
}

/// What people call the issuer: by its kind, else by its host, else as the operator named it.
fn issuer_name(provider: &ProviderConfig) -> String {
    // Where the person will be, before where the worker asks: both may be one issuer by two names.
    let url = provider.authorize_url.as_ref().or(provider.issuer.as_ref());
    match (provider.kind, url.and_then(|url| url.host_str())) {
        (Kind::VismaConnect, _) => "Visma Connect".to_owned(),
        (_, Some(host)) => host.to_owned(),
        _ => provider.name.to_string(),
    }
}
