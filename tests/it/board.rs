//! The board, over the real listener: who may look, what is found, and what is in no page.

use std::fs;

use serde_json::json;

use crate::harness::{
    http::{self, Headers, Response, form},
    worker::{Setup, Worker},
};

/// Nobody listens there: port 9 is for a service that throws away what it is sent.
const UNREACHABLE: &str = "kind = \"oauth2\"\ntoken_url = \"http://127.0.0.1:9/token\"\nclient_id = \"isv_nobody\"";
/// The same, where people give consent.
const CONSENTING: &str = "kind = \"visma-connect\"\nissuer = \"\"\ntoken_url = \"http://127.0.0.1:9/token\"\n\
    authorize_url = \"http://127.0.0.1:9/authorize\"\nclient_id = \"isv_nobody\"";
const TOKEN: &str = "a-token-for-the-board-of-the-tests";
const FORM: &str = "application/x-www-form-urlencoded";
/// More than a page, by a little.
const ORGANIZATIONS: usize = 120;

fn worker(lines: &str) -> Worker {
    worker_that(lines, UNREACHABLE)
}

/// A worker with these lines of `[http.board]`, and a provider with those.
fn worker_that(lines: &str, provider: &str) -> Worker {
    let worker = Setup::default().provider("unreachable", "hush-unreachable", provider).prepare();
    let token = worker.file("board.token");
    fs::write(&token, TOKEN).expect("the folder is ours");
    worker.plant(TOKEN);
    let lines = lines.replace("TOKEN", &token.display().to_string());
    worker.reconfigure(|text| format!("{text}\n[http.board]\n{lines}\n"));
    worker.restart()
}

fn ask(worker: &Worker, host: &str, method: &str, path: &str, headers: Headers<'_>, body: &str) -> Response {
    http::over_tcp_for(host, &worker.http().to_string(), method, path, headers, body)
}

fn post(worker: &Worker, path: &str, headers: &[(&str, &str)], fields: &[(&str, &str)]) -> Response {
    let mut headers = headers.to_vec();
    headers.push(("content-type", FORM));
    ask(worker, &worker.http().to_string(), "POST", path, &headers, &form(fields))
}

/// Enrols organizations whose consents end one after the other.
fn fill(worker: &Worker) {
    let lines: Vec<String> = (0..ORGANIZATIONS)
        .map(|number| {
            let secret = format!("hush-board-{number}");
            worker.plant(&secret);
            let ends = format!("2099-{:02}-{:02}T00:00:00Z", 1 + number / 28, 1 + number % 28);
            json!({
                "organization": format!("customer-{number:03}"), "provider": "unreachable", "refresh_token": secret,
                "expires_at": ends, "labels": { "name": format!("<b>Bakery</b> {}", 1000 - number) },
            })
            .to_string()
        })
        .collect();
    let file = worker.file("lines.jsonl");
    fs::write(&file, lines.join("\n")).expect("the folder is ours");
    let imported = worker.command(&["import", file.to_str().expect("a plain name")]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
}

/// The ids in a page's table, in order.
fn ids(page: &str) -> Vec<String> {
    let rows = page.split("<th scope=\"row\"><span class=\"id\">").skip(1);
    rows.map(|rest| rest.split('<').next().unwrap_or_default().to_owned()).collect()
}

/// Where a page says that the next one is.
fn next(page: &str) -> Option<String> {
    let (_, rest) = page.split_once("rel=\"next\" href=\"")?;
    let address = rest.split(['#', '"']).next().unwrap_or_default();
    Some(format!("/{}", address.replace("&amp;", "&")))
}

/// What every form of a page has to send along.
fn form_word(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"form\" value=\"").expect("a form");
    rest.split('"').next().unwrap_or_default().to_owned()
}

#[test]
fn without_configuration_there_is_no_board() {
    let worker = Setup::default().start();
    for path in ["/board", "/board/", "/board/results", "/board/board.css", "/board/link"] {
        assert_eq!(worker.inside(path).status, 404, "{path}");
    }
}

#[test]
fn without_a_token_the_board_is_for_this_machine_alone_and_tells_browsers_to_be_strict() {
    let worker = worker("enabled = true");
    for host in ["localhost", "127.0.0.1:9464", "[::1]"] {
        assert_eq!(ask(&worker, host, "GET", "/board", &[], "").status, 200, "{host}");
    }
    for path in ["/board", "/board/results"] {
        assert_eq!(ask(&worker, "rebound.example", "GET", path, &[], "").status, 403, "{path}");
        let proxied = ask(&worker, "localhost", "GET", path, &[("x-forwarded-for", "192.0.2.1")], "");
        assert_eq!(proxied.status, 403, "{path}");
    }
    for path in ["/board", "/board/board.css", "/board/board.js", "/board/icon.svg"] {
        let answer = worker.inside(path);
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
    }
    let page = worker.inside("/board").body;
    assert!(!page.contains("style=\"") && !page.contains("<script>") && !page.contains("http://"), "{page}");
    // Nobody logged in, so that there is nothing to log out of.
    assert!(!page.contains("Log out"), "{page}");
}

#[test]
fn organizations_are_searched_sorted_and_paged_and_their_labels_stay_text() {
    let worker = worker("enabled = true");
    fill(&worker);
    let first = worker.inside("/board");
    assert_eq!(first.status, 200);
    assert!(first.body.contains("120 organizations") && first.body.contains("&lt;b&gt;Bakery&lt;/b&gt; 1000"));
    assert!(!first.body.contains("<b>"), "a label became markup");
    let (mut seen, mut page) = (Vec::new(), first.body);
    loop {
        seen.extend(ids(&page));
        let Some(address) = next(&page) else { break };
        page = worker.inside(&address).body;
    }
    let all: Vec<String> = (0..ORGANIZATIONS).map(|number| format!("customer-{number:03}")).collect();
    assert_eq!(seen, all, "each once, the soonest end first");

    for (path, found) in [
        ("/board?q=customer-042", &["customer-042"][..]),
        ("/board?q=OMER-04&ends=past", &[]),
        ("/board?q=bakery%3C%2Fb%3E+881", &["customer-119"]),
        ("/board?q=90&sort=id", &["customer-090", "customer-010", "customer-091", "customer-092"]),
        ("/board/results?ends=2099-01-05&sort=id", &["customer-004"]),
        ("/board?state=lost", &[]),
        ("/board?provider=other", &[]),
    ] {
        let answer = worker.inside(path);
        assert_eq!(answer.status, 200, "{path}");
        let ids = ids(&answer.body);
        assert!(ids.iter().map(String::as_str).take(found.len().max(1)).eq(found.iter().copied()), "{path}: {ids:?}");
    }
    // It is all there to be read, as is known from the API, and no link can be made where the world cannot reach us.
    assert!(!worker.inside("/board").body.contains("Copy renewal link"));
}

#[test]
fn with_a_token_people_log_in_and_the_browser_never_holds_it() {
    let worker = worker("enabled = true\ntoken_file = \"TOKEN\"");
    let door = worker.inside("/board?q=abc");
    assert_eq!(door.status, 401);
    assert!(door.body.contains("name=\"to\" value=\"q=abc\""), "{}", door.body);
    assert_eq!(worker.inside("/board/results").status, 401);
    assert_eq!(worker.inside("/board/board.css").status, 200, "the login page has its looks");

    let wrong = post(&worker, "/board/login", &[], &[("token", "not-the-token-at-all")]);
    assert_eq!((wrong.status, wrong.header("set-cookie")), (401, None));
    let foreign = [("origin", "https://elsewhere.example")];
    assert_eq!(post(&worker, "/board/login", &foreign, &[("token", TOKEN)]).status, 403);

    let entered = post(&worker, "/board/login", &[], &[("token", TOKEN), ("to", "q=abc")]);
    assert_eq!((entered.status, entered.header("location")), (303, Some("../board?q=abc")));
    let cookie = entered.header("set-cookie").expect("a session").to_owned();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict; Max-Age=43200") && !cookie.contains("Path"), "{cookie}");
    assert!(!format!("{entered:?}").contains(TOKEN));
    let session = cookie.split(';').next().unwrap_or_default();
    let cookies = [("cookie", session)];
    // With a token it does not matter by which name it is asked for.
    let page = ask(&worker, "board.example", "GET", "/board", &cookies, "");
    assert_eq!(page.status, 200);
    assert!(!format!("{page:?}").contains(TOKEN));

    let word = form_word(&page.body);
    let fields = [("form", word.as_str()), ("org", "customer-1")];
    assert_eq!(post(&worker, "/board/link", &[], &fields).status, 401, "no session");
    assert_eq!(post(&worker, "/board/link", &cookies, &fields[1..]).status, 403, "not from a page of ours");
    let elsewhere = [("cookie", session), ("sec-fetch-site", "cross-site")];
    assert_eq!(post(&worker, "/board/link", &elsewhere, &fields).status, 403);
    assert_eq!(post(&worker, "/board/logout", &cookies, &[]).status, 403);
    assert_eq!(post(&worker, "/board/logout", &cookies, &fields).status, 303);
    assert_eq!(ask(&worker, "localhost", "GET", "/board", &cookies, "").status, 401, "the session is over");
}

#[test]
fn a_renewal_link_is_made_for_a_form_of_the_board_where_the_world_can_reach_the_pages() {
    let lines = "enabled = true\n[consent]\npublic_url = \"https://connect.example.com/base\"";
    let worker = worker_that(lines, CONSENTING);
    fill(&worker);
    let page = worker.inside("/board?q=customer-001").body;
    assert!(page.contains("Copy renewal link<span class=\"unseen\"> for customer-001</span>"), "{page}");
    let word = form_word(&page);
    let json = [("accept", "application/json"), ("sec-fetch-site", "same-origin")];
    let made = post(&worker, "/board/link", &json, &[("form", &word), ("org", "customer-001")]);
    assert_eq!(made.status, 200, "{made:?}");
    let url = made.json()["url"].as_str().expect("a link").to_owned();
    assert!(url.starts_with("https://connect.example.com/base/"), "{url}");
    worker.plant(&url);
    let shown = post(&worker, "/board/link", &[], &[("form", &word), ("org", "customer-001")]);
    assert_eq!(shown.status, 200);
    assert!(shown.body.contains("readonly autofocus value=\"https://connect.example.com/base/"), "{}", shown.body);

    assert_eq!(post(&worker, "/board/link", &json, &[("form", &word), ("org", "nobody")]).status, 404);
    assert_eq!(post(&worker, "/board/link", &json, &[("form", &word), ("org", "no body")]).status, 400);
    assert_eq!(post(&worker, "/board/link", &json, &[("form", "x"), ("org", "customer-001")]).status, 403);
}

#[test]
fn who_guesses_waits_and_a_token_that_is_replaced_ends_its_sessions() {
    let worker = worker("enabled = true\ntoken_file = \"TOKEN\"");
    let entered = post(&worker, "/board/login", &[], &[("token", TOKEN)]);
    let session =
        entered.header("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a session").to_owned();
    let cookies = [("cookie", session.as_str())];
    assert_eq!(ask(&worker, "a", "GET", "/board", &cookies, "").status, 200);
    fs::write(worker.file("board.token"), "another-token-for-the-board").expect("the folder is ours");
    assert_eq!(ask(&worker, "a", "GET", "/board", &cookies, "").status, 401);
    fs::write(worker.file("board.token"), "short").expect("the folder is ours");
    assert_eq!(ask(&worker, "a", "GET", "/board", &cookies, "").status, 503, "nobody gets in by a token that is none");
    fs::write(worker.file("board.token"), "another-token-for-the-board").expect("the folder is ours");

    let guess = || post(&worker, "/board/login", &[], &[("token", "not-the-token-at-all")]).status;
    let guesses: Vec<u16> = (0..12).map(|_| guess()).collect();
    assert!(guesses[..5].iter().all(|status| *status == 401), "{guesses:?}");
    assert!(guesses.contains(&429), "{guesses:?}");
}
