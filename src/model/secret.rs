use std::{fmt, sync::Arc};

use secrecy::{ExposeSecret, SecretString};

/// Text that must never be seen: a token, an API key, a client secret.
///
/// It has no `Display` and no `Serialize`, its `Debug` shows nothing, and its memory is wiped when the last clone is dropped:
/// clones share it, so that there is one copy of the text however often it is handed on.
/// The only ways out are [`Secret::expose`] and [`Secret::same_as`]: search for them to see every place that
/// touches one.
#[derive(Clone)]
pub struct Secret(Arc<SecretString>);

impl Secret {
    /// Takes `text` as a secret.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(Arc::new(SecretString::new(text.into())))
    }

    /// The text itself, for the few places that must have it: the request to the issuer, the cipher, the
    /// fingerprint, the answer to an authorized fetch.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether both hold the same text, compared in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        #[expect(
            deprecated,
            reason = "ring keeps the function under this name; it is constant in time for equal lengths"
        )]
        ring::constant_time::verify_slices_are_equal(self.expose().as_bytes(), other.expose().as_bytes()).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }

    #[test]
    fn nothing_of_a_secret_is_left_in_memory() {
        const TEXT: &str = "hush-Secret-that-is-wiped";
        let left = crate::tests::given_back_with(TEXT.as_bytes(), || {
            let secret = Secret::new(TEXT);
            let copy = secret.clone();
            drop(secret);
            assert_eq!(copy.expose(), TEXT);
        });
        assert_eq!(left, 0);
    }

    #[test]
    fn clones_share_one_copy_of_the_text() {
        let secret = Secret::new("hunter2");
        assert!(std::ptr::eq(secret.expose(), secret.clone().expose()));
    }

    #[test]
    fn equality_is_by_text() {
        assert!(Secret::new("a").same_as(&Secret::new("a")));
        assert!(!Secret::new("a").same_as(&Secret::new("ab")));
    }
}
