//! The client secrets of one provider: the new one and the old one while it is replaced, and which of them was accepted.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    clock::SharedClock,
    model::Secret,
    secret_file::{Rules, SecretFile, SecretFileProblem},
};

/// Whatever the issuer gave out is a client secret.
pub(super) const RULES: Rules = Rules { what: "client secret", flaw: |_| None };

/// The client secrets of one provider.
pub(super) struct ClientSecrets {
    file: SecretFile,
    /// Of which secrets which one was accepted last, and so is tried first.
    accepted: Mutex<Option<(Arc<[Secret]>, usize)>>,
}

/// The secrets at one moment, in the order in which they are to be tried.
pub(super) struct Candidates {
    secrets: Arc<[Secret]>,
    preferred: usize,
}

impl Candidates {
    /// The secret to try after `tried` others.
    pub(super) fn get(&self, tried: usize) -> Option<&Secret> {
        (tried < self.secrets.len()).then(|| &self.secrets[self.position(tried)])
    }

    fn position(&self, tried: usize) -> usize {
        (self.preferred + tried) % self.secrets.len()
    }
}

impl ClientSecrets {
    /// Reads the file for the first time.
    pub(super) fn open(provider: &str, path: &Path, clock: SharedClock) -> Result<Self, SecretFileProblem> {
        let file = SecretFile::open(path, &RULES, provider, clock)?;
        Ok(Self { file, accepted: Mutex::default() })
    }

    /// The secrets as they are now: the file is read again where it has changed since the last look.
    pub(super) async fn current(&self) -> Candidates {
        let secrets = self.file.current().await;
        let preferred = match &*self.accepted.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((known, index)) if Arc::ptr_eq(known, &secrets) => *index,
            _ => 0,
        };
        Candidates { secrets, preferred }
    }

    /// Remembers that of `candidates` the one after `tried` others was accepted; for as long as the file is the same.
    pub(super) fn accepted(&self, candidates: &Candidates, tried: usize) {
        let accepted = (Arc::clone(&candidates.secrets), candidates.position(tried));
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::{clock::ManualClock, model::Timestamp};

    fn texts(candidates: &Candidates) -> Vec<String> {
        (0..).map_while(|tried| candidates.get(tried)).map(|secret| secret.expose().to_owned()).collect()
    }

    #[tokio::test]
    async fn the_secret_that_was_accepted_is_tried_first_from_then_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "new\r\n\nold \n").expect("written");
        let clock = ManualClock::at(Timestamp::default());
        let secrets = ClientSecrets::open("p", &path, clock).expect("usable");
        let candidates = secrets.current().await;
        assert_eq!(texts(&candidates), ["new", "old"]);
        secrets.accepted(&candidates, 1);
        assert_eq!(texts(&secrets.current().await), ["old", "new"]);
    }

    #[tokio::test]
    async fn an_acceptance_does_not_outlive_the_file_it_belongs_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "a\nb").expect("written");
        let clock = ManualClock::at(Timestamp::default());
        let secrets = ClientSecrets::open("p", &path, clock.clone()).expect("usable");
        let old = secrets.current().await;
        fs::write(&path, "only-one").expect("written");
        clock.advance(Duration::from_secs(1));
        secrets.current().await;
        secrets.accepted(&old, 1);
        assert_eq!(texts(&secrets.current().await), ["only-one"]);
    }
}
