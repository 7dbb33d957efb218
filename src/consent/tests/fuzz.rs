//! What a stranger may send to the public listener.

use axum::http::{HeaderMap, HeaderValue, header};
use bolero::check;

use crate::{
    consent::{
        cookie,
        language::{self, Language},
        returned::Returned,
        route::Route,
    },
    tests::{Edit, allocated, edited},
};

#[test]
fn what_an_issuer_or_anybody_sends_back_is_read_or_refused() {
    const SENT: &[u8] = b"code=abc&state=def&iss=https%3A%2F%2Fid.example&error=x&error_description=y%20z&error_id=7";
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let sent = edited(SENT, edits);
        let (read, asked) = allocated(|| Returned::read(&sent));
        assert!(asked <= 16 * sent.len() + 4096, "{asked} bytes for {}", sent.len());
        if let Some(read) = read {
            assert!(!read.is_from(Some("https://other.example"), true) || read.iss.is_some());
        }
    });
}

#[test]
fn a_path_leads_to_one_page_or_to_none() {
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let Ok(path) = String::from_utf8(edited(b"/in/here/c/abc-DEF_1/start", edits)) else { return };
        match Route::of(&path, "/in/here") {
            Route::Invitation(part) | Route::Start(part) | Route::Callback(part) => {
                assert!(!part.is_empty() && !part.contains('/'), "{path}");
            }
            Route::Done => assert!(path.ends_with("/done"), "{path}"),
            Route::Nothing => {}
        }
    });
}

#[test]
fn headers_name_a_language_and_one_session_or_none() {
    check!().with_type::<(Vec<Edit>, Vec<Edit>)>().for_each(|(languages, cookies)| {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&edited(b"sv-SE, da;q=0.9, en;q=0.5", languages)) {
            headers.insert(header::ACCEPT_LANGUAGE, value);
        }
        if let Ok(value) = HeaderValue::from_bytes(&edited(b"a=b; __Host-consent=abc; c=d", cookies)) {
            headers.insert(header::COOKIE, value);
        }
        let _ = Language::preferred(&headers);
        if let Some(locale) = language::for_issuer(&headers) {
            assert!(locale.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{locale}");
        }
        if let Some(session) = cookie::read(&headers, true) {
            assert!(!session.contains(';'));
        }
    });
}
