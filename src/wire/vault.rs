use serde::{Deserialize, Serialize};

/// `POST /v1/vault/keys`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataKey {
    /// The number of the data key that seals from now on.
    pub data_key: u32,
}

/// `GET /v1/vault/recipients`, and what is answered to changes below it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Recipients {
    /// Everybody who can open the vault.
    pub recipients: Vec<Recipient>,
}

/// Somebody who can open the vault.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The public key, `age1…`.
    pub recipient: String,
    /// Whether it is of the worker's own identity.
    pub own: bool,
}
