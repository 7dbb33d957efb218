//! Consents given by people: nothing is lost, nothing is swapped that should not be, and the old one serves until then.

use super::*;
use crate::{
    clock::Clock as _,
    keeper::{ConsentError, Consented, NewConsent},
    links::{Invitation, LinkError},
    model::{EventKind, Grant},
    wire::Awaiting,
};

impl World {
    /// What a link of the organization asks for, as it is opened.
    async fn invited(&self, organization: &str, also: &[&str]) -> Invitation {
        let provider = "test".parse().expect("valid");
        let also = also.iter().map(|id| org(id)).collect();
        let link = self.keeper.link(&org(organization), Some(&provider), also).await.expect("made");
        self.opened(&link.url).expect("it was made a moment ago")
    }

    fn opened(&self, url: &str) -> Result<Invitation, LinkError> {
        let token = url.strip_prefix("https://connect.example.com/c/").expect("one of ours");
        links(&self.vault).open(token, self.clock.now().wall)
    }

    /// Somebody follows the link and approves.
    async fn approve(&self, invitation: &Invitation, code: &str) -> Result<Consented, ConsentError> {
        self.keeper.consent(given(invitation, code)).await
    }

    /// The organization's consent is renewed by its own user, where the provider lists what that reaches.
    async fn renewed(&self, organization: &str, code: &str) -> Result<Consented, ConsentError> {
        let invitation = self.invited(organization, &[]).await;
        self.approve(&invitation, code).await
    }

    fn reaches(&self, organizations: &[&str]) {
        let ids = organizations.iter().map(ToString::to_string).collect();
        *self.issuer.reach.lock().expect("whole") = Some(ids);
    }

    fn gives(&self, code: &str, subject: &str) {
        self.issuer.subjects.lock().expect("whole").insert(code.into(), subject.into());
    }

    async fn token_of(&self, organization: &str) -> String {
        self.fetch(organization).await.expect("served").token.access_token
    }

    fn grants(&self) -> Vec<Grant> {
        let mut grants = Vec::new();
        let read = self
            .vault
            .for_each_grant(&mut |stored| {
                grants.push(stored.value);
                Ok(())
            })
            .at_once();
        read.expect("readable");
        grants.retain(|grant| !crate::lifecycle::is_grave(grant));
        grants
    }

    fn awaiting(&self) -> Vec<Awaiting> {
        self.keeper.status(None).at_once().awaiting
    }

    fn reasons(&self) -> Vec<String> {
        self.awaiting().into_iter().map(|awaiting| awaiting.reason.into_owned()).collect()
    }

    /// How many consents the metrics say an operator has to confirm. Counts are remembered for a second.
    fn to_be_confirmed(&self) -> u64 {
        self.clock.advance(Duration::from_secs(1));
        self.keeper.shared.census().providers.values().map(|provider| provider.awaiting).sum()
    }

    fn told_of_renewals(&self) -> Vec<String> {
        let events = self.keeper.shared.outbox.after(None);
        let renewed = events.iter().filter(|event| event.kind == EventKind::ConsentRenewed);
        renewed.filter_map(|event| event.organization.as_ref().map(ToString::to_string)).collect()
    }
}

fn given(invitation: &Invitation, code: &str) -> NewConsent {
    NewConsent {
        invitation: invitation.clone(),
        code: Secret::new(code),
        verifier: Some(Secret::new("verifier")),
        redirect_uri: "https://connect.example.com/callback/test".into(),
    }
}

fn orgs(ids: &[&str]) -> Vec<OrganizationId> {
    ids.iter().map(|id| org(id)).collect()
}

#[tokio::test]
async fn a_new_consent_takes_the_place_of_the_old_one_and_keeps_what_operators_said() {
    let world = World::new().await;
    let labels = Labels::from([("name".into(), "Bageriet".into())]);
    let body = Enrolment { labels: Some(labels.clone()), ..enrolment("reuse-old") };
    world.keeper.enrol(org("a"), body).await.expect("enrolled");
    world.reaches(&["a"]);
    world.advance(HOUR * 24 * 170);
    let invitation = world.invited("a", &[]).await;
    let request = world.keeper.begin_consent(&invitation).await.expect("good");
    assert_eq!((request.renewal, &request.labels, request.also.len()), (true, &labels, 0));
    let consented = world.approve(&invitation, "reuse-new").await.expect("renewed");
    let end = world.clock.now().wall + HOUR * 24 * 180;
    let expected =
        Consented { connected: orgs(&["a"]), renewed: true, awaiting: vec![], beyond: vec![], expires_at: Some(end) };
    assert_eq!(consented, expected);
    assert_eq!(world.token_of("a").await, "at-of-reuse-new");
    let shown = world.keeper.show(&org("a")).await.expect("there");
    let consent = shown.consent.expect("a consent");
    assert_eq!((shown.labels, consent.expires_at, consent.assumed), (labels, Some(end), false));
    assert_eq!(world.grants().len(), 1, "the old one is gone");
    assert_eq!(world.told_of_renewals(), ["a"]);
    assert!(world.awaiting().is_empty() && world.issuer.revoked.lock().expect("whole").is_empty());
}

#[tokio::test]
async fn a_link_is_used_up_by_a_stored_consent_and_not_by_being_opened() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.reaches(&["a"]);
    let invitation = world.invited("a", &[]).await;
    for _ in 0..3 {
        world.keeper.begin_consent(&invitation).await.expect("opening changes nothing");
    }
    world.approve(&invitation, "reuse-new").await.expect("renewed");
    assert!(matches!(world.keeper.begin_consent(&invitation).await, Err(ConsentError::Used)));
    assert!(matches!(world.approve(&invitation, "reuse-third").await, Err(ConsentError::Used)));
    assert_eq!(*world.issuer.redeemed.lock().expect("whole"), ["reuse-new"], "a late code is not even sent");
}

#[tokio::test]
async fn of_two_who_come_back_at_once_one_is_taken() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.reaches(&["a"]);
    let invitation = world.invited("a", &[]).await;
    let (one, two) = tokio::join!(world.approve(&invitation, "reuse-1"), world.approve(&invitation, "reuse-2"));
    let used = |result: &Result<Consented, ConsentError>| matches!(result, Err(ConsentError::Used));
    assert!(one.is_ok() && used(&two) || two.is_ok() && used(&one), "{one:?} {two:?}");
    assert_eq!((world.grants().len(), world.told_of_renewals().len()), (1, 1));
}

#[tokio::test]
async fn a_consent_for_another_organization_changes_nothing() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.enrol("b", "reuse-b").await.expect("enrolled");
    let before = world.token_of("a").await;
    world.reaches(&["b", "c"]);
    let invitation = world.invited("a", &["b"]).await;
    let error = world.approve(&invitation, "reuse-new").await.expect_err("wrong");
    assert!(
        matches!(&error, ConsentError::WrongOrganization { organization, .. } if *organization == org("a")),
        "{error:?}"
    );
    assert!(!error.to_string().contains("\"b\""), "it names no other customer");
    assert_eq!(world.token_of("a").await, before);
    assert_eq!((world.grants().len(), world.awaiting().len(), world.told_of_renewals().len()), (2, 0, 0));
    world.reaches(&["a"]);
    world.approve(&invitation, "reuse-right").await.expect("the link is still good");
}

#[tokio::test]
async fn one_consent_connects_those_of_its_link_that_it_reaches_and_leaves_the_others_alone() {
    let world = World::new().await;
    for organization in ["a", "b", "c"] {
        world.enrol(organization, "reuse-shared").await.expect("enrolled");
    }
    world.enrol("d", "reuse-d").await.expect("enrolled");
    world.reaches(&["a", "b", "new"]);
    let invitation = world.invited("a", &["b", "d", "new"]).await;
    let consented = world.approve(&invitation, "reuse-new").await.expect("renewed");
    assert_eq!((consented.connected, consented.beyond), (orgs(&["a", "b", "new"]), orgs(&["d"])));
    for organization in ["a", "b", "new"] {
        assert_eq!(world.token_of(organization).await, "at-of-reuse-new", "{organization}");
    }
    let shown = world.keeper.show(&org("c")).await.expect("there");
    assert!(shown.shares_grant_with.is_empty() && shown.state == "active");
    assert_ne!(world.token_of("c").await, "at-of-reuse-new");
    assert_eq!((world.grants().len(), world.told_of_renewals().len()), (3, 3));
    let world = world.restarted().await;
    assert_eq!(world.token_of("b").await, "at-of-reuse-new");
}

#[tokio::test]
async fn where_nobody_lists_organizations_the_same_person_may_renew() {
    let world = World::new().await;
    world.gives("reuse-old", "birgit");
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.gives("reuse-new", "birgit");
    let consented = world.renewed("a", "reuse-new").await.expect("renewed");
    assert_eq!((consented.connected, consented.awaiting.len()), (orgs(&["a"]), 0));
    assert_eq!(world.token_of("a").await, "at-of-reuse-new");
}

#[tokio::test]
async fn where_nobody_lists_organizations_another_person_waits_for_an_operator() {
    let world = World::new().await;
    world.gives("reuse-old", "birgit");
    world.enrol("a", "reuse-old").await.expect("enrolled");
    let before = world.token_of("a").await;
    world.gives("reuse-new", "anders");
    let invitation = world.invited("a", &[]).await;
    let consented = world.approve(&invitation, "reuse-new").await.expect("stored");
    assert_eq!((consented.connected.len(), consented.awaiting), (0, orgs(&["a"])));
    assert_eq!(world.token_of("a").await, before, "the old one serves meanwhile");
    assert!(matches!(world.keeper.begin_consent(&invitation).await, Err(ConsentError::Awaiting)));
    let world = world.restarted().await;
    let waiting = world.awaiting();
    assert_eq!((waiting[0].subject.as_deref(), &*waiting[0].reason), (Some("anders"), "another_person"));
    let scoped = world.keeper.status(Some(&|organization| *organization != org("a"))).at_once();
    assert!(scoped.awaiting.is_empty(), "who may not see the organization is not told");
    let shown = world.keeper.confirm(&org("a")).await.expect("confirmed");
    assert_eq!((shown.subject.as_deref(), &*shown.state), (Some("anders"), "active"));
    assert_eq!(world.token_of("a").await, "at-of-reuse-new");
    assert_eq!((world.grants().len(), world.awaiting().len(), world.told_of_renewals().len()), (1, 0, 1));
    assert_eq!(code(world.keeper.confirm(&org("a")).await), Code::BadRequest, "nothing waits any more");
}

#[tokio::test]
async fn a_declined_consent_is_forgotten_and_the_old_one_goes_on() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.gives("reuse-new", "anders");
    world.renewed("a", "reuse-new").await.expect("stored");
    assert_eq!(world.reasons(), ["unknown_person"]);
    world.keeper.decline(&org("a")).await.expect("declined");
    assert_eq!((world.grants().len(), world.awaiting().len()), (1, 0));
    assert_eq!(world.state("a").await, "active/-");
    world.keeper.begin_consent(&world.invited("a", &[]).await).await.expect("it may be tried again");
}

#[tokio::test]
async fn a_first_connection_is_made_by_a_list_or_by_an_operator() {
    let world = World::new().await;
    world.reaches(&["listed"]);
    let invitation = world.invited("listed", &[]).await;
    let request = world.keeper.begin_consent(&invitation).await.expect("good");
    assert!(!request.renewal && request.labels.is_empty());
    let consented = world.approve(&invitation, "one-listed").await.expect("connected");
    assert_eq!((consented.renewed, consented.connected), (false, orgs(&["listed"])));
    *world.issuer.reach.lock().expect("whole") = None;
    world.renewed("unlisted", "one-unlisted").await.expect("stored");
    assert_eq!(world.reasons(), ["first_connection"]);
    assert_eq!(world.to_be_confirmed(), 1);
    assert_eq!(code(world.fetch("unlisted").await), Code::UnknownOrganization);
    world.keeper.confirm(&org("unlisted")).await.expect("confirmed");
    assert_eq!(world.token_of("unlisted").await, "at-of-one-unlisted");
    assert_eq!(world.to_be_confirmed(), 0);
}

#[tokio::test]
async fn what_a_death_left_unfinished_is_finished_at_the_next_start() {
    let world = World::new().await;
    world.enrol("a", "one-old").await.expect("enrolled");
    world.reaches(&["a"]);
    world.issuer.listless.store(true, Ordering::SeqCst);
    let invitation = world.invited("a", &[]).await;
    let consented = world.approve(&invitation, "one-new").await.expect("stored");
    assert_eq!((consented.renewed, consented.awaiting), (true, orgs(&["a"])));
    assert_eq!(world.reasons(), ["unfinished"]);
    world.issuer.listless.store(false, Ordering::SeqCst);
    let world = world.restarted().await;
    world.until(|world| world.awaiting().is_empty()).await;
    assert_eq!((world.token_of("a").await.as_str(), world.grants().len()), ("at-of-one-new", 1));
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_death_at_any_step_leaves_the_old_consent_or_the_new_one_at_work() {
    for (dies_at, ends_with) in [("redeem", "old"), ("list", "new"), ("never", "new")] {
        let world = World::new().await;
        world.gives("one-old", "birgit");
        world.enrol("a", "one-old").await.expect("enrolled");
        let before = world.token_of("a").await;
        world.reaches(&["a"]);
        let invitation = world.invited("a", &[]).await;
        // What waits at a closed gate is what a dead process never comes to.
        let closed = Some(Arc::new(Semaphore::new(0)));
        match dies_at {
            "redeem" => *world.issuer.redeem_gate.lock().expect("whole") = closed,
            "list" => *world.issuer.list_gate.lock().expect("whole") = closed,
            _ => {}
        }
        let (keeper, consent) = (world.keeper.clone(), given(&invitation, "one-new"));
        tokio::spawn(async move { keeper.consent(consent).await });
        let grants = if dies_at == "list" { 2 } else { 1 };
        world
            .until(|world| {
                world.grants().len() == grants && (dies_at != "never" || !world.told_of_renewals().is_empty())
            })
            .await;
        *world.issuer.redeem_gate.lock().expect("whole") = None;
        *world.issuer.list_gate.lock().expect("whole") = None;
        let world = world.restarted().await;
        world.until(|world| world.awaiting().is_empty()).await;
        let expected = if ends_with == "old" { before.as_str() } else { "at-of-one-new" };
        assert_eq!(world.token_of("a").await, expected, "dies at {dies_at}");
        assert_eq!((world.grants().len(), world.told_of_renewals().len()), (1, usize::from(ends_with == "new")));
        let again = world.keeper.begin_consent(&invitation).await;
        assert_eq!(again.is_ok(), ends_with == "old", "a link is used up by what was stored: {dies_at}");
        assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_sweep_finishes_what_a_silent_provider_left_unfinished() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.reaches(&["other"]);
    world.issuer.listless.store(true, Ordering::SeqCst);
    world.renewed("a", "reuse-new").await.expect("stored");
    // Meanwhile its access token lapses.
    world.advance(HOUR * 2);
    world.issuer.listless.store(false, Ordering::SeqCst);
    world.keeper.sweep();
    world.until(|world| world.awaiting().is_empty()).await;
    assert_eq!((world.grants().len(), world.told_of_renewals().len()), (1, 0), "it was for another organization");
    assert_ne!(world.token_of("a").await, "at-of-reuse-new");
}

#[tokio::test]
async fn it_goes_on_when_the_person_goes_away() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.reaches(&["a"]);
    let gate = Arc::new(Semaphore::new(0));
    *world.issuer.redeem_gate.lock().expect("whole") = Some(Arc::clone(&gate));
    let invitation = world.invited("a", &[]).await;
    let gone = tokio::time::timeout(Duration::from_millis(50), world.approve(&invitation, "reuse-new")).await;
    assert!(gone.is_err());
    gate.add_permits(1);
    world.until(|world| world.told_of_renewals() == ["a"]).await;
    assert_eq!(world.token_of("a").await, "at-of-reuse-new");
}

#[tokio::test]
async fn a_code_that_gives_nothing_leaves_the_link_good_and_is_never_sent_again() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.reaches(&["a"]);
    let invitation = world.invited("a", &[]).await;
    world.issuer.redeems.lock().expect("whole").push_back(silence());
    assert!(matches!(world.approve(&invitation, "reuse-1").await, Err(ConsentError::Unavailable(_))));
    assert!(matches!(world.approve(&invitation, "reuse-1").await, Err(ConsentError::Refused(_))));
    assert!(matches!(world.approve(&invitation, "bare-2").await, Err(ConsentError::NoRefreshToken(_))));
    assert_eq!((world.grants().len(), world.awaiting().len()), (1, 0));
    world.approve(&invitation, "reuse-3").await.expect("the link is still good");
    assert_eq!(*world.issuer.redeemed.lock().expect("whole"), ["reuse-1", "reuse-1", "bare-2", "reuse-3"]);
}

#[tokio::test]
async fn revoked_links_stay_revoked_and_new_ones_are_good() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    for organization in ["a", "unknown"] {
        let revoked = world.invited(organization, &[]).await;
        world.keeper.revoke_links(&org(organization)).await.expect("revoked");
        assert!(matches!(world.keeper.begin_consent(&revoked).await, Err(ConsentError::Revoked)));
        assert!(matches!(world.approve(&revoked, "reuse-1").await, Err(ConsentError::Revoked)));
        let anew = world.invited(organization, &[]).await;
        world.keeper.begin_consent(&anew).await.expect("made after it");
    }
    let world = world.restarted().await;
    world.advance(crate::config::MAX_LINK_LIFETIME + HOUR);
    world.keeper.sweep();
    let revoked = |world: &World| world.vault.revoked_links(&org("a")).at_once().expect("readable").is_some();
    world.until(|world| !revoked(world)).await;
}

#[tokio::test]
async fn a_link_to_an_organization_that_was_removed_since_invites_nobody() {
    let world = World::new().await;
    world.reaches(&["a"]);
    let invitation = world.invited("a", &[]).await;
    world.approve(&invitation, "reuse-new").await.expect("connected");
    world.keeper.remove(&org("a"), false).await.expect("removed");
    assert!(matches!(world.keeper.begin_consent(&invitation).await, Err(ConsentError::Revoked)));
}

#[tokio::test]
async fn an_exchange_of_the_old_consent_ends_before_it_goes() {
    let world = World::new().await;
    world.enrol("a", "one-old").await.expect("enrolled");
    world.reaches(&["a"]);
    let gate = world.issuer.closes();
    let invitation = world.invited("a", &[]).await;
    let (refreshing, renewing) = (world.keeper.clone(), world.keeper.clone());
    let refreshing = tokio::spawn(async move { refreshing.refresh(&org("a"), None).await });
    world.until(|world| world.issuer.count() == 2).await;
    let renewing = tokio::spawn(async move { renewing.consent(given(&invitation, "one-new")).await });
    world.until(|world| world.grants().len() == 2).await;
    gate.add_permits(100);
    renewing.await.expect("alive").expect("renewed");
    let _ = refreshing.await.expect("alive");
    assert_eq!(world.token_of("a").await, "at-of-one-new");
    assert_eq!((world.vault.stats().strays, world.grants().len()), (0, 1));
    assert_eq!(world.issuer.replays.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn spent_tokens_of_a_consent_that_was_renewed_are_remembered() {
    let world = World::new().await;
    world.enrol("a", "one-old").await.expect("enrolled");
    world.reaches(&["a"]);
    world.renewed("a", "one-new").await.expect("renewed");
    assert_eq!(code(world.enrol("a", "one-old").await), Code::AlreadySpent);
}

#[tokio::test]
async fn what_waits_too_long_or_comes_too_late_is_forgotten() {
    let world = World::new().await;
    world.enrol("late", "reuse-late").await.expect("enrolled");
    world.enrol("long", "reuse-long").await.expect("enrolled");
    for organization in ["late", "long"] {
        world.renewed(organization, &format!("reuse-of-{organization}")).await.expect("stored");
    }
    world.enrol("late", "reuse-newer").await.expect("replaced");
    assert_eq!(code(world.keeper.confirm(&org("late")).await), Code::BadRequest);
    world.keeper.sweep();
    world.until(|world| world.awaiting().len() == 1).await;
    world.advance(HOUR * 24 * 29);
    world.keeper.sweep();
    world.until(|world| world.state_is("long", "active")).await;
    assert_eq!(world.awaiting().len(), 1);
    world.advance(HOUR * 24 + HOUR);
    world.keeper.sweep();
    world.until(|world| world.awaiting().is_empty()).await;
    assert_eq!(world.grants().len(), 2);
}

impl World {
    fn state_is(&self, organization: &str, state: &str) -> bool {
        let entry = self.keeper.shared.index.find(&org(organization)).expect("there");
        entry.slot.brief().state.word() == state
    }
}

#[tokio::test]
async fn a_confirmed_consent_whose_token_has_lapsed_is_refreshed_before_it_serves() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.renewed("a", "one-new").await.expect("stored");
    world.advance(HOUR * 24 * 3);
    world.keeper.confirm(&org("a")).await.expect("confirmed");
    assert!(world.issuer.sent.lock().expect("whole").contains(&"one-new".to_owned()));
    let served = world.fetch("a").await.expect("served");
    assert_eq!(served.token.degraded, None);
    assert_ne!(served.token.access_token, "at-of-one-new");
}

#[tokio::test]
async fn a_confirmed_consent_that_died_while_it_waited_replaces_nothing() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.renewed("a", "one-new").await.expect("stored");
    world.issuer.spent.lock().expect("whole").push("one-new".into());
    world.advance(HOUR * 2);
    assert!(world.keeper.confirm(&org("a")).await.is_err());
    world.until(|world| world.state_is("a", "active")).await;
    assert_ne!(world.token_of("a").await, "at-of-one-new");
}

#[tokio::test]
async fn a_pause_lies_over_the_new_consent_too() {
    let world = World::new().await;
    world.enrol("a", "reuse-old").await.expect("enrolled");
    world.keeper.set_paused(&org("a"), true).await.expect("paused");
    world.reaches(&["a"]);
    world.renewed("a", "reuse-new").await.expect("renewed");
    assert_eq!(code(world.fetch("a").await), Code::Paused);
}

#[tokio::test]
async fn an_old_consent_is_revoked_only_where_asked_for_and_only_of_another_person() {
    for (asked_for, by, revoked) in [(true, "anders", true), (true, "birgit", false), (false, "anders", false)] {
        let scopes = if asked_for { vec!["revoke".to_owned()] } else { vec![] };
        let world = World::of(KeepWarm::Always, vec![ProviderConfig { scopes, ..provider_config() }]).await;
        world.gives("reuse-old", "birgit");
        world.enrol("a", "reuse-old").await.expect("enrolled");
        world.gives("reuse-new", by);
        world.reaches(&["a"]);
        world.renewed("a", "reuse-new").await.expect("renewed");
        world.keeper.drain().await;
        let expected: &[&str] = if revoked { &["reuse-old"] } else { &[] };
        assert_eq!(*world.issuer.revoked.lock().expect("whole"), expected, "{asked_for} {by}");
    }
}

#[tokio::test]
async fn a_lost_consent_says_where_it_is_renewed() {
    let world = World::new().await;
    assert_eq!(world.keeper.renewal_url(&org("unknown")).at_once(), None, "nobody knows its provider");
    world.enrol("a", "reuse-old").await.expect("enrolled");
    let url = world.keeper.renewal_url(&org("a")).at_once().expect("a link");
    assert_eq!(world.opened(&url).expect("good").organization, org("a"));
}
