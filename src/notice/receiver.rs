//! Receivers as they are configured, each with its signing secrets.

use std::path::PathBuf;

use reqwest::Client;
use ring::digest;
use url::Url;

use super::{post, signature};
use crate::{
    clock::SharedClock,
    config::WebhookConfig,
    model::ReceiverId,
    provider::is_safe_endpoint,
    secret_file::{self, FileMode, SecretFile, SecretFileProblem},
};

/// Every configured receiver, and what they are reached by.
#[derive(Debug)]
pub struct Receivers {
    pub(super) client: Client,
    pub(super) all: Vec<Receiver>,
}

/// Whom events are posted to.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) id: ReceiverId,
    /// Its host and port, for the log: path and query of a webhook's URL may be as good as a password.
    pub(super) name: String,
    pub(super) url: Url,
    pub(super) secrets: SecretFile,
    /// Types of events, `*` allowed at the end.
    pub(super) events: Vec<String>,
}

/// Why a receiver cannot be used; each is the configuration's fault.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverProblem {
    /// The file with the signing secrets cannot be used.
    #[error("webhook {receiver}: secret_file {}: {problem}", path.display())]
    SecretFile {
        /// The receiver's host.
        receiver: String,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: SecretFileProblem,
    },
    /// An address to which nothing may be sent.
    #[error("webhook {receiver}: its url must be https, or plain http to this machine, without user name and password")]
    UnsafeUrl {
        /// The receiver's host.
        receiver: String,
    },
    /// No receiver can be reached.
    #[error("the HTTPS client for webhooks cannot be made: {0}")]
    NoClient(String),
}

impl Receivers {
    /// Reads every signing secret; whatever is wrong is told before anything is sent.
    pub fn open(configs: &[WebhookConfig], clock: &SharedClock) -> Result<Self, ReceiverProblem> {
        let client = post::client().map_err(ReceiverProblem::NoClient)?;
        let all = configs.iter().map(|config| Receiver::open(config, clock)).collect::<Result<_, _>>()?;
        Ok(Self { client, all })
    }
}

impl Receiver {
    fn open(config: &WebhookConfig, clock: &SharedClock) -> Result<Self, ReceiverProblem> {
        let name = name(&config.url);
        // The configuration has seen to it; but what is sent here holds links that renew consents.
        if !is_safe_endpoint(&config.url) {
            return Err(ReceiverProblem::UnsafeUrl { receiver: name });
        }
        let secrets = SecretFile::open(&config.secret_file, &signature::RULES, &name, clock.clone());
        match secrets {
            Ok(secrets) => {
                let (url, events) = (config.url.clone(), config.events.clone());
                Ok(Self { id: id(&config.url), name, url, secrets, events })
            }
            Err(problem) => {
                Err(ReceiverProblem::SecretFile { receiver: name, path: config.secret_file.clone(), problem })
            }
        }
    }
}

/// Whether the signing secrets of a receiver can be used, for the check of a configuration.
pub fn check_secret_file(config: &WebhookConfig) -> Result<FileMode, SecretFileProblem> {
    secret_file::check(&config.secret_file, &signature::RULES)
}

/// A webhook's host, and its port where it is not the usual one: as much of its URL as may be shown.
pub fn name(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What a receiver is known by across restarts: its URL.
fn id(url: &Url) -> ReceiverId {
    let hash = digest::digest(&digest::SHA256, url.as_str().as_bytes());
    let first = hash.as_ref().first_chunk().copied().unwrap_or_default();
    ReceiverId(u64::from_be_bytes(first))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{clock::ManualClock, model::Timestamp};

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn a_receiver_is_shown_by_its_host_alone_and_known_by_its_whole_url() {
        let one = url("https://hooks.example.com/T0/hush-token?key=hush");
        assert_eq!(name(&one), "hooks.example.com");
        assert_eq!(name(&url("http://127.0.0.1:8080/x")), "127.0.0.1:8080");
        assert_eq!(id(&one), id(&one.clone()));
        assert_ne!(id(&one), id(&url("https://hooks.example.com/T1/hush-token?key=hush")));
    }

    #[test]
    fn a_bad_secret_file_is_named_and_nothing_of_the_url_but_its_host() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret_file = folder.path().join("webhook.key");
        fs::write(&secret_file, "whsec_dG9vIHNob3J0").expect("written");
        let config = WebhookConfig {
            url: url("https://hooks.example.com/hush"),
            secret_file: secret_file.clone(),
            events: vec!["*".into()],
        };
        let clock: SharedClock = ManualClock::at(Timestamp::default());
        let problem = Receivers::open(&[config], &clock).expect_err("too short").to_string();
        let expected =
            format!("webhook hooks.example.com: secret_file {}: secret 1 in it is too short", secret_file.display());
        assert!(problem.starts_with(&expected), "{problem}");
        assert!(!problem.contains("hush") && !problem.contains("dG9v"), "{problem}");
    }
}
