//! What a worker asks of grants that it does not keep: whose they are, what is to be done about them, and how many there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use consentry::{
    model::{Credential, DoubtReason, FailingReason, Fingerprint, Grant, Organization, ProviderName, Secret, State},
    vault::{
        Change, Stored,
        postgres::{LaneCount, Place},
    },
};

use super::{
    cluster::is_installed,
    due::{DAY, HOUR, ends, grant, id, lapses, now, organization_of, pair, provider},
    store::Replica,
};

impl Replica {
    fn count(&self, steps: &[Duration], warm: &[([u8; 16], Duration)]) -> LaneCount {
        let counts = self.runtime.block_on(self.store.census(steps, warm)).expect("an answer");
        let lane = self.store.lane(&provider());
        counts.into_iter().find(|count| count.lane == lane).expect("it has grants")
    }
}

#[test]
fn persons_and_secrets_are_known_without_reading_every_grant() {
    if !is_installed() {
        return;
    }
    let pair = pair("persons");
    let of = |number, subject: Option<&str>| Grant { subject: subject.map(str::to_owned), ..grant(number, None) };
    let key = |number| {
        let credential = Credential::ApiKey(Secret::new("plain-key"));
        Grant { credential, consent: None, ..of(number, None) }
    };
    pair.one.put_all([of(1, Some("anna")), of(2, Some("berit")), key(3)]);
    let shared = |subject: Option<&str>, but| {
        let store = &pair.other.store;
        pair.other.runtime.block_on(store.may_be_shared(&provider(), subject, id(but))).expect("an answer")
    };
    assert!(!shared(Some("anna"), 1), "a key is nobody's");
    assert!(shared(Some("anna"), 2), "another's");
    assert!(shared(None, 1), "anybody's");
    pair.one.put_all([of(4, Some("anna"))]);
    assert!(shared(Some("anna"), 1) && !shared(Some("berit"), 2));
    pair.one.amend(4, |grant| grant.state = State::Lost);
    assert!(!shared(Some("anna"), 1), "what is lost does not live");
    pair.one.put_all([of(5, None)]);
    assert!(shared(Some("anna"), 1), "whose that is nobody knows");
    let elsewhere: ProviderName = "elsewhere".parse().unwrap();
    let other = pair.one.store.may_be_shared(&elsewhere, None, id(1));
    assert!(!pair.one.runtime.block_on(other).unwrap(), "at another provider it is another person");

    let holder = |fingerprint| pair.one.runtime.block_on(pair.one.store.holder_of(fingerprint)).expect("an answer");
    let first = grant(1, None).fingerprint;
    assert_eq!((holder(first), holder(Fingerprint([9; 16]))), (Some(id(1)), None));
    pair.one.amend(1, |grant| {
        grant.spent = vec![grant.fingerprint];
        grant.fingerprint = Fingerprint([9; 16]);
    });
    assert_eq!((holder(first), holder(Fingerprint([9; 16]))), (Some(id(1)), Some(id(1))), "the spent one as well");
    pair.one.amend(1, |grant| grant.spent.clear());
    assert_eq!((holder(first), holder(Fingerprint([9; 16]))), (None, Some(id(1))));
}

#[test]
fn who_is_to_be_warned_who_is_unfinished_and_what_is_remembered_is_listed() {
    if !is_installed() {
        return;
    }
    let pair = pair("listed");
    let ending = |number, at| {
        let mut grant = grant(number, None);
        ends(&mut grant, Some(at));
        grant
    };
    let (past, soon, later) = (now() - DAY, now() + DAY, now() + 20 * DAY);
    let unfinished = |number| Grant { organizations: Vec::new(), ..grant(number, None) };
    let grave = |number, since| Grant {
        credential: Credential::RefreshToken(Secret::new("")),
        state: State::Lost,
        consent: None,
        since,
        ..unfinished(number)
    };
    pair.one.put_all([
        ending(1, past - DAY),
        ending(2, past),
        ending(3, soon),
        ending(4, later),
        Grant { state: State::Lost, ..ending(5, later - DAY) },
        unfinished(6),
        unfinished(7),
        unfinished(8),
        Grant { state: State::Lost, ..unfinished(9) },
        grave(10, past - DAY),
        grave(11, past),
        grave(12, soon),
    ]);
    let ids = |stored: &[Stored<Grant>]| stored.iter().map(|stored| stored.value.id).collect::<Vec<_>>();
    let (store, on) = (&pair.other.store, &pair.other.runtime);
    assert_eq!(ids(&on.block_on(store.warnings_due(&[&provider()], 9)).unwrap()), [id(1), id(2)]);
    assert_eq!(ids(&on.block_on(store.warnings_due(&[&provider()], 1)).unwrap()), [id(1)], "the soonest to end");
    let other = "another".parse().unwrap();
    assert!(on.block_on(store.warnings_due(&[&other], 9)).unwrap().is_empty(), "of a provider that nobody asked for");
    let attention = on.block_on(store.soonest_to_end(2 * DAY, 9)).unwrap();
    assert_eq!(ids(&attention), [id(1), id(2), id(3), id(5)]);

    let mut found = BTreeSet::new();
    let mut after: Option<Place> = None;
    loop {
        let (page, next) = on.block_on(store.unfinished(after, 3)).unwrap();
        found.extend(ids(&page));
        // As it is given to a caller and back.
        after = next.map(|place| place.to_string().parse().expect("a place"));
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, [6, 7, 8, 9].map(id).into());
    assert_eq!(ids(&on.block_on(store.graves_before(now(), 9)).unwrap()), [id(10), id(11)]);
    assert_eq!(on.block_on(store.grave_count()).unwrap(), 3);
    assert!("01".parse::<Place>().is_err() && "x".repeat(34).parse::<Place>().is_err());
}

#[test]
fn organizations_come_page_by_page_each_once() {
    if !is_installed() {
        return;
    }
    let pair = pair("paged");
    let organization = |number| {
        Change::PutOrganization(Box::new(Organization {
            id: organization_of(number),
            grant: id(1),
            labels: BTreeMap::new(),
            added_at: now(),
        }))
    };
    pair.one.put_all([grant(1, None)]);
    pair.one.commit((0..250).map(organization).collect()).expect("they are stored");
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = pair.other.store.organizations_after(after, 100);
        let (organizations, next) = pair.other.runtime.block_on(page).expect("an answer");
        found.extend(organizations.into_iter().map(|stored| stored.value.id));
        pages += 1;
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((found.len(), pages), (250, 3));
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), (0..250).map(organization_of).collect());
}

#[test]
fn the_database_counts_what_a_census_counts() {
    if !is_installed() {
        return;
    }
    let pair = pair("counted");
    let (late, later, assumed) = (now() - HOUR, now() + HOUR, now() + DAY + HOUR);
    let with = |number, due, change: &dyn Fn(&mut Grant)| {
        let mut grant = grant(number, due);
        change(&mut grant);
        grant
    };
    let three = [1, 2, 3].map(organization_of).to_vec();
    pair.one.put_all([
        with(1, Some(later), &|grant| grant.organizations.clone_from(&three)),
        with(4, Some(late), &|grant| grant.last_fetched_at = Some(now())),
        with(5, Some(later), &|grant| {
            grant.state = State::Failing(FailingReason::ProviderUnavailable);
            lapses(grant, late);
        }),
        with(6, Some(later), &|grant| grant.state = State::Failing(FailingReason::Refused)),
        with(7, None, &|grant| grant.state = State::InDoubt(DoubtReason::NoAnswer)),
        with(8, None, &|grant| {
            grant.state = State::Lost;
            lapses(grant, late);
            ends(grant, Some(now() + DAY / 2));
        }),
        with(9, None, &|grant| {
            grant.paused = true;
            lapses(grant, late);
        }),
        with(10, Some(later), &|grant| ends(grant, Some(late))),
        with(11, Some(later), &|grant| ends(grant, Some(now() + DAY / 2))),
        with(12, Some(later), &|grant| {
            ends(grant, Some(assumed));
            grant.consent.as_mut().expect("a consent").assumed = true;
        }),
        with(13, None, &|grant| grant.organizations.clear()),
        with(14, None, &|grant| {
            grant.organizations.clear();
            grant.state = State::Lost;
            grant.credential = Credential::RefreshToken(Secret::new(""));
        }),
    ]);
    let expected = LaneCount {
        lane: pair.one.store.lane(&provider()),
        active: 3 + 1 + 3,
        failing: 2,
        in_doubt: 1,
        lost: 1,
        paused: 1,
        // Those that end within two days, and all that are not active.
        attention: 3 + 2 + 1 + 1,
        grants: 10,
        expired: 1,
        expiring_within: vec![3, 2],
        end_assumed: 1,
        access_expired: 1,
        overdue: 2,
        needed_per_minute: 8.0,
    };
    assert_eq!(pair.other.count(&[2 * DAY, DAY], &[]), expected);
    // Where a fetch keeps warm, one is.
    let warm = [(expected.lane, HOUR)];
    let one = LaneCount { access_expired: 0, overdue: 1, needed_per_minute: 1.0, ..expected };
    assert_eq!(pair.other.count(&[2 * DAY, DAY], &warm), one);

    let ends = pair.other.runtime.block_on(pair.other.store.ends()).expect("an answer");
    assert_eq!(ends.ended, 1);
    assert_eq!(ends.days.iter().map(|day| day.consents).sum::<u64>(), 8, "but for the lost one");
    assert!(ends.days.is_sorted_by_key(|day| day.day) && ends.days.iter().all(|day| day.lane == one.lane));
    let day = ends.days.iter().find(|day| day.assumed == 1).expect("one of them").day;
    assert_eq!(day, assumed.as_seconds().div_euclid(86_400));
}
