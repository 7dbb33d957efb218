//! What stands behind `/c/` in a request: anything that a person, a scanner of mail or an attacker puts there.

use bolero::check;

use super::*;
use crate::tests::{Edit, allocated, edited};

#[test]
fn a_token_opens_only_as_it_was_made() {
    let links = links(1, "https://connect.example.com");
    let link = links.make(&invitation(), NOW);
    let made = token(&link);
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let Ok(text) = String::from_utf8(edited(made.as_bytes(), edits)) else { return };
        let (opened, asked) = allocated(|| links.open(&text, NOW));
        assert!(asked <= 4 * text.len() + 4096, "{asked} bytes for a token of {}", text.len());
        match opened {
            Ok(opened) => assert!(opened == invitation() && text == made, "{text}"),
            Err(error) => assert_eq!(error, LinkError::Unreadable),
        }
    });
}
