mod fuzz;

use crate::{
    config::{Config, ProviderConfig},
    consent::{flows::Going, texts::Subject},
    links::{Binding, Invitation},
};

/// A flow whose person is at the issuer.
pub(super) fn going() -> Going {
    let organization = || "4711".parse().expect("an id");
    Going {
        invitation: Invitation {
            organization: organization(),
            provider: "p".parse().expect("a name"),
            also: Vec::new(),
            binding: Binding { grant: None, generation: 0 },
        },
        verifier: None,
        redirect_uri: "https://c.example/callback/p".to_owned(),
        issuer: None,
        sends_issuer: false,
        subject: Subject {
            asker: "Asker".to_owned(),
            id: organization(),
            organization: "Company".to_owned(),
            issuer: "Issuer".to_owned(),
            token: "token".to_owned(),
        },
    }
}

/// A provider of that kind, configured with `more` beside what it needs.
pub(super) fn provider(kind: &str, more: &str) -> ProviderConfig {
    let text =
        format!("[providers.p]\nkind = \"{kind}\"\nclient_id = \"isv_x\"\nissuer = \"https://id.example\"\n{more}\n");
    Config::parse(&text).expect("a configuration").providers.into_values().next().expect("one")
}
