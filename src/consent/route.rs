//! What a path asks for.

/// A page, or what leads to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Route<'a> {
    /// `/c/{token}`
    Invitation(&'a str),
    /// `/c/{token}/start`
    Start(&'a str),
    /// `/callback/{provider}`
    Callback(&'a str),
    /// `/done`
    Done,
    /// Anything else.
    Nothing,
}

impl<'a> Route<'a> {
    /// Reads `path`, which lies below `prefix` or has lost it on its way through a proxy.
    pub(super) fn of(path: &'a str, prefix: &str) -> Self {
        let below = path.strip_prefix(prefix).filter(|rest| rest.starts_with('/')).unwrap_or(path);
        let mut parts = below.strip_prefix('/').unwrap_or(below).split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("c"), Some(token), None, None) if !token.is_empty() => Self::Invitation(token),
            (Some("c"), Some(token), Some("start"), None) if !token.is_empty() => Self::Start(token),
            (Some("callback"), Some(provider), None, None) if !provider.is_empty() => Self::Callback(provider),
            (Some("done"), None, None, None) => Self::Done,
            _ => Self::Nothing,
        }
    }

    /// The methods it takes, as `Allow` lists them.
    pub(super) const fn methods(self) -> &'static str {
        match self {
            Self::Invitation(_) | Self::Done => "GET, HEAD",
            Self::Start(_) => "POST",
            Self::Callback(_) => "GET, POST",
            Self::Nothing => "",
        }
    }

    /// Whether it takes that method. A callback takes no HEAD: whatever asks ahead with one must not use the code up.
    pub(super) fn takes(self, method: &str) -> bool {
        !method.is_empty() && self.methods().split(", ").any(|known| known == method)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/c/abc", "", Route::Invitation("abc"))]
    #[case("/c/abc/start", "", Route::Start("abc"))]
    #[case("/callback/visma", "", Route::Callback("visma"))]
    #[case("/done", "", Route::Done)]
    #[case("/in/here/c/abc", "/in/here", Route::Invitation("abc"))]
    #[case("/c/abc", "/in/here", Route::Invitation("abc"))]
    #[case("/in/here/done", "/in/here", Route::Done)]
    #[case("/c/done", "/c", Route::Done)]
    #[case("/c/c/abc", "/c", Route::Invitation("abc"))]
    #[case("/in/hereafter/done", "/in/here", Route::Nothing)]
    #[case("/", "", Route::Nothing)]
    #[case("/c/", "", Route::Nothing)]
    #[case("/c/abc/", "", Route::Nothing)]
    #[case("/c/abc/start/x", "", Route::Nothing)]
    #[case("//c/abc", "", Route::Nothing)]
    #[case("/metrics", "", Route::Nothing)]
    #[case("/v1/status", "", Route::Nothing)]
    fn a_path_asks_for_one_thing_or_nothing(#[case] path: &str, #[case] prefix: &str, #[case] route: Route<'_>) {
        assert_eq!(Route::of(path, prefix), route);
    }

    #[test]
    fn only_what_changes_something_takes_a_post() {
        for (route, get, head, post) in [
            (Route::Invitation("x"), true, true, false),
            (Route::Start("x"), false, false, true),
            (Route::Callback("x"), true, false, true),
            (Route::Done, true, true, false),
            (Route::Nothing, false, false, false),
        ] {
            assert_eq!((route.takes("GET"), route.takes("HEAD"), route.takes("POST")), (get, head, post), "{route:?}");
            assert!(!route.takes("DELETE") && !route.takes(""));
        }
    }
}
