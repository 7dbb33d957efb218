//! What a caller may send: anything that hyper lets through.

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use bolero::check;

use super::super::{enrolments, problems::Refusal, request};
use crate::{
    model::OrganizationId,
    tests::{Edit, allocated, edited},
};

/// A secret that a wrong body holds.
const SECRET: &str = "hush-Secret-in-a-body";
/// The longest that is said about a request, in characters.
const LONGEST_REFUSAL: usize = 1000;

fn said(refusal: &Refusal) -> &str {
    let text = refusal.detail();
    assert!(text.chars().count() <= LONGEST_REFUSAL && !text.contains(SECRET), "{text}");
    assert!(!text.chars().any(char::is_control), "{text:?}");
    text
}

#[test]
fn a_body_that_makes_no_sense_is_explained_without_its_values() {
    const BODY: &str = r#"{"provider":"p","refresh_token":"hush-Secret-in-a-body","granted_at":"2026-01-31T12:00:00Z",
        "usage":"one-time","grace":"30s","labels":{"a":"b"},"verify":false,"client_id":"c",
        "client_secret":"hush-Secret-in-a-body"}"#;
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let body = edited(BODY.as_bytes(), edits);
        let (read, asked) = allocated(|| request::enrolment(&body));
        assert!(asked <= 64 * body.len() + 64 * 1024, "{asked} bytes for a body of {}", body.len());
        if let Err(refusal) = read {
            said(&refusal);
        }
    });
}

#[test]
fn a_line_that_makes_no_sense_is_explained_without_its_values_and_harms_no_other() {
    const LINE: &str =
        r#"{"organization":"DK:1","provider":"p","refresh_token":"hush-Secret-in-a-body","verify":false}"#;
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let spoilt = edited(LINE.as_bytes(), edits);
        let body = [LINE.as_bytes(), b"\n", &spoilt, b"\n", LINE.as_bytes()].concat();
        let (read, asked) = allocated(|| enrolments::lines(&body));
        assert!(asked <= 64 * body.len() + 64 * 1024, "{asked} bytes for a body of {}", body.len());
        let lines = match read {
            Ok(lines) => lines,
            Err(refusal) => {
                said(&refusal);
                return;
            }
        };
        let (first, last) = (lines.first().expect("a line"), lines.last().expect("a line"));
        assert!(first.read.is_ok() && last.read.is_ok());
        assert!(lines.is_sorted_by_key(|line| line.number));
        for refusal in lines.iter().filter_map(|line| line.read.as_ref().err()) {
            said(refusal);
        }
    });
}

#[test]
fn a_path_names_a_valid_organization_or_none() {
    check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let path = edited(b"/v1/organizations/DK%3A1%40x/token/refresh", edits);
        let Ok(uri) = Uri::try_from(&path[..]) else { return };
        match request::organization(&uri) {
            Ok(id) => assert!(OrganizationId::is_valid(id.as_str()), "{id}"),
            Err(refusal) => drop(said(&refusal)),
        }
    });
}

#[test]
fn a_query_is_within_its_bounds_or_refused() {
    const QUERY: &[u8] =
        b"/?state=in_doubt&provider=p&expires_within=30d&unused_for=7d&label=a%3Db&label=c=d&limit=7&cursor=NDE&min_ttl=60&revoke=true";
    check!().with_type::<(Vec<Edit>, u16)>().for_each(|(edits, from)| {
        // One key alone is right more often than all of them.
        let pairs: Vec<&[u8]> = QUERY[2..].split(|byte| *byte == b'&').collect();
        let pair = pairs[usize::from(*from) % pairs.len()];
        for query in [QUERY, &[b"/?", pair].concat()] {
            let Ok(uri) = Uri::try_from(&edited(query, edits)[..]) else { continue };
            match request::filter(&uri) {
                Ok(filter) => {
                    assert!((1..=1000).contains(&filter.limit) && filter.labels.len() <= crate::model::MAX_LABELS);
                }
                Err(refusal) => drop(said(&refusal)),
            }
            for refusal in [request::min_ttl(&uri).err(), request::revoke(&uri).err()].into_iter().flatten() {
                said(&refusal);
            }
        }
    });
}

#[test]
fn an_entity_tag_is_one_or_is_refused() {
    check!().with_type::<Vec<Vec<Edit>>>().for_each(|values| {
        let mut headers = HeaderMap::new();
        for edits in values.iter().take(3) {
            let Ok(value) = HeaderValue::from_bytes(&edited(b"W/\"abc\", \"abc\"", edits)) else { return };
            headers.append(header::IF_MATCH, value);
        }
        match request::rejected(&headers) {
            Ok(None) => {}
            Ok(Some(tag)) => {
                let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).expect("in quotes");
                assert!(!inner.contains('"') && tag.len() <= 128, "{tag}");
            }
            Err(refusal) => drop(said(&refusal)),
        }
    });
}
