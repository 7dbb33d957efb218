//! Who may look at the board.
//!
//! With a token file, whoever has logged in with one of its tokens: the browser then holds a random session id in a cookie, never
//! the token. Without one, whoever is on this machine; that a request comes from it is not enough, since a browser here may
//! be led to this listener by a name of somebody else's (DNS rebinding), and a proxy here may bring the whole world.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, header, uri::Authority};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use tokio::io::AsyncReadExt as _;

use crate::{clock::SharedClock, model::Secret};

/// The session's cookie.
pub(super) const COOKIE: &str = "consentry_board";
/// How long a session lasts: a working day.
pub(super) const SESSION_LIFE: Duration = Duration::from_hours(12);
/// Sessions at once; the oldest goes when another begins.
const MAX_SESSIONS: usize = 256;
/// The shortest token, in bytes.
const MIN_TOKEN: usize = 16;
/// The largest token file, in bytes.
const MAX_TOKEN_FILE: u64 = 4096;
/// Wrong tokens in a row that an address may give without a pause.
const FREE_FAILURES: u32 = 5;
/// The pause after those, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Wrong tokens are forgotten after so long.
const FORGET_FAILURES: Duration = Duration::from_hours(1);
/// Addresses whose wrong tokens are remembered; the one that failed longest ago is forgotten for another.
const MAX_FAILING: usize = 1024;
/// What a proxy adds to a request that it hands on.
const SIGNS_OF_A_PROXY: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// The door. Its state is in memory: a restart ends every session.
pub(super) struct Door {
    token_file: Option<PathBuf>,
    clock: SharedClock,
    random: SystemRandom,
    /// Random, so that what is compared is never a token or session id itself.
    key: hmac::Key,
    sessions: Mutex<VecDeque<Session>>,
    failures: Mutex<HashMap<IpAddr, Failures>>,
}

struct Session {
    /// A hash of its id.
    id: hmac::Tag,
    /// A hash of the token that it began with: it ends when the file no longer holds that.
    token: hmac::Tag,
    /// On the boot-time clock.
    until: Duration,
}

/// Wrong tokens from one address.
#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    /// The last one, on the boot-time clock.
    at: Duration,
}

/// Somebody who was let in.
#[derive(Debug)]
pub(super) struct Visit {
    /// What every form has to send along, so that it is known to be of one of our pages.
    pub(super) form: String,
    /// Whether there is a session that can be ended.
    pub(super) can_leave: bool,
}

/// Why somebody was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// No session, or one that has ended.
    #[error("nobody is logged in")]
    LogIn,
    /// Nobody has to log in, and this was not asked for by a name of this machine.
    #[error("without http.board.token_file the board is shown to browsers of this machine alone, at http://localhost")]
    OtherHost,
    /// Nobody has to log in, and this came through a proxy.
    #[error("without http.board.token_file the board is not shown through a proxy: give it a token, and log in")]
    Proxy,
    /// The tokens cannot be read.
    #[error("the board's token file cannot be used")]
    Tokens(#[from] TokenFileError),
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    /// It is none of the tokens.
    #[error("that is not the token; it is in the file that http.board.token_file names")]
    Wrong,
    /// Too many were wrong.
    #[error("too many wrong tokens came from your address; try again in {} s", .0.as_secs().max(1))]
    Wait(Duration),
    /// The tokens cannot be read.
    #[error("the board's token file cannot be used")]
    Tokens(#[from] TokenFileError),
    /// No randomness is to be had.
    #[error("this machine gives no random numbers")]
    NoChance,
}

/// Why the token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("http.board.token_file {} cannot be read: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it will not do.
    #[error(
        "http.board.token_file {} needs a token of at least {MIN_TOKEN} characters, one a line, as `openssl rand -hex 32` makes it",
        file.display()
    )]
    Unfit {
        /// The file.
        file: PathBuf,
    },
}

impl Door {
    /// `None` where this machine gives no random numbers.
    pub(super) fn new(token_file: Option<PathBuf>, clock: SharedClock) -> Option<Self> {
        let random = SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).ok()?;
        let (sessions, failures) = (Mutex::default(), Mutex::default());
        Some(Self { token_file, clock, random, key, sessions, failures })
    }

    /// Whether whoever sent these headers may look.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<Visit, Refused> {
        if self.token_file.is_none() {
            if SIGNS_OF_A_PROXY.iter().any(|sign| headers.contains_key(*sign)) {
                return Err(Refused::Proxy);
            }
            return if is_for_loopback(headers) { Ok(self.visit("", false)) } else { Err(Refused::OtherHost) };
        }
        let tokens = self.tokens().await?;
        let cookie = cookie(headers).ok_or(Refused::LogIn)?;
        let now = self.clock.now().boot;
        let mut sessions = self.sessions();
        sessions.retain(|session| session.until > now);
        let known = sessions.iter().find(|session| self.is(cookie, session.id)).ok_or(Refused::LogIn)?;
        if !tokens.iter().any(|token| self.is(token.expose(), known.token)) {
            return Err(Refused::LogIn);
        }
        Ok(self.visit(cookie, true))
    }

    /// Begins a session for who knows a token; gives its id.
    pub(super) async fn log_in(&self, token: &Secret, from: IpAddr) -> Result<String, LoginError> {
        let from = neighbourhood(from);
        let now = self.clock.now().boot;
        if let Some(wait) = self.wait(from, now) {
            return Err(LoginError::Wait(wait));
        }
        let given = self.hash(token.expose());
        // Each is compared, and each in constant time.
        let tokens = self.tokens().await?;
        if tokens.iter().filter(|known| self.is(known.expose(), given)).count() == 0 {
            self.failed(from, now);
            return Err(LoginError::Wrong);
        }
        self.failures().remove(&from);
        let mut id = [0; 32];
        self.random.fill(&mut id).map_err(|_| LoginError::NoChance)?;
        let id = BASE64_URL_SAFE_NO_PAD.encode(id);
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back(Session { id: self.hash(&id), token: given, until: now + SESSION_LIFE });
        Ok(id)
    }

    /// Ends the session of whoever sent these headers.
    pub(super) fn log_out(&self, headers: &HeaderMap) {
        if let Some(cookie) = cookie(headers) {
            self.sessions().retain(|session| !self.is(cookie, session.id));
        }
    }

    /// The tokens as the file holds them now.
    pub(super) async fn tokens(&self) -> Result<Vec<Secret>, TokenFileError> {
        let Some(file) = &self.token_file else { return Ok(Vec::new()) };
        let unreadable = |source| TokenFileError::Unreadable { file: file.clone(), source };
        let mut text = String::new();
        let opened = tokio::fs::File::open(file).await.map_err(unreadable)?;
        opened.take(MAX_TOKEN_FILE).read_to_string(&mut text).await.map_err(unreadable)?;
        let text = Secret::new(text);
        let lines = text.expose().lines().map(str::trim).filter(|line| !line.is_empty());
        let tokens: Vec<Secret> = lines.map(Secret::new).collect();
        if tokens.is_empty() || tokens.iter().any(|token| token.expose().len() < MIN_TOKEN) {
            return Err(TokenFileError::Unfit { file: file.clone() });
        }
        Ok(tokens)
    }

    fn visit(&self, session: &str, can_leave: bool) -> Visit {
        let form = self.hash(&format!("a form of {session}"));
        Visit { form: BASE64_URL_SAFE_NO_PAD.encode(form), can_leave }
    }

    /// How long an address has to wait after its wrong tokens.
    fn wait(&self, from: IpAddr, now: Duration) -> Option<Duration> {
        let mut failures = self.failures();
        failures.retain(|_, failures| now.saturating_sub(failures.at) < FORGET_FAILURES);
        let Failures { count, at } = *failures.get(&from)?;
        let beyond = count.checked_sub(FREE_FAILURES)?;
        let pause = (FIRST_PAUSE * 2_u32.saturating_pow(beyond.min(16))).min(LONGEST_PAUSE);
        Some((at + pause).saturating_sub(now)).filter(|wait| !wait.is_zero())
    }

    fn failed(&self, from: IpAddr, now: Duration) {
        let mut failures = self.failures();
        if failures.len() >= MAX_FAILING && !failures.contains_key(&from) {
            let oldest = failures.iter().min_by_key(|(_, failures)| failures.at).map(|(address, _)| *address);
            oldest.map(|address| failures.remove(&address));
        }
        let known = failures.entry(from).or_insert(Failures { count: 0, at: now });
        *known = Failures { count: known.count.saturating_add(1), at: now };
    }

    fn hash(&self, text: &str) -> hmac::Tag {
        hmac::sign(&self.key, text.as_bytes())
    }

    /// Whether `text` is what was hashed, found out in constant time.
    fn is(&self, text: &str, hash: hmac::Tag) -> bool {
        hmac::verify(&self.key, text.as_bytes(), hash.as_ref()).is_ok()
    }

    fn sessions(&self) -> MutexGuard<'_, VecDeque<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<IpAddr, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("token_file", &self.token_file).finish_non_exhaustive()
    }
}

/// What counts as one address: whoever has one of IPv6 has all of its network.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            address.to_ipv4_mapped().map_or(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(), IpAddr::V4)
        }
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// Whether the one `Host` is a name of this machine that nobody else can give out.
pub(super) fn is_for_loopback(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str().unwrap_or_default().parse::<Authority>() else { return false };
    let host = host.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Whether the browser says that a page from elsewhere sent this. `Sec-Fetch-Site` is believed first: it stays true behind a
/// proxy that changes the host. A browser that says nothing, or `null`, is not caught here: the form's own word then decides.
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return site != "same-origin";
    }
    match text("origin") {
        None | Some("null") => false,
        Some(origin) => origin.split_once("://").map(|(_, host)| host) != text("host"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::HeaderValue;

    use super::*;
    use crate::{clock::ManualClock, model::Timestamp};

    const TOKEN: &str = "0123456789abcdef";
    const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    struct Stage {
        folder: tempfile::TempDir,
        clock: Arc<ManualClock>,
        door: Door,
    }

    impl Stage {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let clock = ManualClock::at(Timestamp::from_millis(1));
            let door = Door::new(Some(folder.path().join("token")), clock.clone()).expect("chance");
            let stage = Self { folder, clock, door };
            stage.write(TOKEN);
            stage
        }

        fn write(&self, tokens: &str) {
            std::fs::write(self.folder.path().join("token"), tokens).expect("the folder is ours");
        }

        async fn log_in(&self, token: &str) -> Result<HeaderMap, LoginError> {
            let id = self.door.log_in(&Secret::new(token), HERE).await?;
            Ok(headers(&[("cookie", &format!("a=b; {COOKIE}={id}"))]))
        }
    }

    #[tokio::test]
    async fn a_session_lasts_until_it_is_ended_or_grows_old_or_its_token_is_replaced() {
        let stage = Stage::new();
        assert!(matches!(stage.door.admit(&HeaderMap::new()).await, Err(Refused::LogIn)));
        let session = stage.log_in(TOKEN).await.expect("the token");
        let visit = stage.door.admit(&session).await.expect("logged in");
        assert!(visit.can_leave);
        let other = stage.log_in(TOKEN).await.expect("the token");
        assert_ne!(visit.form, stage.door.admit(&other).await.expect("logged in").form, "forms are of one session");

        stage.door.log_out(&other);
        assert!(matches!(stage.door.admit(&other).await, Err(Refused::LogIn)));
        stage.write("the-next-token-of-all\n0123456789abcdef\n");
        assert!(stage.door.admit(&session).await.is_ok(), "while one is replaced, both are good");
        stage.write("the-next-token-of-all");
        assert!(matches!(stage.door.admit(&session).await, Err(Refused::LogIn)));
        let session = stage.log_in("the-next-token-of-all").await.expect("the new token");
        stage.clock.advance(SESSION_LIFE);
        assert!(matches!(stage.door.admit(&session).await, Err(Refused::LogIn)));
    }

    #[tokio::test]
    async fn nobody_gets_in_by_a_file_that_is_not_there_or_holds_no_token_to_speak_of() {
        let stage = Stage::new();
        for tokens in ["", "\n \n", "short", "0123456789abcdef\nshort"] {
            stage.write(tokens);
            assert!(matches!(stage.log_in(tokens).await, Err(LoginError::Tokens(TokenFileError::Unfit { .. }))));
        }
        std::fs::remove_file(stage.folder.path().join("token")).expect("the folder is ours");
        assert!(matches!(stage.log_in("").await, Err(LoginError::Tokens(TokenFileError::Unreadable { .. }))));
    }

    #[tokio::test]
    async fn an_address_that_guesses_waits_ever_longer_and_no_other_does() {
        let stage = Stage::new();
        for _ in 0..FREE_FAILURES {
            assert!(matches!(stage.log_in("wrong").await, Err(LoginError::Wrong)));
        }
        assert!(matches!(stage.log_in(TOKEN).await, Err(LoginError::Wait(wait)) if wait == FIRST_PAUSE));
        let elsewhere = IpAddr::from([192, 0, 2, 1]);
        assert!(stage.door.log_in(&Secret::new(TOKEN), elsewhere).await.is_ok());
        stage.clock.advance(FIRST_PAUSE);
        assert!(matches!(stage.log_in("wrong").await, Err(LoginError::Wrong)));
        assert!(matches!(stage.log_in(TOKEN).await, Err(LoginError::Wait(wait)) if wait == FIRST_PAUSE * 2));
        stage.clock.advance(FIRST_PAUSE * 2);
        assert!(stage.log_in(TOKEN).await.is_ok());
        assert!(matches!(stage.log_in("wrong").await, Err(LoginError::Wrong)), "a good one begins anew");
    }

    #[tokio::test]
    async fn without_a_token_only_names_of_this_machine_are_answered_and_no_proxy_is() {
        let clock = ManualClock::at(Timestamp::from_millis(1));
        let door = Door::new(None, clock).expect("chance");
        for good in ["localhost", "LocalHost:9464", "127.0.0.1:9464", "127.8.9.1", "[::1]:80", "[::1]"] {
            assert!(door.admit(&headers(&[("host", good)])).await.is_ok(), "{good}");
        }
        for bad in
            ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1", "[::2]", "a b"]
        {
            let refused = door.admit(&headers(&[("host", bad)])).await;
            assert!(matches!(refused, Err(Refused::OtherHost)), "{bad}");
        }
        assert!(matches!(door.admit(&HeaderMap::new()).await, Err(Refused::OtherHost)));
        let mut two = headers(&[("host", "localhost")]);
        two.append("host", HeaderValue::from_static("evil.example"));
        assert!(matches!(door.admit(&two).await, Err(Refused::OtherHost)));
        let proxied = headers(&[("host", "localhost"), ("x-forwarded-for", "192.0.2.1")]);
        assert!(matches!(door.admit(&proxied).await, Err(Refused::Proxy)));
    }

    #[test]
    fn a_form_from_another_site_is_known_by_what_the_browser_says() {
        for (pairs, elsewhere) in [
            (&[][..], false),
            (&[("origin", "null"), ("host", "a")], false),
            (&[("origin", "http://a:1"), ("host", "a:1")], false),
            (&[("origin", "http://a:2"), ("host", "a:1")], true),
            (&[("origin", "https://evil.example"), ("host", "a")], true),
            (&[("origin", "https://public"), ("host", "behind"), ("sec-fetch-site", "same-origin")], false),
            (&[("origin", "null"), ("host", "a"), ("sec-fetch-site", "cross-site")], true),
            (&[("host", "a"), ("sec-fetch-site", "same-site")], true),
        ] {
            assert_eq!(is_from_elsewhere(&headers(pairs)), elsewhere, "{pairs:?}");
        }
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let of = |text: &str| neighbourhood(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
