use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{judge::Judge, machine::Machine};
use crate::{
    model::{ClientCredentials, Credential, ExchangeOutcome, Secret, Timestamp},
    provider::{
        BoxFuture, Exchange, ProviderError, Redemption, TokenEndpoint,
        played::{self, Played},
    },
    sandbox::{Denied, Fault, FaultKind, Granted, Issuer, Request},
    vault::Fate,
};

/// How long the worker waits for an answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that a late answer takes, which still comes in time.
const LATE: Duration = Duration::from_secs(9);

/// What kind of day the issuer, or the way to it, has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Weather {
    /// A few exchanges in a thousand go wrong.
    Fair,
    /// Nothing goes wrong at all.
    Perfect,
    /// Nobody listens.
    Unreachable,
    /// 503, with `Retry-After` in seconds or as a date.
    Down,
    /// 500; every second exchange happens nevertheless.
    Broken,
    /// 429.
    Busy,
    /// Requests are taken and most are not answered; every second exchange happens.
    Silent,
    /// Our client is refused.
    ClientRefused,
    /// Every credential is refused, although each is good.
    AllRefused,
}

/// What becomes of one exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Course {
    Well,
    Late,
    NotSent,
    Unavailable,
    TooMany,
    ClientRefused,
    Refused,
    ServerError { processed: bool },
    NoAnswer { processed: bool },
    Reset { processed: bool },
    Garbage,
    WithoutRefreshToken,
    WithoutLifetime,
}

/// One provider as the keeper sees it: an issuer behind a network.
pub(super) struct Network {
    name: &'static str,
    issuer: Issuer,
    client: ClientCredentials,
    machine: Arc<Machine>,
    judge: Arc<Judge>,
    state: Mutex<State>,
}

struct State {
    weather: Weather,
    chance: fastrand::Rng,
    /// The secrets that are being exchanged.
    under_way: Vec<Secret>,
    /// Every authorization code that was ever sent.
    codes: Vec<Secret>,
}

impl Network {
    pub(super) fn new(
        name: &'static str,
        issuer: Issuer,
        client: ClientCredentials,
        machine: Arc<Machine>,
        judge: Arc<Judge>,
        seed: u64,
    ) -> Self {
        let chance = fastrand::Rng::with_seed(seed);
        let state = Mutex::new(State { weather: Weather::Fair, chance, under_way: Vec::new(), codes: Vec::new() });
        Self { name, issuer, client, machine, judge, state }
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    pub(super) const fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    pub(super) fn weather(&self) -> Weather {
        self.state().weather
    }

    /// A process has begun: nothing of it is under way.
    pub(super) fn begin(&self) {
        self.state().under_way.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait(&self, at_most: Duration) {
        let wait = at_most.mul_f64(self.state().chance.f64());
        tokio::time::sleep(wait).await;
    }

    async fn call(&self, credential: &Credential, request: &Request<'_>) -> ExchangeOutcome {
        const WAY: Duration = Duration::from_millis(60);
        self.wait(WAY).await;
        let course = self.state().course();
        if course == Course::NotSent {
            return self.told(Played::NotSent, credential);
        }
        let sent = self.machine.step();
        let lost = sent.is_err() && self.state().chance.bool();
        if sent.is_err() && lost {
            return std::future::pending().await;
        }
        let answered = course.processed().then(|| self.process(credential, request, course));
        if sent.is_err() {
            return std::future::pending().await;
        }
        self.wait(if course == Course::Late { LATE } else { WAY }).await;
        if matches!(course, Course::NoAnswer { .. }) {
            tokio::time::sleep(TIMEOUT).await;
        }
        if self.machine.step().is_err() {
            return std::future::pending().await;
        }
        let played = self.answer(course, answered);
        self.told(played, credential)
    }

    /// The exchange happens at the issuer.
    fn process(&self, credential: &Credential, request: &Request<'_>, course: Course) -> Result<Granted, Denied> {
        let fault = (course == Course::WithoutRefreshToken).then(|| Fault::once(FaultKind::OmitRefreshToken));
        let now = self.machine.truth();
        let result = self.issuer.exchange(now, &self.client, request, fault.as_ref());
        if let Some(entry) = self.issuer.last_entries(1).pop() {
            self.judge.exchanged(self, credential, &entry);
        }
        result
    }

    fn answer(&self, course: Course, answered: Option<Result<Granted, Denied>>) -> Played {
        let reply = |status, body: String| Played::Reply { status, retry_after: None, body: body.into_bytes() };
        let error = |code: &str| reply(400, serde_json::json!({ "error": code }).to_string());
        match course {
            Course::NotSent => Played::NotSent,
            Course::Unavailable | Course::TooMany => {
                let status = if course == Course::TooMany { 429 } else { 503 };
                Played::Reply { status, retry_after: self.retry_after(), body: Vec::new() }
            }
            Course::ClientRefused => error("invalid_client"),
            Course::Refused => error("invalid_grant"),
            Course::ServerError { .. } => reply(500, "<html>oops</html>".into()),
            Course::NoAnswer { .. } => Played::Timeout,
            Course::Reset { .. } => Played::Broken,
            Course::Well | Course::Late | Course::Garbage | Course::WithoutRefreshToken | Course::WithoutLifetime => {
                match answered {
                    Some(Ok(granted)) => reply(200, body_of(&granted, course)),
                    Some(Err(denied)) => error(denied.code()),
                    None => Played::Broken,
                }
            }
        }
    }

    /// Nothing, seconds, or a date.
    fn retry_after(&self) -> Option<String> {
        let (kind, seconds) = {
            let chance = &mut self.state().chance;
            (chance.u8(0..3), chance.u64(1..600))
        };
        match kind {
            0 => None,
            1 => Some(seconds.to_string()),
            _ => {
                let at = self.machine.truth() + Duration::from_secs(seconds);
                let at = Duration::from_millis(u64::try_from(at.as_millis()).unwrap_or(0));
                Some(httpdate::fmt_http_date(std::time::UNIX_EPOCH + at))
            }
        }
    }

    fn told(&self, played: Played, credential: &Credential) -> ExchangeOutcome {
        played::judge(played, credential, crate::clock::Clock::now(&*self.machine).wall)
    }
}

/// The body of a granted answer, as the course has it.
fn body_of(granted: &Granted, course: Course) -> String {
    let mut body = serde_json::json!({
        "access_token": granted.access_token.expose(),
        "token_type": "Bearer",
        "expires_in": granted.expires_in.as_secs(),
        "scope": granted.scope,
    });
    if let Some(token) = &granted.refresh_token {
        body["refresh_token"] = token.expose().into();
    }
    if course == Course::WithoutLifetime {
        body["expires_in"] = serde_json::Value::Null;
    }
    let mut text = body.to_string();
    if course == Course::Garbage {
        text.truncate(text.len() / 2);
    }
    text
}

impl Course {
    /// Whether the exchange happens at the issuer.
    const fn processed(self) -> bool {
        match self {
            Self::Well | Self::Late | Self::Garbage | Self::WithoutRefreshToken | Self::WithoutLifetime => true,
            Self::ServerError { processed } | Self::NoAnswer { processed } | Self::Reset { processed } => processed,
            Self::NotSent | Self::Unavailable | Self::TooMany | Self::ClientRefused | Self::Refused => false,
        }
    }
}

impl State {
    fn course(&mut self) -> Course {
        let processed = self.chance.bool();
        let luck = self.chance.u32(0..1000);
        match self.weather {
            Weather::Perfect => Course::Well,
            Weather::Unreachable => Course::NotSent,
            Weather::Down => Course::Unavailable,
            Weather::Busy if luck < 800 => Course::TooMany,
            Weather::Broken => Course::ServerError { processed },
            Weather::Silent if luck < 700 => Course::NoAnswer { processed },
            Weather::ClientRefused => Course::ClientRefused,
            Weather::AllRefused => Course::Refused,
            Weather::Fair | Weather::Busy | Weather::Silent => match luck {
                0 => Course::NoAnswer { processed },
                1 => Course::Reset { processed },
                2 => Course::ServerError { processed },
                3 => Course::Garbage,
                4 => Course::WithoutRefreshToken,
                5 => Course::WithoutLifetime,
                6 => Course::TooMany,
                7 => Course::Unavailable,
                8 => Course::NotSent,
                9..30 => Course::Late,
                _ => Course::Well,
            },
        }
    }
}

/// Takes a secret from those under way when its exchange ends.
struct UnderWay<'a>(&'a Network, Secret);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().under_way.retain(|other| !other.same_as(&self.1));
    }
}

impl TokenEndpoint for Network {
    fn exchange<'a>(&'a self, exchange: Exchange<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        Box::pin(async move {
            let secret = exchange.credential.secret();
            let twice = self.state().under_way.iter().any(|other| other.same_as(secret));
            if twice && !self.machine.is_dead() {
                self.judge.wrong("a credential was sent while an exchange of it was under way");
            }
            self.judge.asked(self.name);
            self.state().under_way.push(secret.clone());
            let _under_way = UnderWay(self, secret.clone());
            let request = match exchange.credential {
                Credential::RefreshToken(token) => Request::Refresh(token),
                Credential::ApiKey(key) => Request::ApiKey(key),
            };
            self.call(exchange.credential, &request).await
        })
    }

    fn redeem<'a>(&'a self, redemption: Redemption<'a>) -> BoxFuture<'a, ExchangeOutcome> {
        Box::pin(async move {
            let Redemption { code, verifier, redirect_uri } = redemption;
            if self.state().codes.iter().any(|sent| sent.same_as(code)) {
                self.judge.wrong("an authorization code was sent twice");
            }
            self.state().codes.push(code.clone());
            self.judge.asked(self.name);
            // Its answers are read as strictly as those to a refresh token, as by the real client.
            let credential = Credential::RefreshToken(code.clone());
            self.call(&credential, &Request::Code { code, redirect_uri, verifier: verifier.map(Secret::expose) }).await
        })
    }

    fn organizations<'a>(
        &'a self,
        access_token: &'a Secret,
    ) -> BoxFuture<'a, Result<Option<Vec<String>>, ProviderError>> {
        Box::pin(async move {
            self.wait(Duration::from_millis(50)).await;
            let unavailable =
                |detail: &str| ProviderError::Unavailable { provider: self.name.into(), detail: detail.into() };
            if self.machine.step().is_err() {
                return Err(unavailable("dead"));
            }
            if !matches!(self.weather(), Weather::Fair | Weather::Perfect | Weather::Busy) {
                return Err(unavailable("bad weather"));
            }
            let reach = self.issuer.reach(self.machine.truth(), access_token);
            reach.map(|reach| Some(reach.iter().map(ToString::to_string).collect())).ok_or_else(|| unavailable("401"))
        })
    }

    fn revoke<'a>(
        &'a self,
        refresh_token: &'a Secret,
        _: Option<&'a ClientCredentials>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            if self.machine.step().is_ok() {
                let _ = self.issuer.revoke(self.machine.truth(), &self.client, refresh_token);
            }
            Ok(())
        })
    }

    fn reachable(&self) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }
}

/// When an access token of the stand-in issuer's was given and when it ends, as the token itself says.
pub(super) fn life_of(access_token: &str) -> Option<(Timestamp, Timestamp)> {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let claims = BASE64_URL_SAFE_NO_PAD.decode(access_token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let at = |claim: &str| Some(Timestamp::from_millis(claims.get(claim)?.as_i64()? * 1000));
    Some((at("iat")?, at("exp")?))
}
