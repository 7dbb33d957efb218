//! What is sent: form bodies (RFC 6749 appendix B) and client authentication, held so that they are wiped.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use reqwest::header::{HeaderValue, InvalidHeaderValue};
use url::form_urlencoded::byte_serialize;

use super::{Redemption, detail::Cleaner};
use crate::{
    config::ClientAuth,
    model::{Credential, Secret, Wiped},
};

/// Who the client says it is.
#[derive(Clone)]
pub(super) struct Client {
    /// The client id.
    pub(super) id: String,
    /// The client secret; `None` for a public client.
    pub(super) secret: Option<Secret>,
}

/// A form body and the header that goes with it.
pub(super) struct Form {
    body: Wiped<String>,
    authorization: Option<HeaderValue>,
}

/// Room for all of a form but the credential that it is about, in bytes. One that needs more grows.
const ROOM: usize = 512;

impl Form {
    fn new() -> Self {
        Self::about("")
    }

    /// A form with room for this credential, escaped.
    fn about(secret: &str) -> Self {
        Self { body: Wiped::new(String::with_capacity(ROOM + 3 * secret.len())), authorization: None }
    }

    /// The exchange of `credential`: a refresh token by RFC 6749 section 6 (without a scope: that would narrow it), an
    /// API key by the password grant (section 4.3), in which Dinero takes the key as both user name and password.
    pub(super) fn exchange(credential: &Credential, scope: &str) -> Self {
        let mut form = Self::about(credential.secret().expose());
        match credential {
            Credential::RefreshToken(token) => {
                form.push("grant_type", "refresh_token");
                form.push("refresh_token", token.expose());
            }
            Credential::ApiKey(key) => {
                form.push("grant_type", "password");
                if !scope.is_empty() {
                    form.push("scope", scope);
                }
                form.push("username", key.expose());
                form.push("password", key.expose());
            }
        }
        form
    }

    /// The exchange of an authorization code (RFC 6749 section 4.1.3, RFC 7636 section 4.5).
    pub(super) fn redemption(redemption: &Redemption<'_>) -> Self {
        let mut form = Self::new();
        form.push("grant_type", "authorization_code");
        form.push("code", redemption.code.expose());
        form.push("redirect_uri", redemption.redirect_uri);
        if let Some(verifier) = redemption.verifier {
            form.push("code_verifier", verifier.expose());
        }
        form
    }

    /// The revocation of a refresh token (RFC 7009 section 2.1).
    pub(super) fn revocation(refresh_token: &Secret) -> Self {
        let mut form = Self::new();
        form.push("token", refresh_token.expose());
        form.push("token_type_hint", "refresh_token");
        form
    }

    /// A request that no token endpoint grants and that harms nobody: it has neither client nor token.
    pub(super) fn harmless() -> Self {
        let mut form = Self::new();
        form.push("grant_type", "refresh_token");
        form
    }

    /// Adds the client, by `method` where it has a secret; a public client only names itself (RFC 6749 section 3.2.1).
    pub(super) fn authenticated(mut self, client: &Client, method: ClientAuth) -> Self {
        match (&client.secret, method) {
            (None, _) => self.push("client_id", &client.id),
            (Some(secret), ClientAuth::Post) => {
                self.push("client_id", &client.id);
                self.push("client_secret", secret.expose());
            }
            (Some(secret), ClientAuth::Basic) => {
                let encode = |text: &str| -> Wiped<String> { Wiped::new(byte_serialize(text.as_bytes()).collect()) };
                self.authorization = Some(basic(&encode(&client.id), &encode(secret.expose())));
            }
            (Some(secret), ClientAuth::BasicPlain) => self.authorization = Some(basic(&client.id, secret.expose())),
        }
        self
    }

    /// A cleaner for the answer: it hides `sent` and the client's secret however they are sent.
    pub(super) fn cleaner<'a>(&self, sent: impl IntoIterator<Item = &'a Secret>, client: &'a Client) -> Cleaner {
        Cleaner::of(sent.into_iter().chain(&client.secret)).hiding(self.authorization.clone())
    }

    /// The body, which is wiped when the last reference to it goes, and the header.
    pub(super) fn into_parts(self) -> (Bytes, Option<HeaderValue>) {
        (Bytes::from_owner(self.body), self.authorization)
    }

    fn push(&mut self, name: &str, value: &str) {
        let needed = 2 + 3 * (name.len() + value.len());
        if self.body.capacity() - self.body.len() < needed {
            // A growing `String` would leave its old text behind in memory.
            let mut larger = Wiped::new(String::with_capacity(2 * self.body.len() + needed));
            larger.push_str(&self.body);
            self.body = larger;
        }
        if !self.body.is_empty() {
            self.body.push('&');
        }
        self.body.extend(byte_serialize(name.as_bytes()));
        self.body.push('=');
        self.body.extend(byte_serialize(value.as_bytes()));
    }
}

/// `Authorization: Bearer …` (RFC 6750 section 2.1); fails for a token that no header can carry.
pub(super) fn bearer(token: &Secret) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut text = Wiped::new(String::with_capacity("Bearer ".len() + token.expose().len()));
    text.push_str("Bearer ");
    text.push_str(token.expose());
    sensitive(text)
}

fn basic(id: &str, secret: &str) -> HeaderValue {
    let mut pair = Wiped::new(String::with_capacity(id.len() + secret.len() + 1));
    pair.push_str(id);
    pair.push(':');
    pair.push_str(secret);
    let mut text = Wiped::new(String::with_capacity("Basic ".len() + pair.len() / 3 * 4 + 4));
    text.push_str("Basic ");
    STANDARD.encode_string(pair.as_bytes(), &mut text);
    sensitive(text).expect("base64 is visible ASCII, which every header can carry")
}

fn sensitive(text: Wiped<String>) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(form: Form) -> (String, Option<String>) {
        let (body, header) = form.into_parts();
        let header = header.map(|header| {
            assert!(header.is_sensitive());
            header.to_str().expect("ASCII").to_owned()
        });
        (String::from_utf8(body.to_vec()).expect("ASCII"), header)
    }

    fn client(id: &str, secret: &str) -> Client {
        Client { id: id.into(), secret: Some(Secret::new(secret)) }
    }

    #[test]
    fn dineros_basic_header_is_as_documented() {
        let key = Credential::ApiKey(Secret::new("k&y"));
        let form =
            Form::exchange(&key, "read write").authenticated(&client("rasmus", "dinero"), ClientAuth::BasicPlain);
        let (body, header) = parts(form);
        assert_eq!(body, "grant_type=password&scope=read+write&username=k%26y&password=k%26y");
        assert_eq!(header.as_deref(), Some("Basic cmFzbXVzOmRpbmVybw=="));
    }

    #[test]
    fn basic_encodes_both_parts_before_they_are_joined() {
        let token = Credential::RefreshToken(Secret::new("r t"));
        let form = Form::exchange(&token, "ignored").authenticated(&client("a:b", "c d/ø"), ClientAuth::Basic);
        let (body, header) = parts(form);
        assert_eq!(body, "grant_type=refresh_token&refresh_token=r+t");
        assert_eq!(header, Some(format!("Basic {}", STANDARD.encode("a%3Ab:c+d%2F%C3%B8"))));
    }

    #[test]
    fn basic_plain_encodes_nothing() {
        let form = Form::harmless().authenticated(&client("i d", "s/t+"), ClientAuth::BasicPlain);
        assert_eq!(parts(form).1, Some(format!("Basic {}", STANDARD.encode("i d:s/t+"))));
    }

    #[test]
    fn post_puts_the_client_into_the_body() {
        let form = Form::harmless().authenticated(&client("isv_x", "s&t"), ClientAuth::Post);
        let expected = "grant_type=refresh_token&client_id=isv_x&client_secret=s%26t";
        assert_eq!(parts(form), (expected.to_owned(), None));
    }

    #[test]
    fn a_public_client_only_names_itself() {
        let public = Client { id: "app".into(), secret: None };
        let form = Form::revocation(&Secret::new("t")).authenticated(&public, ClientAuth::Basic);
        assert_eq!(parts(form), ("token=t&token_type_hint=refresh_token&client_id=app".to_owned(), None));
    }

    #[test]
    fn a_code_goes_with_its_verifier_and_the_redirect_uri_as_it_was() {
        let (code, verifier) = (Secret::new("c/1"), Secret::new("v~1"));
        let mut redemption = Redemption {
            code: &code,
            verifier: Some(&verifier),
            redirect_uri: "https://connect.example.com/a/callback/visma-connect",
        };
        let expected = "grant_type=authorization_code&code=c%2F1&redirect_uri=https%3A%2F%2Fconnect.example.com%2Fa%2Fcallback%2Fvisma-connect";
        let with_verifier = parts(Form::redemption(&redemption)).0;
        assert_eq!(with_verifier, format!("{expected}&code_verifier=v%7E1"));
        redemption.verifier = None;
        assert_eq!(parts(Form::redemption(&redemption)).0, expected);
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused() {
        assert!(bearer(&Secret::new("a\r\nX: y")).is_err());
        assert!(bearer(&Secret::new("abc")).expect("fits").is_sensitive());
    }
}
