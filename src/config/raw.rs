//! The configuration as it is written: every key optional, nothing checked but its shape. An unknown key is an
//! error. Numbers, flags and lists are also taken as text, since that is all the environment can hold.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Unexpected, Visitor},
};

use super::{ClientAuth, InDoubtPolicy, Kind, LogFormat, ResponseMode, Role};
use crate::model::Usage;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct Raw {
    pub(super) vault: RawVault,
    pub(super) socket: RawSocket,
    pub(super) access: Vec<RawAccess>,
    pub(super) http: RawHttp,
    pub(super) log: RawLog,
    pub(super) refresh: RawRefresh,
    pub(super) consent: RawConsent,
    pub(super) webhook: Vec<RawWebhook>,
    pub(super) schedule: RawSchedule,
    pub(super) metrics: RawMetrics,
    pub(super) providers: BTreeMap<String, RawProvider>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawVault {
    pub(super) path: Option<String>,
    pub(super) identity_file: Option<String>,
    pub(super) recipients: Option<List>,
    pub(super) engine: Option<String>,
    pub(super) cache: Option<Scalar>,
    pub(super) backup_dir: Option<String>,
    pub(super) backup_keep: Option<Whole>,
    pub(super) postgres: RawPostgres,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawPostgres {
    pub(super) url: Option<String>,
    pub(super) url_file: Option<String>,
    pub(super) ca_file: Option<String>,
    pub(super) pool_size: Option<Whole>,
    pub(super) statement_timeout: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) allow_asynchronous: Option<Flag>,
    pub(super) poll: Option<String>,
    pub(super) lease: Option<String>,
    pub(super) listen_url: Option<String>,
    pub(super) resident: Option<Whole>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawSocket {
    pub(super) path: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) group: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawAccess {
    pub(super) uid: Option<Whole>,
    pub(super) user: Option<Scalar>,
    pub(super) gid: Option<Whole>,
    pub(super) group: Option<Scalar>,
    pub(super) role: Option<Role>,
    pub(super) organizations: Option<List>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawHttp {
    pub(super) listen: Option<String>,
    pub(super) board: RawBoard,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawBoard {
    pub(super) enabled: Option<Flag>,
    pub(super) token_file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawLog {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawRefresh {
    pub(super) at: Option<Real>,
    pub(super) keep_warm: Option<String>,
    pub(super) concurrency: Option<Whole>,
    pub(super) timeout: Option<String>,
    pub(super) token_cache: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawConsent {
    pub(super) warn_before: Option<List>,
    pub(super) listen: Option<String>,
    pub(super) public_url: Option<String>,
    pub(super) link_lifetime: Option<String>,
    pub(super) revoke_old: Option<Flag>,
    pub(super) name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawWebhook {
    pub(super) url: Option<String>,
    pub(super) secret_file: Option<String>,
    pub(super) events: Option<List>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawSchedule {
    pub(super) timezone: Option<String>,
    pub(super) digest: Option<String>,
    pub(super) backup: Option<String>,
    pub(super) sweep: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawMetrics {
    pub(super) organization_series: Option<Whole>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(super) struct RawProvider {
    pub(super) kind: Option<Kind>,
    pub(super) client_id: Option<String>,
    pub(super) client_secret_file: Option<String>,
    pub(super) scopes: Option<List>,
    pub(super) pkce: Option<Flag>,
    pub(super) usage: Option<Usage>,
    pub(super) consent_lifetime: Option<String>,
    pub(super) idle_lifetime: Option<String>,
    pub(super) grace: Option<String>,
    pub(super) in_doubt: Option<InDoubtPolicy>,
    pub(super) max_per_minute: Option<Whole>,
    pub(super) issuer: Option<String>,
    pub(super) token_url: Option<String>,
    pub(super) authorize_url: Option<String>,
    pub(super) revoke_url: Option<String>,
    pub(super) organizations_url: Option<String>,
    pub(super) client_auth: Option<ClientAuth>,
    pub(super) response_mode: Option<ResponseMode>,
    pub(super) prompt: Option<String>,
}

/// A whole number, or text that is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole(pub(super) i64);

/// A number, or text that is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Real(pub(super) f64);

/// True or false, or text that says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag(pub(super) bool);

/// Text, or a whole number as text: a name or number, a size.
#[derive(Clone, Debug)]
pub(super) struct Scalar(pub(super) String);

/// A list of text, or text with commas between the items.
#[derive(Clone, Debug)]
pub(super) struct List(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl Visitor<'_> for Reads {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Whole, E> {
                text.trim().parse().map(Whole).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl Visitor<'_> for Reads {
            type Value = Real;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Real, E> {
                i32::try_from(number)
                    .map(|number| Real(f64::from(number)))
                    .map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Real, E> {
                Ok(Real(number))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Real, E> {
                text.trim().parse().map(Real).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl Visitor<'_> for Reads {
            type Value = Flag;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true or false")
            }
            fn visit_bool<E: Error>(self, flag: bool) -> Result<Flag, E> {
                Ok(Flag(flag))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Flag, E> {
                text.trim().parse().map(Flag).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl Visitor<'_> for Reads {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a whole number")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = List;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(List(list))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<List, E> {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Ok(List(items.map(str::to_owned).collect()))
            }
        }
        deserializer.deserialize_any(Reads)
    }
}
