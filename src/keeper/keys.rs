//! The vault's keys, and who can open it: the keeper passes it on, and says in the API's words what came of it.

use super::{Keeper, KeeperError, Shared};
use crate::{
    task,
    vault::{Recipient, Vault, VaultError},
    wire,
};

impl Keeper {
    /// Makes a new data key; every record is sealed anew under it in the background, also after a restart.
    pub async fn rotate_data_key(&self) -> Result<wire::DataKey, KeeperError> {
        let _admitted = self.shared.admit()?;
        let data_key = self.shared.of_vault(Vault::rotate_data_key).await?;
        Ok(wire::DataKey { data_key })
    }

    /// Who can open the vault.
    pub async fn recipients(&self) -> Result<wire::Recipients, KeeperError> {
        self.shared.of_vault(Vault::recipients).await.map(shown)
    }

    /// Lets the owner of a public key open the vault; gives all who then can, and whether this one is new.
    pub async fn add_recipient(&self, recipient: String) -> Result<(wire::Recipients, bool), KeeperError> {
        let _admitted = self.shared.admit()?;
        let (recipients, is_new) = self.shared.of_vault(move |vault| vault.add_recipient(recipient)).await?;
        Ok((shown(recipients), is_new))
    }

    /// Keeps the owner of a public key from opening the vault as it is from now on; gives all who still can.
    pub async fn remove_recipient(&self, recipient: String) -> Result<wire::Recipients, KeeperError> {
        let _admitted = self.shared.admit()?;
        self.shared.of_vault(move |vault| vault.remove_recipient(recipient)).await.map(shown)
    }
}

impl Shared {
    /// Asks the vault for what may block for as long as a sync takes.
    async fn of_vault<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Vault) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, KeeperError> {
        let vault = self.vault.clone();
        let asked = task::spawn_blocking(move || ask(&vault)).await;
        let answer = asked.map_err(|_| KeeperError::VaultUnavailable("asking it failed".to_owned()))?;
        answer.map_err(|error| match &error {
            VaultError::Rekeying { .. } => KeeperError::RotationUnderWay(error.to_string()),
            VaultError::Recipient { .. }
            | VaultError::UnknownRecipient { .. }
            | VaultError::OwnRecipient { .. }
            | VaultError::TooMany { .. } => KeeperError::BadRequest(error.to_string().into()),
            _ => self.vault_failed(&error),
        })
    }
}

fn shown(recipients: Vec<Recipient>) -> wire::Recipients {
    let recipients = recipients.into_iter();
    wire::Recipients {
        recipients: recipients.map(|Recipient { key, own }| wire::Recipient { recipient: key, own }).collect(),
    }
}
