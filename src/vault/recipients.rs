//! Who can open the vault: a list inside the keyring, which is encrypted to exactly those on it.

use std::fmt;

use tokio::runtime::Handle as Runtime;

use super::{
    Vault, VaultError,
    keyring::{Keyring, parse_recipient},
    writer::Writer,
};
use crate::task;

/// One who can open the vault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    /// The public key, `age1…`.
    pub key: String,
    /// Whether the worker's own identity has it.
    pub own: bool,
}

/// A difference between the configured recipients and the vault's. `Display` says what differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecipientsDiffer {
    /// Configured, and cannot open the vault.
    Missing(String),
    /// Can open the vault, and is neither configured nor the worker's own.
    Unlisted(String),
}

impl fmt::Display for RecipientsDiffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(key) => write!(f, "{key} is in vault.recipients, and cannot open the vault"),
            Self::Unlisted(key) => write!(f, "{key} can open the vault, and is not in vault.recipients"),
        }
    }
}

impl RecipientsDiffer {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Missing(key) => {
                format!("`consentry key recipients add {key}` lets it, or take it out of the configuration")
            }
            Self::Unlisted(key) => {
                format!("list it there, or `consentry key recipients remove {key}` and then `consentry key rotate`")
            }
        }
    }
}

/// Holds the configured recipients against those of the vault.
pub fn recipients_differ(configured: &[String], recipients: &[Recipient]) -> Vec<RecipientsDiffer> {
    // As the vault writes them.
    let configured: Vec<String> = configured
        .iter()
        .map(|text| parse_recipient(text).map_or_else(|_| text.clone(), |recipient| recipient.to_string()))
        .collect();
    let missing = configured.iter().filter(|key| recipients.iter().all(|recipient| recipient.key != **key));
    let unlisted = recipients.iter().filter(|recipient| !recipient.own && !configured.contains(&recipient.key));
    let missing = missing.cloned().map(RecipientsDiffer::Missing);
    missing.chain(unlisted.map(|recipient| RecipientsDiffer::Unlisted(recipient.key.clone()))).collect()
}

/// The recipients of a keyring.
pub(super) fn of(keyring: &Keyring, own: &[String]) -> Vec<Recipient> {
    let recipients = keyring.recipients.iter();
    recipients.map(|key| Recipient { key: key.clone(), own: own.contains(key) }).collect()
}

impl Vault {
    /// Who can open it.
    pub fn recipients(&self) -> Result<Vec<Recipient>, VaultError> {
        if let Some(store) = self.store() {
            return Ok(store.recipients());
        }
        let shared = self.shared()?;
        if shared.opened.load().is_none() {
            return Err(VaultError::Closed);
        }
        Ok(of(&shared.keyring(), &shared.own))
    }

    /// Lets the owner of this public key open the vault, durably; gives all who then can, and whether that changed
    /// anything. Blocks.
    pub fn add_recipient(&self, recipient: String) -> Result<(Vec<Recipient>, bool), VaultError> {
        if let Some(store) = self.store() {
            return task::block_on(&Runtime::current(), store.add_recipient(&recipient));
        }
        self.ask(move |writer| {
            let mut keyring = writer.shared.keyring().clone();
            let is_new = keyring.add_recipient(&recipient)?;
            if is_new {
                writer.put_keyring(keyring)?;
            }
            Ok((writer.recipients(), is_new))
        })
    }

    /// Keeps the owner of this public key from opening the vault as it is from now on, durably; gives all who still can.
    /// What he copied before, he can open for ever: only a new data key ([`rotate_data_key`](Self::rotate_data_key)) keeps
    /// him from records written later, should he get at them. Blocks.
    pub fn remove_recipient(&self, recipient: String) -> Result<Vec<Recipient>, VaultError> {
        if let Some(store) = self.store() {
            return task::block_on(&Runtime::current(), store.remove_recipient(&recipient));
        }
        self.ask(move |writer| {
            let mut keyring = writer.shared.keyring().clone();
            keyring.remove_recipient(&recipient, &writer.shared.own)?;
            writer.put_keyring(keyring)?;
            Ok(writer.recipients())
        })
    }
}

impl Writer {
    fn recipients(&self) -> Vec<Recipient> {
        of(&self.shared.keyring(), &self.shared.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_and_what_is_in_the_vault_are_told_apart() {
        let key = || age::x25519::Identity::generate().to_public().to_string();
        let (own, both, configured, in_vault) = (key(), key(), key(), key());
        let recipient = |key: &String, own| Recipient { key: key.clone(), own };
        let vault = [recipient(&own, true), recipient(&both, false), recipient(&in_vault, false)];
        let found = recipients_differ(&[both.clone(), configured.clone()], &vault);
        assert_eq!(found, [RecipientsDiffer::Missing(configured), RecipientsDiffer::Unlisted(in_vault)]);
        assert!(recipients_differ(&[format!("{both} ")], &vault[..2]).is_empty());
        // The worker's own may be listed too.
        assert!(recipients_differ(&[own, both], &vault[..2]).is_empty());
    }
}
