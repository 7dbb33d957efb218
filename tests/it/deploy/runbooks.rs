//! The commands of the runbooks, run as they are written.

use std::fs;

use consentry::model::Usage;
use serde_json::json;

use super::{blocks, path};
use crate::harness::{
    sandbox::{KEYS, Stand},
    worker::Setup,
};

/// What the command line says of a command that it does not understand.
const MISUNDERSTOOD: &str = "usage: consentry";

#[test]
fn every_command_of_the_runbooks_is_one_that_the_worker_understands() {
    let stand = Stand::start(3600);
    let worker = Setup::default().sandbox_as(&stand, "visma-connect", KEYS).start();
    let consent = stand.consent("birgit", Usage::Reuse, &["123456"]);
    let enrolment = json!({ "provider": "visma-connect", "refresh_token": consent });
    assert_eq!(worker.enrol("123456", &enrolment).status, 201);
    let token = worker.file("token.txt");
    fs::write(&token, stand.consent("birgit", Usage::Reuse, &["123456"])).expect("the folder is ours");
    let copy = worker.file("copy.age");

    let mut tried = 0;
    let mut pages: Vec<_> =
        fs::read_dir(path("docs/runbooks")).expect("pages").map(|entry| entry.expect("one").path()).collect();
    pages.sort();
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page");
        for line in blocks(&text, "sh").iter().flat_map(|block| block.lines()) {
            let Some(arguments) = line.strip_prefix("consentry ") else { continue };
            let arguments = arguments
                .replace("token.txt", token.to_str().expect("a path of ours"))
                .replace("/tmp/consentry.age", copy.to_str().expect("a path of ours"));
            let ended = worker.command(&arguments.split(' ').collect::<Vec<_>>());
            let complaint = String::from_utf8_lossy(&ended.stderr).into_owned();
            let code = ended.status.code().unwrap_or_else(|| panic!("{line} was killed"));
            assert!(!complaint.contains(MISUNDERSTOOD), "{}: {line}: {complaint}", page.display());
            // What looks, and changes nothing, also succeeds.
            if ["status", "health", "org list", "org show"].iter().any(|harmless| arguments.starts_with(harmless)) {
                let removed = complaint.contains("unknown organization") || code == 3;
                assert!(code == 0 || removed, "{}: {line}: {code} {complaint}", page.display());
            }
            tried += 1;
            // Removed by one page, it is there again for the next.
            worker.enrol("123456", &enrolment);
        }
    }
    assert!(tried > 30, "{tried}");
}
