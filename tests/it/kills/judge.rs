//! What the issuers' records and the callers' log say, held against the rules.

use std::{collections::BTreeMap, fmt, time::Duration};

use consentry::sandbox::Entry;

use super::{
    TIMEOUT,
    issuers::{Issuers, Kind, TOKEN_SECONDS, granted},
    load::{Handed, Load},
};

/// What happened at the issuers.
#[derive(Debug, Default)]
pub(super) struct Counts {
    exchanges: usize,
    fetched: usize,
    /// Spent tokens that were sent again within their grace.
    in_grace: usize,
    /// Spent tokens that were sent again once that could harm nobody.
    harmless: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exchanges, fetched, in_grace, harmless } = self;
        write!(
            f,
            "{exchanges} exchanges, {fetched} tokens handed out, 0 forbidden replays, {in_grace} within grace, {harmless} harmless"
        )
    }
}

/// Panics with what is against the rules.
pub(super) fn judge(issuers: &Issuers, load: &Load<'_>) -> Counts {
    let handed = load.handed();
    let mut counts = Counts { fetched: handed.len(), ..Counts::default() };
    for kind in Kind::ALL {
        let issuer = issuers.of(kind).stand.issuer();
        assert_eq!(issuer.record_dropped(), 0, "the record is whole");
        let entries = issuer.record();
        counts.exchanges += granted(&entries).len();
        counts.in_grace += entries.iter().filter(|entry| entry.in_grace).count();
        let replays: Vec<&Entry> = entries.iter().filter(|entry| entry.replay).collect();
        counts.harmless += replays.len();
        assert!(kind == Kind::Harmless || replays.is_empty(), "replays at {kind:?}: {replays:?}");
        for replay in &replays {
            could_harm_nobody(replay, &entries);
        }
        let of_kind: Vec<&Handed> = handed.iter().filter(|handed| handed.kind == kind).collect();
        nothing_that_was_handed_out_was_lost(&of_kind, &entries);
        never_an_older_one(&of_kind);
    }
    counts
}

/// A replay that the rules allow: the last access token that is known to have arrived has lapsed, and nothing but its own
/// authorization ended with it.
fn could_harm_nobody(replay: &Entry, entries: &[Entry]) {
    let own = replay.authorization.expect("a replay is of an authorization");
    assert!(replay.killed.iter().all(|killed| *killed == own), "a replay ended others: {replay:?}");
    let Some(before) = replay.token.and_then(|token| token.checked_sub(1)) else { return };
    let gave =
        granted(entries).into_iter().find(|entry| entry.authorization == Some(own) && entry.token == Some(before));
    let gave = gave.expect("a token that is spent was given");
    // The access token's life is counted from when the worker asked, which the issuer does not know.
    let lapsed = gave.at + Duration::from_secs(TOKEN_SECONDS) - TIMEOUT;
    assert!(replay.at >= lapsed, "a replay while an access token was alive: {replay:?} after {gave:?}");
}

/// Whoever was given an access token may rely on the refresh token that came with it: neither the one that it was
/// exchanged for nor an older one is ever sent again, not even within a grace.
fn nothing_that_was_handed_out_was_lost(handed: &[&Handed], entries: &[Entry]) {
    let granted = granted(entries);
    let mut known: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for Handed { organization, token, .. } in handed.iter().copied() {
        let from = granted.get(token.serial).expect("every token is from an exchange");
        assert_eq!(from.authorization, Some(token.authorization), "serials count granted exchanges");
        assert_eq!(from.user.as_deref(), Some(organization.as_str()), "a token of somebody else");
        let spent = from.token.expect("a refresh token was exchanged");
        let newest = known.entry(token.authorization).or_insert((from.number, spent));
        *newest = (*newest).max((from.number, spent));
    }
    for entry in entries {
        let Some((authorization, sent)) = entry.authorization.zip(entry.token) else { continue };
        if let Some((number, spent)) = known.get(&authorization)
            && entry.number > *number
        {
            assert!(sent > *spent, "token {spent} had been exchanged and its answer used, and yet: {entry:?}");
        }
    }
}

/// Whoever asks after somebody was answered is not given an older token than that one.
fn never_an_older_one(handed: &[&Handed]) {
    let mut by_organization: BTreeMap<&str, Vec<&Handed>> = BTreeMap::new();
    for handed in handed {
        by_organization.entry(&handed.organization).or_default().push(handed);
    }
    for (organization, answers) in by_organization {
        // In the order of the answers; the newest token of all answers up to each.
        let newest: Vec<usize> = answers
            .iter()
            .scan(0, |newest, handed| {
                *newest = (*newest).max(handed.token.serial);
                Some(*newest)
            })
            .collect();
        for handed in &answers {
            let before = answers.partition_point(|other| other.answered < handed.asked);
            let known = before.checked_sub(1).map_or(0, |last| newest[last]);
            assert!(handed.token.serial >= known, "{organization} went back from token {known} to {handed:?}");
        }
    }
}
