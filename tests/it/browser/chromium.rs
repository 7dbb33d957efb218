//! Chromium without a window, driven through `ChromeDriver` by the `WebDriver` protocol (W3C Recommendation, 2018).
//!
//! The protocol is a dozen calls with JSON in both directions, which the tests' own HTTP speaks already. A crate for it
//! would bring an asynchronous client of its own, and none of them knows what is asked here most: Chromium's log, its
//! history, and a preference for dark pages, which are extensions of `ChromeDriver`'s.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::front::Front;
use crate::harness::{LOOK_EVERY, eventually, http};

/// Programs that must be there; Debian's packages `chromium` and `chromium-driver` bring them.
const PROGRAMS: [&str; 2] = ["chromium", "chromedriver"];
/// Nothing that a browser does by itself: no updates, no first steps, no graphics card. Without a sandbox, because a test
/// may run as root, and the pages are our own.
const FLAGS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-crash-reporter",
    "--hide-scrollbars",
];
/// How wide and high a page is unless a test says otherwise, in pixels.
const SIZE: (u32, u32) = (1000, 800);
/// What is below is not in a picture, in pixels.
const HIGHEST_PICTURE: f64 = 4000.0;
/// The longest that a page may take to load, in milliseconds.
const PAGE_LOAD_MS: u32 = 30_000;
/// The member of JSON that names an element (section 11 of the protocol).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// How often the folder of a browser that was killed is tried to be removed, while its last processes write to it.
const REMOVALS: u32 = 100;

/// Keys of the keyboard as the protocol names them (section 17.4.2).
pub(super) mod key {
    pub(crate) const TAB: &str = "\u{E004}";
    pub(crate) const ENTER: &str = "\u{E007}";
}

/// Whether there is a browser. Says so loudly where not, since a test that asks then checks nothing; where `CI=true`, that
/// is a failure.
pub(super) fn is_there() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = |program: &&str| env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|program| !there(program)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "{missing:?} not found: tests/peers/need installs them");
    #[expect(clippy::print_stderr, reason = "a test that checks nothing must say so")]
    {
        eprintln!("SKIPPED: no page was opened in a browser: {missing:?} not found; tests/peers/need installs them");
    }
    false
}

/// One browser of one person, with a profile of its own; ends when dropped.
#[derive(Debug)]
pub(super) struct Chromium {
    address: String,
    session: String,
    browser: Pid,
    driver: Driver,
    folder: Option<TempDir>,
}

/// The process of `ChromeDriver`; ends when dropped.
#[derive(Debug)]
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the browser says went wrong: the protocol's error code and its message.
pub(super) type Failed = (String, String);

impl Chromium {
    /// Opens a browser that prefers `languages` (`da,en`), and knows no names but those of `front`, only this machine's address.
    pub(super) fn open(languages: &str, front: Option<&Front>) -> Self {
        let folder = tempfile::Builder::new().prefix("consentry-chromium-").tempdir().expect("a temporary folder");
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let mut driver = Driver(driver);
        let mut lines = BufReader::new(driver.0.stdout.take().expect("it was piped")).lines().map_while(Result::ok);
        let port: u16 = lines
            .by_ref()
            .find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok())
            .expect("chromedriver says its port before it ends");
        // What it says later must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));

        let address = format!("127.0.0.1:{port}");
        let body = json!({ "capabilities": { "alwaysMatch": capabilities(languages, front, folder.path()) } });
        let begun = http::over_tcp(&address, "POST", "/session", &[JSON], &body.to_string()).json();
        let begun = &begun["value"];
        let session = begun["sessionId"].as_str().unwrap_or_else(|| panic!("no browser: {begun}")).to_owned();
        let pid = begun["capabilities"]["goog:processID"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let browser = pid.and_then(Pid::from_raw).expect("ChromeDriver tells the browser's process");
        Self { address, session, browser, driver, folder: Some(folder) }
    }

    /// Goes to `url`, and waits until it has loaded.
    pub(super) fn go(&self, url: &str) {
        self.post("url", &json!({ "url": url }));
    }

    /// Where it is.
    pub(super) fn url(&self) -> String {
        string(self.call("GET", "url", "").expect("a page has a URL"))
    }

    /// The text that a person sees.
    pub(super) fn text(&self) -> String {
        string(self.script("return document.body ? document.body.innerText : ''"))
    }

    /// The language that the page says it is written in.
    pub(super) fn language(&self) -> String {
        string(self.script("return document.documentElement.lang"))
    }

    /// The page as it is now, markup and all.
    pub(super) fn markup(&self) -> String {
        string(self.script("return document.documentElement.outerHTML"))
    }

    /// Waits until the page's text holds `words`, and gives it whole.
    pub(super) fn reads(&self, words: &str) -> String {
        let mut last = String::new();
        let found = eventually_or(|| {
            last = self.try_script("return document.body ? document.body.innerText : ''").map_or_else(|e| e.1, string);
            last.contains(words).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("{:?} nowhere at {}:\n{last}", words, self.url()))
    }

    /// Waits until the page is at a URL that begins with `beginning`.
    pub(super) fn arrives(&self, beginning: &str) -> String {
        let found = eventually_or(|| Some(self.url()).filter(|url| url.starts_with(beginning)));
        found.unwrap_or_else(|| panic!("not at {beginning} but at {}:\n{}", self.url(), self.text()))
    }

    /// Whether there is such an element now.
    pub(super) fn has(&self, selector: &str) -> bool {
        self.find(selector).is_ok()
    }

    /// Waits for the element.
    pub(super) fn finds(&self, selector: &str) {
        self.with(selector, |_| Ok(Value::Null));
    }

    /// Waits for the element, and clicks it.
    pub(super) fn click(&self, selector: &str) {
        self.with(selector, |element| self.call("POST", &format!("element/{element}/click"), "{}"));
    }

    /// Waits for the field, and types into it.
    pub(super) fn types(&self, selector: &str, text: &str) {
        let body = json!({ "text": text }).to_string();
        self.with(selector, |element| self.call("POST", &format!("element/{element}/value"), &body));
    }

    /// Presses one key, wherever the focus is.
    pub(super) fn press(&self, key: &str) {
        let strokes = ["keyDown", "keyUp"].map(|stroke| json!({ "type": stroke, "value": key }));
        self.post("actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    /// Runs the body of a function in the page, and gives what it returns.
    pub(super) fn script(&self, body: &str) -> Value {
        self.try_script(body).unwrap_or_else(|error| panic!("{error:?} of {body}"))
    }

    fn try_script(&self, body: &str) -> Result<Value, Failed> {
        self.call("POST", "execute/sync", &json!({ "script": body, "args": [] }).to_string())
    }

    /// The URL of each step of this tab's history, the present one included.
    pub(super) fn history(&self) -> Vec<String> {
        let entries = self.kept_history();
        let entries = entries.as_array().expect("a list");
        entries.iter().map(|entry| string(entry["url"].clone())).collect()
    }

    /// All that the browser keeps of this tab's history, where it was led to each step from included.
    pub(super) fn kept_history(&self) -> Value {
        self.devtools("Page.getNavigationHistory", &json!({}))["entries"].take()
    }

    /// What the browser has logged about its pages since it was last asked: errors, violations of a policy, warnings.
    pub(super) fn log(&self) -> Vec<String> {
        let log = self.call("POST", "se/log", r#"{"type":"browser"}"#).expect("it was asked for at the start");
        log.as_array().expect("a list").iter().map(|line| format!("{}: {}", line["level"], line["message"])).collect()
    }

    /// Lets pages be dark, or light.
    pub(super) fn prefers(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Makes the page so wide and high, in pixels; `None`: as it was.
    pub(super) fn resize(&self, size: Option<(u32, u32)>) {
        let Some((width, height)) = size else {
            self.devtools("Emulation.clearDeviceMetricsOverride", &json!({}));
            return;
        };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Lets pages read and write the clipboard, as a person's click does.
    pub(super) fn allow_clipboard(&self) {
        let permissions = json!(["clipboardReadWrite", "clipboardSanitizedWrite"]);
        self.devtools("Browser.grantPermissions", &json!({ "permissions": permissions }));
    }

    /// Opens another tab, and goes on there.
    pub(super) fn new_tab(&self) -> String {
        let before = string(self.call("GET", "window", "").expect("there is a tab"));
        let tab = self.post("window/new", &json!({ "type": "tab" }));
        self.post("window", &json!({ "handle": tab["handle"] }));
        before
    }

    /// Goes on in that tab.
    pub(super) fn switch_to(&self, tab: &str) {
        self.post("window", &json!({ "handle": tab }));
    }

    /// Keeps a picture of the page from its top to its end, for people to look at: `target/screenshots/NAME.png`.
    pub(super) fn screenshot(&self, name: &str) {
        let size = self.devtools("Page.getLayoutMetrics", &json!({}))["cssContentSize"].take();
        let (width, height) = (&size["width"], size["height"].as_f64().unwrap_or_default().min(HIGHEST_PICTURE));
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let whole = json!({ "format": "png", "clip": clip, "captureBeyondViewport": true });
        let picture = string(self.devtools("Page.captureScreenshot", &whole)["data"].take());
        let folder = screenshots();
        fs::create_dir_all(&folder).expect("target is ours");
        let picture = BASE64_STANDARD.decode(picture).expect("base64, as the protocol says");
        fs::write(folder.join(format!("{name}.png")), picture).expect("target is ours");
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    fn find(&self, selector: &str) -> Result<String, Failed> {
        let body = json!({ "using": "css selector", "value": selector }).to_string();
        self.call("POST", "element", &body).map(|element| string(element[ELEMENT].clone()))
    }

    /// Waits for the element, and until `act` can be done to it: it may be covered, or the page on its way elsewhere.
    fn with(&self, selector: &str, act: impl Fn(&str) -> Result<Value, Failed>) {
        let mut last = None;
        let done = eventually_or(|| {
            let result = self.find(selector).and_then(|element| act(&element));
            result.map_err(|error| last = Some(error)).ok()
        });
        done.unwrap_or_else(|| panic!("{selector} at {}: {last:?}\n{}", self.url(), self.text()));
    }

    fn post(&self, command: &str, body: &Value) -> Value {
        let body = body.to_string();
        self.call("POST", command, &body).unwrap_or_else(|error| panic!("{command} {body}: {error:?}"))
    }

    fn call(&self, method: &str, command: &str, body: &str) -> Result<Value, Failed> {
        let path = format!("/session/{}/{command}", self.session);
        let answer = http::over_tcp(&self.address, method, &path, &[JSON], body);
        let value = answer.json()["value"].take();
        if answer.status == 200 {
            return Ok(value);
        }
        Err(["error", "message"].map(|field| value[field].as_str().unwrap_or_default().to_owned()).into())
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        if thread::panicking() {
            // It fails only where the browser has ended already; its other processes end with it.
            let _ = kill_process(self.browser, Signal::KILL);
        } else {
            // Asked softly it ends whole: what is killed may write to its folder after that was removed.
            http::over_tcp(&self.address, "DELETE", &format!("/session/{}", self.session), &[JSON], "");
        }
        let _ = self.driver.0.kill();
        let folder = self.folder.take().map(TempDir::keep).unwrap_or_default();
        for _ in 0..REMOVALS {
            if fs::remove_dir_all(&folder).is_ok() {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");

/// Below the folder that cargo keeps for the tests.
fn screenshots() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is a folder in target");
    target.join("screenshots")
}

fn capabilities(languages: &str, front: Option<&Front>, folder: &Path) -> Value {
    let mut rules = String::new();
    let mut arguments: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
    if let Some(front) = front {
        for name in front.names() {
            write!(rules, "MAP {name}:443 {}, ", front.address()).expect("text takes it");
        }
        arguments.push(format!("--ignore-certificate-errors-spki-list={}", front.spki()));
    }
    // No page of ours needs anybody else. What asks for one nevertheless fails at once, and shows in the log.
    rules.push_str("MAP * ~NOTFOUND, EXCLUDE 127.0.0.1");
    arguments.extend([
        format!("--host-resolver-rules={rules}"),
        format!("--user-data-dir={}", folder.join("profile").display()),
        format!("--window-size={},{}", SIZE.0, SIZE.1),
    ]);
    json!({
        "browserName": "chrome",
        "timeouts": { "pageLoad": PAGE_LOAD_MS },
        "goog:loggingPrefs": { "browser": "ALL" },
        "goog:chromeOptions": { "args": arguments, "prefs": { "intl.accept_languages": languages } },
    })
}

/// As [`eventually`], for who has more to say of what did not come.
fn eventually_or<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let mut looks = 0_u32;
    eventually("a page gets there, or stays away for long", || {
        looks += 1;
        let found = look();
        (found.is_some() || looks > LOOKS).then_some(found)
    })
}

/// How often a page is looked at before it is given up: each look takes at least as long as a pause.
const LOOKS: u32 = 1000;

fn string(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => panic!("text was expected, not {other}"),
    }
}
