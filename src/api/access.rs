use super::Peer;
use crate::{
    config::{AccessRule, Globs, Role},
    model::{OVERFLOW_ID, OrganizationId},
};

/// Who may do what. Root and the worker's own user may do everything; nobody else anything without a rule.
#[derive(Debug)]
pub struct Access {
    rules: Vec<AccessRule>,
    own_uid: u32,
}

/// Which organizations a caller may act on in some role.
#[derive(Debug)]
pub enum Reach<'a> {
    /// Every one.
    All,
    /// Those that any of these covers.
    Some(Vec<&'a Globs>),
    /// None.
    None,
}

impl Access {
    /// The rules of the configuration, and the effective uid of the worker.
    pub const fn new(rules: Vec<AccessRule>, own_uid: u32) -> Self {
        Self { rules, own_uid }
    }

    /// Whether `peer` may do to `organization` what needs `role`. Says nothing about whether it exists.
    pub fn may(&self, peer: &Peer, role: Role, organization: &OrganizationId) -> bool {
        self.is_trusted(peer) || self.rules_for(peer, role).any(|rule| rule.organizations.covers(organization))
    }

    /// Every organization to which `peer` may do what needs `role`.
    pub fn scope(&self, peer: &Peer, role: Role) -> Reach<'_> {
        if self.is_trusted(peer) {
            return Reach::All;
        }
        let globs: Vec<_> = self.rules_for(peer, role).map(|rule| &rule.organizations).collect();
        if globs.is_empty() {
            Reach::None
        } else if globs.iter().any(|globs| globs.covers_all()) {
            Reach::All
        } else {
            Reach::Some(globs)
        }
    }

    const fn is_trusted(&self, peer: &Peer) -> bool {
        !peer.is_unknown() && (peer.uid == 0 || peer.uid == self.own_uid)
    }

    /// The rules that are about `peer` and give at least `role`. They add up.
    fn rules_for(&self, peer: &Peer, role: Role) -> impl Iterator<Item = &AccessRule> {
        self.rules.iter().filter(move |rule| rule.role >= role && is_for(rule, peer))
    }
}

impl Reach<'_> {
    /// Whether `organization` is among them.
    pub fn covers(&self, organization: &OrganizationId) -> bool {
        match self {
            Self::All => true,
            Self::Some(globs) => globs.iter().any(|globs| globs.covers(organization)),
            Self::None => false,
        }
    }
}

/// Whether a rule is about this caller: all that the rule names must fit, and a rule that names nobody is for nobody.
fn is_for(rule: &AccessRule, peer: &Peer) -> bool {
    let named = rule.uid.is_some() || rule.gid.is_some();
    named
        && !peer.is_unknown()
        && rule.uid.is_none_or(|uid| uid == peer.uid)
        && rule.gid.is_none_or(|gid| gid != OVERFLOW_ID && peer.is_in(gid))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const OWN: u32 = 500;

    fn rule(uid: Option<u32>, gid: Option<u32>, role: Role, organizations: &[&str]) -> AccessRule {
        let patterns: Vec<String> = organizations.iter().map(|pattern| (*pattern).to_owned()).collect();
        AccessRule { uid, gid, role, organizations: Globs::parse(&patterns).expect("patterns") }
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid, groups: groups.into() }
    }

    fn id(text: &str) -> OrganizationId {
        text.parse().expect("an id")
    }

    /// One access with a rule of each shape.
    fn access() -> Access {
        Access::new(
            vec![
                rule(Some(1001), None, Role::Fetch, &["*"]),
                rule(Some(1001), None, Role::Operate, &["DK-*"]),
                rule(None, Some(2000), Role::Operate, &["1", "2?"]),
                rule(Some(1002), Some(2001), Role::Admin, &["*"]),
                rule(None, None, Role::Admin, &["*"]),
                rule(Some(OVERFLOW), None, Role::Admin, &["*"]),
                rule(None, Some(OVERFLOW), Role::Admin, &["*"]),
            ],
            OWN,
        )
    }

    const OVERFLOW: u32 = OVERFLOW_ID;

    #[rstest]
    #[case::root(peer(0, 0, &[]), Role::Admin, "x", true)]
    #[case::own_user(peer(OWN, 7, &[]), Role::Admin, "x", true)]
    #[case::a_stranger(peer(1, 1, &[]), Role::Fetch, "x", false)]
    #[case::by_uid(peer(1001, 1, &[]), Role::Fetch, "x", true)]
    #[case::a_low_role_gives_no_high_one(peer(1001, 1, &[]), Role::Operate, "x", false)]
    #[case::rules_add_up(peer(1001, 1, &[]), Role::Operate, "DK-1", true)]
    #[case::no_rule_gives_admin(peer(1001, 1, &[]), Role::Admin, "DK-1", false)]
    #[case::by_effective_group(peer(1, 2000, &[]), Role::Operate, "1", true)]
    #[case::by_supplementary_group(peer(1, 1, &[5, 2000]), Role::Operate, "27", true)]
    #[case::a_high_role_gives_low_ones(peer(1, 2000, &[]), Role::Fetch, "1", true)]
    #[case::outside_the_globs(peer(1, 2000, &[]), Role::Fetch, "271", false)]
    #[case::uid_and_gid_fit(peer(1002, 1, &[2001]), Role::Admin, "x", true)]
    #[case::only_the_uid_fits(peer(1002, 1, &[]), Role::Fetch, "x", false)]
    #[case::only_the_gid_fits(peer(1, 2001, &[]), Role::Fetch, "x", false)]
    #[case::uid_and_group_rules_add_up(peer(1001, 2000, &[]), Role::Operate, "1", true)]
    #[case::overflow_uid(peer(OVERFLOW, 2000, &[]), Role::Fetch, "1", false)]
    #[case::overflow_gid(peer(1001, OVERFLOW, &[]), Role::Fetch, "x", false)]
    #[case::root_of_an_unknown_group(peer(0, OVERFLOW, &[]), Role::Fetch, "x", false)]
    #[case::overflow_among_the_groups_matches_nothing(peer(1, 1, &[OVERFLOW]), Role::Fetch, "x", false)]
    #[case::overflow_among_the_groups_takes_nothing(peer(1001, 1, &[OVERFLOW]), Role::Fetch, "x", true)]
    fn permissions(#[case] peer: Peer, #[case] role: Role, #[case] organization: &str, #[case] allowed: bool) {
        assert_eq!(access().may(&peer, role, &id(organization)), allowed);
        assert_eq!(access().scope(&peer, role).covers(&id(organization)), allowed);
    }

    #[test]
    fn without_rules_only_root_and_the_own_user_reach_anything() {
        let access = Access::new(Vec::new(), OWN);
        assert!(matches!(access.scope(&peer(0, 0, &[]), Role::Admin), Reach::All));
        assert!(matches!(access.scope(&peer(1001, 0, &[0]), Role::Fetch), Reach::None));
    }

    #[test]
    fn a_rule_for_everything_needs_no_look_at_the_others() {
        assert!(matches!(access().scope(&peer(1001, 2000, &[]), Role::Fetch), Reach::All));
        let access = access();
        let Reach::Some(globs) = access.scope(&peer(1001, 2000, &[]), Role::Operate) else { panic!("some") };
        assert_eq!(globs.len(), 2);
    }

    #[test]
    fn a_worker_that_runs_as_nobody_trusts_no_nobody() {
        assert!(!Access::new(Vec::new(), OVERFLOW).may(&peer(OVERFLOW, 1, &[]), Role::Fetch, &id("x")));
    }
}
