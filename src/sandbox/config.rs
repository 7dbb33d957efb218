use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use url::Url;

use crate::model::{Secret, Usage};

/// How the stand-in issuer is set up: what the real one's portal calls the application's settings, and where to listen.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Where to listen; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// Listens on an address that others can reach. Everybody who reaches it controls it.
    pub allow_remote: bool,
    /// How long an access token lives, in whole seconds (the real one: at most an hour).
    pub access_token_lifetime: Duration,
    /// How long a new consent holds, from the moment it was given; `None`: it does not end by itself.
    pub consent_lifetime: Option<Duration>,
    /// A refresh token of a new consent that is not exchanged for longer ends; `None`: it does not.
    pub idle_lifetime: Option<Duration>,
    /// How long a spent one-time token of a new consent may be exchanged again, from its first exchange (the real
    /// one: 5 to 60 seconds, or zero).
    pub grace: Duration,
    /// What kind of refresh token a new consent gets.
    pub usage: Usage,
    /// The client that asks for consents.
    pub client_id: String,
    /// The client's secrets: any of them is right, as while one replaces another.
    pub client_secrets: Vec<Secret>,
    /// The personal integration's client id and secret.
    pub personal_client: (String, Secret),
    /// How clients reach it, if not at the address it listens on.
    pub public_url: Option<Url>,
    /// How long a call of a token endpoint takes: half on the way in, half on the way out.
    pub latency: Duration,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9480)),
            allow_remote: false,
            access_token_lifetime: Duration::from_hours(1),
            consent_lifetime: Some(Duration::from_hours(180 * 24)),
            idle_lifetime: None,
            grace: Duration::ZERO,
            usage: Usage::Reuse,
            client_id: "isv_sandbox".to_owned(),
            client_secrets: vec![Secret::new("sandbox-secret")],
            personal_client: ("personal_sandbox".to_owned(), Secret::new("personal-secret")),
            public_url: None,
            latency: Duration::ZERO,
        }
    }
}
