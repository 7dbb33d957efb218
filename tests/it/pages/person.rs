//! A person with a browser: cookies, a language, and clicks.

use std::{collections::BTreeMap, io::Write as _, net::TcpStream};

use url::Url;

use crate::harness::http::{self, Response};

/// A browser. Whatever is addressed to the public URL is carried to the listener, as a proxy would.
#[derive(Debug)]
pub(crate) struct Person {
    public_url: Url,
    pages: String,
    language: String,
    /// By host and name.
    pub(crate) cookies: BTreeMap<(String, String), String>,
    /// Whether the proxy passes the public URL's path on.
    pub(crate) proxy_keeps_path: bool,
}

/// What came of a person who answered the issuer.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Where the issuer sent the person.
    pub(crate) callback: String,
    /// What the issuer lets the browser post there; empty where it is all in the address.
    pub(crate) form: Vec<(String, String)>,
    authorize: Url,
}

impl Visit {
    /// A parameter of the authorization request.
    pub(crate) fn asked(&self, name: &str) -> Option<&str> {
        let text = self.authorize.query_pairs().find(|(key, _)| key == name)?.1.into_owned();
        Some(text.leak())
    }
}

impl Person {
    pub(crate) fn new(public_url: &str, pages: &str) -> Self {
        Self {
            public_url: public_url.parse().expect("a URL"),
            pages: pages.to_owned(),
            language: "en".to_owned(),
            cookies: BTreeMap::new(),
            proxy_keeps_path: true,
        }
    }

    pub(crate) fn speaking(mut self, language: &str) -> Self {
        language.clone_into(&mut self.language);
        self
    }

    pub(crate) fn get(&mut self, url: &str) -> Response {
        self.send("GET", url, &[], "")
    }

    pub(crate) fn post(&mut self, url: &str, fields: &[(&str, &str)]) -> Response {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        self.send("POST", url, &headers, &http::form(fields))
    }

    pub(crate) fn send(&mut self, method: &str, url: &str, more: &[(&str, &str)], body: &str) -> Response {
        let (address, host, path, cookies) = self.way_to(url);
        let mut headers = vec![("accept-language", self.language.as_str())];
        if !cookies.is_empty() {
            headers.push(("cookie", &cookies));
        }
        headers.extend(more);
        let answer = http::over_tcp(&address, method, &path, &headers, body);
        for cookie in answer.headers("set-cookie") {
            let (name, value) = cookie.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
            self.cookies.insert((host.clone(), name.to_owned()), value.to_owned());
        }
        answer
    }

    /// Asks for this and does not wait for the answer. The connection ends when what is given is dropped.
    pub(crate) fn ask(&self, url: &str) -> TcpStream {
        let (address, _, path, cookies) = self.way_to(url);
        let mut stream = TcpStream::connect(&address).expect("the pages are there");
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\ncookie: {cookies}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the pages are there");
        stream
    }

    /// Where a URL is asked for: the listener's address, the host, the path with its query, and the cookies that go along.
    fn way_to(&self, url: &str) -> (String, String, String, String) {
        let url: Url = url.parse().expect("a URL");
        let host = url.host_str().expect("a host").to_owned();
        let is_ours = url.origin() == self.public_url.origin();
        let address = if is_ours { self.pages.clone() } else { authority(&url) };
        let cut = if is_ours && !self.proxy_keeps_path { self.public_url.path() } else { "" };
        let mut path = url.path().strip_prefix(cut).expect("below the path").to_owned();
        if let Some(query) = url.query() {
            path.extend(["?", query]);
        }
        let cookies: Vec<String> = self
            .cookies
            .iter()
            .filter(|((of, _), _)| *of == host)
            .map(|((_, name), value)| format!("{name}={value}"))
            .collect();
        (address, host, path, cookies.join("; "))
    }

    /// Where a redirect from `url` leads.
    pub(crate) fn location(answer: &Response, url: &str) -> String {
        let location = answer.header("location").unwrap_or_else(|| panic!("no redirect: {answer:?}"));
        Url::parse(url).expect("a URL").join(location).expect("a URL").to_string()
    }

    /// Comes back from the issuer, and looks at what came of it.
    pub(crate) fn follow(&mut self, callback: &str) -> Response {
        let back = self.get(callback);
        assert_eq!(back.status, 303, "{back:?}");
        let to = Self::location(&back, callback);
        self.get(&to)
    }

    /// Presses the link's button; gives where the issuer is asked.
    pub(crate) fn start(&mut self, link: &str, fields: &[(&str, &str)]) -> Url {
        let start = self.post(&format!("{link}/start"), fields);
        assert_eq!(start.status, 303, "{start:?}");
        Self::location(&start, link).parse().expect("a URL")
    }

    /// Presses the button, and approves at the issuer as `user`.
    pub(crate) fn approve(&mut self, link: &str, user: &str) -> Visit {
        let authorize = self.start(link, &[]);
        self.decide(authorize, &[("user", user), ("decision", "approve")])
    }

    /// As [`approve`](Self::approve), after pressing the button that asks for another user.
    pub(crate) fn approve_as_another(&mut self, link: &str, user: &str) -> Visit {
        let authorize = self.start(link, &[("as", "another")]);
        self.decide(authorize, &[("user", user), ("decision", "approve")])
    }

    /// Presses the button, and refuses at the issuer.
    pub(crate) fn refuse(&mut self, link: &str) -> String {
        let authorize = self.start(link, &[]);
        self.decide(authorize, &[("decision", "refuse")]).callback
    }

    /// Answers the issuer's page.
    pub(crate) fn decide(&mut self, authorize: Url, decision: &[(&str, &str)]) -> Visit {
        let asked: Vec<(String, String)> = authorize.query_pairs().into_owned().collect();
        let mut fields: Vec<(&str, &str)> = asked.iter().map(|(key, value)| (&**key, &**value)).collect();
        fields.extend(decision);
        let mut endpoint = authorize.clone();
        endpoint.set_query(None);
        let answer = self.post(endpoint.as_str(), &fields);
        if answer.status == 303 {
            return Visit { callback: Self::location(&answer, endpoint.as_str()), form: Vec::new(), authorize };
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let callback = attribute(&answer.body, "action").expect("a form that leads back").to_owned();
        let inputs = answer.body.split("<input ").skip(1);
        let form = inputs.filter_map(|input| Some((attribute(input, "name")?, attribute(input, "value")?)));
        let form = form.map(|(name, value)| (name.to_owned(), value.replace("&amp;", "&"))).collect();
        Visit { callback, form, authorize }
    }
}

fn attribute<'a>(markup: &'a str, name: &str) -> Option<&'a str> {
    Some(markup.split_once(&format!("{name}=\""))?.1.split_once('"')?.0)
}

fn authority(url: &Url) -> String {
    format!("{}:{}", url.host_str().expect("a host"), url.port_or_known_default().expect("a port"))
}
