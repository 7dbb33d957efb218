//! What may stand in a configuration file: anything.

use bolero::check;

use super::*;
use crate::tests::{Edit, edited};

/// What somebody wrote where no secret belongs.
const SECRET: &str = "hush-Secret-in-a-file";
/// The longest that is said about a file, in bytes: twenty problems, each with its place.
const LONGEST: usize = 20 * 1000;

#[test]
fn a_configuration_is_taken_or_its_faults_are_named_without_a_secret() {
    let text = format!(
        "client_secret = \"{SECRET}\"\n[providers.p]\nkind = \"oauth2\"\nclient_id = \"007\"\nclient_secret = \"{SECRET}\"\n\
         scopes = [\"a\"]\nmax_per_minute = 60\ngrace = \"5s\"\n[refresh]\nat = 0.75\ntimeout = \"10s\"\n[[access]]\nuid = 1\n\
         role = \"fetch\"\norganizations = [\"DK-*\"]\n[consent]\nwarn_before = [\"30d\"]\n[log]\nlevel = \"info\"\n"
    );
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        // What moves the secret to a key whose value is no secret makes it none.
        let moves = |edit: &&Edit| matches!(edit, Edit::Copy(..) | Edit::Remove(..));
        let edits: Vec<Edit> = edits.iter().filter(|edit| !moves(edit)).copied().collect();
        let bytes = edited(text.as_bytes(), &edits);
        let Ok(text) = std::str::from_utf8(&bytes) else { return };
        let Err(error) = read(FILE, text, []) else { return };
        let error = error.to_string();
        assert!(!error.contains(SECRET), "{error}");
        assert!(!error.is_empty() && error.len() <= LONGEST, "{} bytes: {error}", error.len());
    });
}

#[test]
fn the_reference_is_taken_or_its_faults_are_named_however_it_is_spoilt() {
    let reference = reference_with_examples();
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let bytes = edited(reference.as_bytes(), edits);
        let Ok(text) = std::str::from_utf8(&bytes) else { return };
        if let Err(error) = read(FILE, text, []) {
            assert!(!error.to_string().is_empty());
        }
    });
}
