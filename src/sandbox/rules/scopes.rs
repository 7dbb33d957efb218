/// The scopes that the application may ask for; those of `OpenID` Connect are normally off.
pub(in crate::sandbox) const SCOPES: [&str; 3] = ["dineropublicapi:read", "dineropublicapi:write", OFFLINE_ACCESS];
/// Without this scope there is no refresh token.
const OFFLINE_ACCESS: &str = "offline_access";

/// Some of `SCOPES`: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// All that the application may ask for.
    pub const ALL: Self = Self(0b111);

    /// Reads a scope parameter (RFC 6749 section 3.3); `None` where it holds one that is not offered, or none at all.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bits = 0;
        for word in text.split_ascii_whitespace() {
            bits |= 1 << SCOPES.iter().position(|scope| *scope == word)?;
        }
        (bits != 0).then_some(Self(bits))
    }

    /// The scopes as words.
    pub fn words(self) -> Vec<&'static str> {
        SCOPES.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0).map(|(_, scope)| *scope).collect()
    }

    /// Whether a refresh token is among what was asked for.
    pub fn offline(self) -> bool {
        self.words().contains(&OFFLINE_ACCESS)
    }
}
