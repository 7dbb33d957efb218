//! A real authorization server that nobody here wrote: `tests/peers/oidc/server.mjs`, in a process of its own for each
//! test, so that what its judge counts is that test's alone.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{digest, rand};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{
    http::{self, Response},
    node::Node,
};

/// A native client may come back on any port of the loopback address; nobody ever connects to this one.
const REDIRECT_URI: &str = "http://127.0.0.1:9/cb";
/// A login takes seven steps; more than this is a loop.
const MAX_STEPS: usize = 20;

/// A client that the server knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    /// Its id.
    pub(crate) id: &'static str,
    /// Its secret, a marker that must show up in no log.
    pub(crate) secret: &'static str,
}

/// Gets one-time refresh tokens; a spent one kills the whole grant.
pub(crate) const ONE_TIME: Client = Client { id: "isv_one_time", secret: "hush-one-time-secret" };
/// Gets refresh tokens that outlive an exchange.
pub(crate) const REUSE: Client = Client { id: "isv_reuse", secret: "hush-reuse-secret" };
/// Exchanges API keys (`KEY-org-…`) by the password grant.
pub(crate) const PERSONAL: Client = Client { id: "personal", secret: "hush-personal-secret" };

/// The server's own account of what happened.
#[derive(Debug, Deserialize)]
pub(crate) struct Judge {
    /// By grant type, how many token requests ended in `ok` or in which OAuth error.
    pub(crate) exchanges: BTreeMap<String, BTreeMap<String, u64>>,
    /// How often a one-time refresh token was sent again after it had been granted an answer.
    pub(crate) replays: u64,
    /// How many grants the server revoked.
    pub(crate) revoked_grants: u64,
    /// The most token requests that were under way at once.
    pub(crate) most_at_once: u64,
}

impl Judge {
    /// How many exchanges of this grant type were granted.
    pub(crate) fn granted(&self, grant_type: &str) -> u64 {
        self.exchanges.get(grant_type).and_then(|results| results.get("ok")).copied().unwrap_or(0)
    }

    /// How many exchanges of this grant type ended in anything else.
    pub(crate) fn refused(&self, grant_type: &str) -> u64 {
        let all: u64 = self.exchanges.get(grant_type).into_iter().flat_map(BTreeMap::values).sum();
        all - self.granted(grant_type)
    }
}

/// The running server; ends when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    node: Node,
}

impl Peer {
    /// Starts it with access tokens that live for `access_token_seconds`.
    pub(crate) fn start(access_token_seconds: u32) -> Self {
        Self::start_for(access_token_seconds, &[])
    }

    /// As [`start`](Self::start), with consents that may come back to these redirect URIs too.
    pub(crate) fn start_for(access_token_seconds: u32, redirect_uris: &[&str]) -> Self {
        let node = Node::start("oidc", |command| {
            command
                .args(["server.mjs", "0"])
                .env("ACCESS_TOKEN_SECONDS", access_token_seconds.to_string())
                .env("REDIRECT_URIS", redirect_uris.join(" "))
                .env_remove("ROTATE")
                .env_remove("TOKEN_DELAY_MS")
                .stderr(Stdio::null())
        });
        Self { node }
    }

    /// Its issuer URL, below which discovery is found.
    pub(crate) fn issuer(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> &str {
        self.node.address()
    }

    /// What has happened so far.
    pub(crate) fn judge(&self) -> Judge {
        serde_json::from_value(self.get("/judge", &[]).json()).expect("the judge speaks as we do")
    }

    /// Lets the token endpoint hold each finished answer back from now on.
    pub(crate) fn delay_answers(&self, delay: Duration) {
        let body = json!({ "delay_ms": u64::try_from(delay.as_millis()).expect("a short delay") }).to_string();
        assert_eq!(http::over_tcp(self.address(), "POST", "/judge", &[], &body).status, 200);
    }

    /// Whether the API would take this access token now.
    pub(crate) fn is_alive(&self, access_token: &str) -> bool {
        let bearer = format!("Bearer {access_token}");
        match self.get("/v1/me", &[("authorization", &bearer)]).status {
            200 => true,
            401 => false,
            other => panic!("unexpected status {other}"),
        }
    }

    /// Logs `user` in, approves what `client` asks for, and gives the refresh token: the authorization code flow with
    /// PKCE, as a browser would walk it.
    pub(crate) fn consent(&self, client: Client, user: &str) -> String {
        let verifier = random_text();
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()));
        let state = random_text();
        let query = http::form(&[
            ("client_id", client.id),
            ("response_type", "code"),
            ("redirect_uri", REDIRECT_URI),
            ("scope", "dineropublicapi:read dineropublicapi:write offline_access"),
            ("prompt", "consent"),
            ("state", &state),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]);

        let back = Browser::new(&self.issuer()).approve(&format!("{}/auth?{query}", self.issuer()), user);
        let answer: BTreeMap<String, String> = back.query_pairs().into_owned().collect();
        assert_eq!(answer.get("state"), Some(&state), "{back}");
        let code = answer.get("code").unwrap_or_else(|| panic!("no code in {back}"));

        let granted = self.token_request(
            client,
            &[
                ("grant_type", "authorization_code"),
                ("code", code),
                ("redirect_uri", REDIRECT_URI),
                ("code_verifier", &verifier),
            ],
        );
        assert_eq!(granted.status, 200, "{granted:?}");
        granted.json()["refresh_token"].as_str().expect("offline_access was asked for").to_owned()
    }

    /// Exchanges a refresh token past the worker, as a thief or a second program would.
    pub(crate) fn exchange(&self, client: Client, refresh_token: &str) -> Response {
        self.token_request(client, &[("grant_type", "refresh_token"), ("refresh_token", refresh_token)])
    }

    fn token_request(&self, client: Client, fields: &[(&str, &str)]) -> Response {
        let mut fields = fields.to_vec();
        fields.extend([("client_id", client.id), ("client_secret", client.secret)]);
        http::over_tcp(self.address(), "POST", "/token", &[FORM], &http::form(&fields))
    }

    fn get(&self, path: &str, headers: http::Headers<'_>) -> Response {
        http::over_tcp(self.address(), "GET", path, headers, "")
    }
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// 43 characters that nobody can guess: what PKCE asks of a verifier (RFC 7636 section 4.1).
fn random_text() -> String {
    let bytes: [u8; 32] = rand::generate(&rand::SystemRandom::new()).expect("the system has randomness").expose();
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A person at a browser: follows redirects, keeps cookies, fills in the two forms.
struct Browser {
    server: Url,
    cookies: Vec<Cookie>,
}

struct Cookie {
    name: String,
    value: String,
    path: String,
}

impl Browser {
    fn new(server: &str) -> Self {
        Self { server: Url::parse(server).expect("an issuer is a URL"), cookies: Vec::new() }
    }

    /// From the authorize URL to the redirect back to the client, which is returned and not followed.
    fn approve(&mut self, authorize_url: &str, user: &str) -> Url {
        let mut url = Url::parse(authorize_url).expect("an authorize URL is a URL");
        let mut response = self.send("GET", &url, "");
        for _ in 0..MAX_STEPS {
            if let Some(location) = response.header("location") {
                url = url.join(location).expect("a location is a URL");
                if url.as_str().starts_with(REDIRECT_URI) {
                    return url;
                }
                response = self.send("GET", &url, "");
                continue;
            }
            assert_eq!(response.status, 200, "at {url}: {response:?}");
            let page = &response.body;
            let prompt = between(page, "name=\"prompt\" value=\"", "\"");
            let form = http::form(&[("prompt", prompt), ("login", user), ("password", "anything")]);
            url = url.join(between(page, "action=\"", "\"")).expect("a form's action is a URL");
            response = self.send("POST", &url, &form);
        }
        panic!("no way back to the client after {MAX_STEPS} steps, last at {url}");
    }

    fn send(&mut self, method: &str, url: &Url, body: &str) -> Response {
        assert_eq!(url.origin(), self.server.origin(), "a browser of the tests stays at the server");
        let cookies: Vec<String> = self
            .cookies
            .iter()
            .filter(|cookie| url.path().starts_with(&cookie.path))
            .map(|cookie| format!("{}={}", cookie.name, cookie.value))
            .collect();
        let address = format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or_default());
        let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let mut headers = vec![("accept", "text/html")];
        let cookies = cookies.join("; ");
        if !cookies.is_empty() {
            headers.push(("cookie", &cookies));
        }
        if method == "POST" {
            headers.push(FORM);
        }
        let response = http::over_tcp(&address, method, &target, &headers, body);
        for line in response.headers("set-cookie") {
            self.keep(line);
        }
        response
    }

    /// Takes one `Set-Cookie` (RFC 6265 section 5.3) in; an empty value is how the server takes one back.
    fn keep(&mut self, line: &str) {
        let mut parts = line.split(';').map(str::trim);
        let (name, value) = parts.next().and_then(|pair| pair.split_once('=')).expect("a cookie has a name");
        let path = parts.find_map(|part| part.strip_prefix("path=")).unwrap_or("/");
        self.cookies.retain(|cookie| cookie.name != name || cookie.path != path);
        if !value.is_empty() {
            self.cookies.push(Cookie { name: name.to_owned(), value: value.to_owned(), path: path.to_owned() });
        }
    }
}

fn between<'a>(page: &'a str, before: &str, after: &str) -> &'a str {
    page.split_once(before)
        .and_then(|(_, rest)| rest.split_once(after))
        .unwrap_or_else(|| panic!("no {before} in {page}"))
        .0
}
