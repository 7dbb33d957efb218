//! Many enrolments in one request, each as if it had come by itself: with its own permission, its own line in the audit log
//! and its own result. What this spares is the request, and the waiting for one sync after the other.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{StatusCode, Uri},
};
use tokio::task::JoinSet;

use super::{
    Api, Peer,
    audit::{self, Action},
    problems::Refusal,
    request,
    routes::{Answer, json, reach_to_operate, status_of},
};
use crate::{
    config::Role,
    keeper::{Enrolled, Keeper},
    model::{Fingerprint, GrantId, OrganizationId},
    task,
    wire::{Code, EnrolmentLine, EnrolmentResult, EnrolmentResults, MAX_ENROLMENT_LINES, MAX_ENROLMENTS},
};

/// How many such requests are worked on at once; others wait, their bodies unread. Each may hold [`MAX_ENROLMENTS`] bytes of
/// lines, and what was made of them.
pub(super) const AT_ONCE: usize = 16;

/// A line that is not empty.
pub(super) struct Line {
    /// From 1.
    pub(super) number: u32,
    pub(super) read: Result<EnrolmentLine, Refusal>,
}

/// `POST /v1/organizations`. Lines that depend on each other, being of one organization or with one secret, take effect in their order. Nothing is
/// exchanged meanwhile: a line that is to be proven first is refused, since it could hold up the others for as long as an issuer
/// likes.
pub(super) async fn enrol(State(api): State<Api>, Extension(peer): Extension<Peer>, uri: Uri, body: Body) -> Answer {
    reach_to_operate(api.access().scope(&peer, Role::Operate), &peer)?;
    request::no_query(&uri)?;
    let keeper = api.keeper()?;
    let turn = Arc::clone(&api.0.enrolling).acquire_owned().await.map_err(|_| Refusal::internal())?;
    let lines = lines(&request::body_up_to(MAX_ENROLMENTS, body).await?)?;
    let work = api.clone();
    let results = api
        .change(async move {
            let _turn = turn;
            Ok::<_, Refusal>(enrol_all(&work, &keeper, &peer, lines).await)
        })
        .await?;
    Ok(json(StatusCode::OK, &EnrolmentResults { results }))
}

/// Reads the lines. One that makes no sense harms no other; too many are refused before anything is done.
pub(super) fn lines(body: &[u8]) -> Result<Vec<Line>, Refusal> {
    let mut lines = Vec::new();
    for (number, text) in (1..).zip(body.split(|byte| *byte == b'\n')) {
        let text = text.trim_ascii();
        if text.is_empty() {
            continue;
        }
        if lines.len() == MAX_ENROLMENT_LINES {
            let detail = format!("a request has at most {MAX_ENROLMENT_LINES} lines");
            return Err(Refusal::new(Code::TooLarge, detail));
        }
        lines.push(Line { number, read: request::enrolment_line(text) });
    }
    Ok(lines)
}

async fn enrol_all(api: &Api, keeper: &Arc<Keeper>, peer: &Peer, lines: Vec<Line>) -> Vec<EnrolmentResult> {
    // What a task that panics leaves behind.
    let unknown = |line: &Line| result_of(line.number, None, Err(Refusal::internal()));
    let mut results: Vec<EnrolmentResult> = lines.iter().map(unknown).collect();
    let chains = chains(lines.iter().map(|line| held_by(keeper, line)));
    let mut lines: Vec<Option<Line>> = lines.into_iter().map(Some).collect();
    let mut tasks = JoinSet::new();
    for chain in chains {
        let linked: Vec<_> = chain.into_iter().filter_map(|place| Some((place, lines[place].take()?))).collect();
        let (api, keeper, peer) = (api.clone(), Arc::clone(keeper), peer.clone());
        tasks.spawn(task::boxed(async move {
            let mut done = Vec::with_capacity(linked.len());
            for (place, line) in linked {
                done.push((place, enrol_line(&api, &keeper, &peer, line).await));
            }
            done
        }));
    }
    while let Some(ended) = tasks.join_next().await {
        for (place, result) in ended.into_iter().flatten() {
            results[place] = result;
        }
    }
    results
}

async fn enrol_line(api: &Api, keeper: &Keeper, peer: &Peer, Line { number, read }: Line) -> EnrolmentResult {
    let EnrolmentLine { organization, enrolment } = match read {
        Ok(line) => line,
        Err(refusal) => return result_of(number, None, Err(refusal)),
    };
    let permitted = api.permitted_on(&organization, peer, Role::Operate, Action::Enrol);
    let permitted = permitted.and_then(|()| match enrolment.verify {
        Some(false) => Ok(()),
        _ => Err(Refusal::bad_request(
            "verify has to be false here; what is to be proven first is enrolled by PUT /v1/organizations/{org}",
        )),
    });
    if let Err(refusal) = permitted {
        return result_of(number, Some(organization), Err(refusal));
    }
    let result = keeper.enrol(organization.clone(), enrolment).await;
    audit::record_enrolment(peer, &organization, &result);
    result_of(number, Some(organization), result.map_err(Refusal::from))
}

fn result_of(line: u32, organization: Option<OrganizationId>, result: Result<Enrolled, Refusal>) -> EnrolmentResult {
    match result {
        Ok(enrolled) => {
            let (status, changed) = (status_of(&enrolled).as_u16(), Some(enrolled.changed));
            EnrolmentResult { line, organization, status, changed, problem: None, retry_after: None }
        }
        Err(refusal) => {
            let (status, retry_after) = (refusal.code.status(), refusal.retry_after());
            EnrolmentResult { line, organization, status, changed: None, problem: Some(refusal.problem()), retry_after }
        }
    }
}

/// What two lines must not work on at the same time.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Held {
    Organization(OrganizationId),
    Secret(Fingerprint),
    Grant(GrantId),
}

fn held_by(keeper: &Keeper, line: &Line) -> Vec<Held> {
    let Ok(EnrolmentLine { organization, enrolment }) = &line.read else { return Vec::new() };
    let (secret, grants) = keeper.touched_by(organization, enrolment);
    let own = [Held::Organization(organization.clone())];
    own.into_iter().chain(secret.map(Held::Secret)).chain(grants.into_iter().map(Held::Grant)).collect()
}

/// The places of lines, put together where they hold something in common, also by way of others; each chain in the order of the
/// lines.
fn chains(lines: impl Iterator<Item = Vec<Held>>) -> Vec<Vec<usize>> {
    let mut first_with: HashMap<Held, usize> = HashMap::new();
    // Of each line, an earlier one of its chain, or itself.
    let mut earlier: Vec<usize> = Vec::new();
    for (place, holds) in lines.enumerate() {
        earlier.push(place);
        for held in holds {
            let with = *first_with.entry(held).or_insert(place);
            let (one, other) = (root(&earlier, with), root(&earlier, place));
            earlier[one.max(other)] = one.min(other);
        }
    }
    let mut chains: Vec<Vec<usize>> = vec![Vec::new(); earlier.len()];
    for place in 0..earlier.len() {
        chains[root(&earlier, place)].push(place);
    }
    chains.retain(|chain| !chain.is_empty());
    chains
}

/// The first line of the chain that a line is in.
fn root(earlier: &[usize], mut place: usize) -> usize {
    while earlier[place] != place {
        place = earlier[place];
    }
    place
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(organization: u8, secret: u8) -> Vec<Held> {
        vec![
            Held::Organization(organization.to_string().parse().expect("an id")),
            Held::Secret(Fingerprint([secret; 16])),
        ]
    }

    #[test]
    fn only_lines_with_something_in_common_wait_for_each_other() {
        let of = |lines: &[(u8, u8)]| chains(lines.iter().map(|(organization, secret)| held(*organization, *secret)));
        assert_eq!(of(&[(1, 1), (2, 2), (3, 3)]), [[0], [1], [2]]);
        assert_eq!(of(&[(1, 1), (2, 2), (1, 3)]), [vec![0, 2], vec![1]]);
        assert_eq!(of(&[(1, 1), (2, 2), (3, 1)]), [vec![0, 2], vec![1]]);
        // The third has something in common with both.
        assert_eq!(of(&[(1, 1), (2, 2), (1, 2), (3, 3)]), [vec![0, 1, 2], vec![3]]);
        assert_eq!(chains([vec![], vec![]].into_iter()), [[0], [1]]);
    }

    proptest! {
        #[test]
        fn every_line_is_in_one_chain_in_order_and_nothing_is_in_two(lines in prop::collection::vec((0..9_u8, 0..9_u8), 0..40)) {
            let chains = chains(lines.iter().map(|(organization, secret)| held(*organization, *secret)));
            let mut all: Vec<usize> = chains.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lines.len()).collect::<Vec<_>>());
            let chain_of = |place: usize| chains.iter().position(|chain| chain.contains(&place));
            for (one, (organization, secret)) in lines.iter().enumerate() {
                for (other, with) in lines.iter().enumerate().skip(one) {
                    if *organization == with.0 || *secret == with.1 {
                        prop_assert_eq!(chain_of(one), chain_of(other));
                    }
                }
            }
            prop_assert!(chains.iter().all(|chain| chain.is_sorted()));
        }
    }

    #[test]
    fn empty_lines_are_counted_and_are_no_lines() {
        let line = r#"{"organization":"1","provider":"p","refresh_token":"r"}"#;
        let read = lines(format!("\n{line}\r\n  \n{{bad\n{line}").as_bytes()).expect("few");
        let seen: Vec<_> = read.iter().map(|line| (line.number, line.read.is_ok())).collect();
        assert_eq!(seen, [(2, true), (4, false), (5, true)]);
        assert!(lines(b"\n\n").expect("none").is_empty());
    }

    #[test]
    fn too_many_lines_are_refused_as_a_whole() {
        let body = "{}\n".repeat(MAX_ENROLMENT_LINES);
        assert_eq!(lines(body.as_bytes()).expect("just few enough").len(), MAX_ENROLMENT_LINES);
        let refusal = lines(format!("{body}\n{{}}").as_bytes()).err().expect("one too many");
        assert_eq!(refusal.code, Code::TooLarge);
    }
}
