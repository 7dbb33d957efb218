use std::io::Write;

use super::Keeper;
use crate::vault::{BackedUp, VaultError};

impl Keeper {
    /// Writes a backup of the vault to `output`, and returns when the last byte was taken. Blocks for that long.
    pub fn back_up(&self, output: impl Write) -> Result<BackedUp, VaultError> {
        let begun_at = self.shared.now().wall;
        let made = self.shared.vault.backup(begun_at, output)?;
        self.shared.vault.backed_up(begun_at);
        self.shared.metrics.backed_up(begun_at);
        Ok(made)
    }
}
