use std::{io, path::Path, path::PathBuf};

/// Why the vault could not do what it was asked. The texts are for operators and hold no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VaultError {
    /// No vault is there.
    #[error("no vault in {}; make one with `consentry init`", path.display())]
    Missing {
        /// Where one was looked for.
        path: PathBuf,
    },
    /// A vault is there already, and none is ever overwritten.
    #[error("a vault is already in {}", path.display())]
    AlreadyThere {
        /// Where it is.
        path: PathBuf,
    },
    /// Some of a vault's files are there, and its `format` is not.
    #[error(
        "{} holds {found} but no `format` file: an initialisation was interrupted, or files were lost; \
         if nothing was ever stored there, remove {found} and start again, else move the folder away and bring a backup back \
         with `consentry restore FILE`",
        path.display()
    )]
    Unfinished {
        /// The vault's folder.
        path: PathBuf,
        /// One of the files that are there.
        found: &'static str,
    },
    /// Another process has it open.
    #[error("vault {} is in use by {}", path.display(), holder(*pid))]
    InUse {
        /// The vault's folder.
        path: PathBuf,
        /// The process that holds it, where its lock file tells.
        pid: Option<u32>,
    },
    /// The identity file cannot be used.
    #[error("identity file {}: {why}", path.display())]
    Identity {
        /// The identity file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// What should be an age recipient is none.
    #[error("{what} is not an age recipient ({why}); one starts with `age1`")]
    Recipient {
        /// What was given, quoted, unless it may be a secret.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A recipient that is to be removed is not among them.
    #[error("the vault is not encrypted to {recipient}; `consentry key recipients` lists to whom it is")]
    UnknownRecipient {
        /// The public key that was named.
        recipient: String,
    },
    /// Without this recipient the worker itself could not open the vault any more.
    #[error(
        "{recipient} is the worker's own identity, without which it could not open the vault any more; to replace it, put \
         a new identity beside it in the identity file, add its public key, restart the worker, and then remove this one"
    )]
    OwnRecipient {
        /// The public key that was named.
        recipient: String,
    },
    /// Records that should be sealed anew do not open.
    #[error("records that do not open: {count}; they keep the older data keys alive; the first is {first}")]
    Unreadable {
        /// How many there are.
        count: u64,
        /// What the first is, and what does not add up about it.
        first: String,
    },
    /// Records are being sealed anew already.
    #[error("records are still being sealed anew under data key {data_key} ({percent} % are); wait until they all are")]
    Rekeying {
        /// The number of the new data key.
        data_key: u32,
        /// How much is done.
        percent: u64,
    },
    /// A list is at its bound.
    #[error("the vault takes at most {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it takes.
        limit: usize,
    },
    /// The identity is not one that the vault was made for.
    #[error(
        "the identity {identity} does not open the vault in {}; it opens with the identity of {}",
        path.display(),
        if recipients.is_empty() { "a recipient that is not on record".to_owned() } else { recipients.join(" or ") }
    )]
    WrongIdentity {
        /// The vault's folder.
        path: PathBuf,
        /// The public key of the identity that was tried.
        identity: String,
        /// The public keys that the vault is encrypted to, as its folder says.
        recipients: Vec<String>,
    },
    /// A newer version of this program made or upgraded it.
    #[error(
        "the vault in {} has format {found}, and this version of consentry knows formats up to {known}; use the newer version",
        path.display()
    )]
    NewerFormat {
        /// The vault's folder.
        path: PathBuf,
        /// The format it has.
        found: u64,
        /// The newest format this program knows.
        known: u64,
    },
    /// Bytes in it are not what was written.
    #[error(
        "the vault is damaged: {what}: {detail}; move its folder away and bring a backup back with `consentry restore FILE`"
    )]
    Damaged {
        /// The part that is damaged.
        what: &'static str,
        /// What does not add up.
        detail: String,
    },
    /// Parts of it are of different times: files were cut short or replaced by older copies.
    #[error(
        "the vault's files are not of one time: {detail}; move its folder away and bring a backup back with `consentry \
         restore FILE`, or, where what is there is newer than any backup, take it as it is with `consentry restore --in-place`"
    )]
    Behind {
        /// Which part lags behind which.
        detail: String,
    },
    /// This user may not use it, or it is on a read-only file system.
    #[error("{} cannot be used ({why}); the vault must belong to the worker's user and be writable", path.display())]
    ReadOnly {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The disk or quota is full.
    #[error("no space left for {}; free some and try again", path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The disk is so nearly full that the database could be torn by running out of it; it was not touched.
    #[error(
        "no space left for {}: {free} MB are free, and its database must be sure of {needed} MB; free some and try again",
        path.display()
    )]
    Scarce {
        /// The vault's folder.
        path: PathBuf,
        /// What is free, in megabytes.
        free: u64,
        /// What has to be, in megabytes.
        needed: u64,
    },
    /// A copy of the database has to be tried first, and there is no room for one.
    #[error(
        "the vault in {} was not closed cleanly, so that a copy of its database is tried first, and there is no space \
         left for one, neither there nor in {}; free {} MB and try again",
        path.display(),
        elsewhere.display(),
        bytes.div_ceil(1_000_000)
    )]
    NoRoom {
        /// The vault's folder.
        path: PathBuf,
        /// Where there is no room either.
        elsewhere: PathBuf,
        /// The size of the database.
        bytes: u64,
    },
    /// Reading or writing failed otherwise.
    #[error("{}: {why}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The engine failed at something that should work.
    #[error("the vault's database failed: {detail}")]
    Engine {
        /// What it said.
        detail: String,
    },
    /// A write has failed before; nothing more is written until the process is started anew.
    #[error("the vault takes no more writes since one failed ({reason}); restart the worker once the cause is gone")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// More than the vault takes at once.
    #[error("{what} of {bytes} bytes is more than the vault takes ({limit} bytes)")]
    TooLarge {
        /// A record or a batch.
        what: &'static str,
        /// How large it is, at least.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// One backup is made at a time.
    #[error("another backup is being made; try again when it is done")]
    BackupUnderWay,
    /// The commits that were made while a backup was are more than is kept of them.
    #[error(
        "more than {limit} bytes were committed while the backup was made, so that it was given up; take it faster, e.g. \
         to a local disk"
    )]
    BackupOutrun {
        /// How many bytes are kept.
        limit: usize,
    },
    /// Nobody takes the backup's bytes.
    #[error("the backup cannot be written: {why}")]
    BackupUnwritten {
        /// What the other end said.
        why: String,
    },
    /// A backup cannot be brought back.
    #[error("the backup cannot be used: {detail}")]
    BackupUnusable {
        /// What is wrong with it, and what to do.
        detail: String,
    },
    /// It is being moved elsewhere, or was, and must not be used beside the other.
    #[error("{}", moved(place, to, *gone))]
    Moved {
        /// Where it is.
        place: String,
        /// Where it went.
        to: String,
        /// Whether the other is, or may be, in use.
        gone: bool,
    },
    /// A vault is being moved there, and is not whole yet.
    #[error("{}", arriving(path, *of_another))]
    Arriving {
        /// Where it is being made.
        path: PathBuf,
        /// Whether it is of another move than the one that was asked for.
        of_another: bool,
    },
    /// A move was to be given up, and there is none.
    #[error("the vault is not being moved")]
    NotMoving,
    /// It has been closed.
    #[error("the vault is closed")]
    Closed,
    /// Another process is at work on that grant.
    #[error("another replica is at work on it; try again in a moment")]
    Held,
    /// The claim under which something was to be committed is another process's by now.
    #[error("another replica has taken over meanwhile; what is there now is to be looked at again")]
    Fenced,
    /// What a commit was based on has been changed by another process.
    #[error("another replica has changed it meanwhile; what is there now is to be looked at again")]
    Conflict,
    /// The database that the vault is in does not answer. Whatever was to be committed was not.
    #[error("the vault's database is away: {detail}")]
    Away {
        /// What is known of it.
        detail: String,
    },
    /// The database would lose what it confirmed.
    #[error(
        "the vault's database confirms commits alone, and would lose the latest with its server; set \
         `synchronous_standby_names` there, or accept the loss of credentials with `vault.postgres.allow_asynchronous = true`"
    )]
    Asynchronous,
    /// The database cannot be used as it is, or is not to be.
    #[error("the vault's database cannot be used: {detail}")]
    Unusable {
        /// What is wrong, and what to do.
        detail: String,
    },
}

impl VaultError {
    /// Sorts a failed system call on `path`.
    pub(super) fn io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly { path, why: error.to_string() }
            }
            _ => Self::Io { path, why: error.to_string() },
        }
    }

    /// Whether space on the disk is all that is missing.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Scarce { .. } | Self::NoRoom { .. })
    }

    /// Whether it passes by itself: what was to be done can be tried again.
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Held | Self::Fenced | Self::Conflict | Self::Away { .. } | Self::Asynchronous)
    }

    /// Whether records in the vault are lost or wrong, so that only a backup helps.
    pub const fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Behind { .. })
    }
}

pub(super) fn moved(place: &str, to: &str, gone: bool) -> String {
    if gone {
        format!(
            "the vault in {place} was moved to {to} and is not used any more, since its tokens are spent by that one; should that \
             one be lost, `consentry restore --in-place` takes this one as it is, with every one-time grant in doubt"
        )
    } else {
        format!(
            "the vault in {place} is being moved to {to}; run the same `consentry vault move` again to finish that, or with \
             --give-up to stay here"
        )
    }
}

fn arriving(path: &Path, of_another: bool) -> String {
    let path = path.display();
    if of_another {
        format!("{path} holds what another move has left unfinished; finish or give up that one, or remove the folder")
    } else {
        format!("a vault is being moved here and is not whole yet ({path}); run the same `consentry vault move` again")
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_read_only_one_are_told_apart() {
        let path = Path::new("/vault/journal");
        assert!(VaultError::io(path, &io::Error::from(io::ErrorKind::StorageFull)).is_full());
        let read_only = VaultError::io(path, &io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        assert!(matches!(read_only, VaultError::ReadOnly { .. }), "{read_only}");
        assert!(!VaultError::io(path, &io::Error::from(io::ErrorKind::NotFound)).is_full());
    }

    #[test]
    fn who_holds_the_vault_is_said() {
        let error = VaultError::InUse { path: "/v".into(), pid: Some(123) };
        assert_eq!(error.to_string(), "vault /v is in use by process 123");
    }
}
