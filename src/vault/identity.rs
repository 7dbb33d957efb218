use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use age::secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::{error::VaultError, folder};

/// The largest identity file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The age X25519 identities of one file: what opens the vault.
pub struct Identity {
    path: PathBuf,
    /// At least one.
    keys: Vec<age::x25519::Identity>,
    too_open: bool,
}

impl Identity {
    /// Reads an identity file as `age-keygen` and [`create`](Self::create) write it: one `AGE-SECRET-KEY-1…` a line,
    /// blank lines and lines that start with `#` left out.
    pub fn read(file: &Path) -> Result<Self, VaultError> {
        let wrong = |why: &str| VaultError::Identity { path: file.to_owned(), why: why.to_owned() };
        let (text, too_open) = read_text(file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => wrong("it is not there; `consentry init` makes one"),
            io::ErrorKind::PermissionDenied => wrong("this user may not read it; it must belong to the worker's user"),
            io::ErrorKind::InvalidData => wrong("it is not a text file with age identities"),
            _ => wrong(&error.to_string()),
        })?;
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            keys.push(line.parse().map_err(|why: &str| {
                if line.starts_with("age1") {
                    wrong("it holds a recipient (a public key, `age1…`); the identity starts with `AGE-SECRET-KEY-1`")
                } else if line.starts_with("age-encryption.org") || line.starts_with("-----BEGIN AGE") {
                    wrong("it is itself encrypted with age; decrypt it first")
                } else {
                    // The line itself is left out: it may be a secret.
                    wrong(&format!("a line of it is not an age X25519 identity ({why})"))
                }
            })?);
        }
        if keys.is_empty() {
            return Err(wrong("it holds no identity"));
        }
        Ok(Self { path: file.to_owned(), keys, too_open })
    }

    /// Makes a new identity and writes it to `file`, readable by its owner only, and durably. A file that is there is
    /// never overwritten. Folders that are missing above it are made.
    pub fn create(file: &Path) -> Result<Self, VaultError> {
        let key = age::x25519::Identity::generate();
        let secret = key.to_string();
        let text = Zeroizing::new(format!("# public key: {}\n{}\n", key.to_public(), secret.expose_secret()));
        let parent = folder::parent(file);
        std::fs::create_dir_all(parent).map_err(|error| VaultError::io(parent, &error))?;
        let mut output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                VaultError::Identity {
                    path: file.to_owned(),
                    why: "it is there already and is never overwritten".into(),
                }
            } else {
                VaultError::io(file, &error)
            }
        })?;
        let written = output.write_all(text.as_bytes()).and_then(|()| output.sync_all());
        if let Err(error) = written.and_then(|()| folder::sync_folder(parent)) {
            // Half an identity opens nothing and would stand in the way of the next try.
            let _ = std::fs::remove_file(file);
            return Err(VaultError::io(file, &error));
        }
        Ok(Self { path: file.to_owned(), keys: vec![key], too_open: false })
    }

    /// The public key of the first identity: `age1…`.
    pub fn recipient(&self) -> String {
        self.keys[0].to_public().to_string()
    }

    /// Whether others than it is meant for may read or write the file; worth a warning, but no error. A file of root's that
    /// only a group may read besides is how Kubernetes (`fsGroup`) and systemd (`LoadCredential=`) hand a secret to a user
    /// without privileges.
    pub const fn permissions_too_open(&self) -> bool {
        self.too_open
    }

    /// The file that it was read from.
    pub(super) fn file(&self) -> &Path {
        &self.path
    }

    /// The public keys of all identities.
    pub(super) fn recipients(&self) -> impl Iterator<Item = age::x25519::Recipient> {
        self.keys.iter().map(age::x25519::Identity::to_public)
    }

    /// The identities as age takes them.
    pub(super) fn keys(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.keys.iter().map(|key| key as _)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("path", &self.path)
            .field("recipient", &self.recipient())
            .finish_non_exhaustive()
    }
}

fn read_text(file: &Path) -> io::Result<(Zeroizing<String>, bool)> {
    let input = std::fs::File::open(file)?;
    let metadata = input.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name the file in it"));
    }
    let too_open = too_open(metadata.permissions().mode(), metadata.uid(), rustix::process::geteuid().as_raw());
    // Read into a buffer that does not have to grow, so that no copy is left behind.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(MAX_FILE_BYTES).unwrap_or(0)));
    input.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok((text, too_open))
}

/// Whether a file of this mode and owner is open to more users than `own`, who reads it.
const fn too_open(mode: u32, owner: u32, own: u32) -> bool {
    const ROOT: u32 = 0;
    let fit = if owner == ROOT && own != ROOT { 0o740 } else { 0o700 };
    mode & 0o777 & !fit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("identity.txt");
        std::fs::write(&file, text).unwrap();
        Identity::read(&file).unwrap_err().to_string()
    }

    #[test]
    fn a_new_identity_is_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("made/identity.txt");
        let made = Identity::create(&file).unwrap();
        let read = Identity::read(&file).unwrap();
        assert_eq!(made.recipient(), read.recipient());
        assert!(made.recipient().starts_with("age1"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!read.permissions_too_open());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Identity::read(&file).unwrap().permissions_too_open());
    }

    #[test]
    fn a_file_that_root_hands_over_may_be_read_by_a_group_and_any_other_by_its_owner_alone() {
        for (mode, owner, own, expected) in [
            (0o100_600, 1000, 1000, false),
            (0o100_640, 1000, 1000, true),
            (0o100_440, 0, 10_001, false),
            (0o100_460, 0, 10_001, true),
            (0o100_444, 0, 10_001, true),
            (0o100_440, 0, 0, true),
            (0o100_440, 1000, 10_001, true),
        ] {
            assert_eq!(too_open(mode, owner, own), expected, "{mode:o} of {owner}, read by {own}");
        }
    }

    #[test]
    fn an_identity_that_is_there_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("identity.txt");
        let first = Identity::create(&file).unwrap().recipient();
        assert!(Identity::create(&file).unwrap_err().to_string().contains("never overwritten"));
        assert_eq!(Identity::read(&file).unwrap().recipient(), first);
    }

    #[test]
    fn a_file_that_is_no_identity_is_named_as_what_it_is() {
        assert!(refusal("# nothing\n\n").contains("holds no identity"));
        assert!(refusal("age1pr0duct0fa0fantasy\n").contains("public key"));
        assert!(refusal("-----BEGIN AGE ENCRYPTED FILE-----\n").contains("itself encrypted"));
        let secret = refusal("AGE-SECRET-KEY-1MISTYPED\n");
        assert!(secret.contains("not an age X25519 identity") && !secret.contains("MISTYPED"), "{secret}");
        let missing = Identity::read(Path::new("/nowhere/identity.txt")).unwrap_err().to_string();
        assert!(missing.contains("consentry init"), "{missing}");
    }

    #[test]
    fn debug_shows_the_public_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::create(&folder.path().join("identity.txt")).unwrap();
        let shown = format!("{identity:?}");
        assert!(shown.contains("age1") && !shown.contains("AGE-SECRET"), "{shown}");
    }
}
