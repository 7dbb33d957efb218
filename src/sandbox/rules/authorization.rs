use std::{sync::Arc, time::Duration};

use super::{Refusal, Scopes};
use crate::{
    model::{Timestamp, Usage},
    sandbox::config::SandboxConfig,
};

/// How many refresh tokens of one authorization can be usable at once. Only re-exchanges within a grace make more than
/// one, and an application in order makes a handful.
const MAX_USABLE_TOKENS: usize = 64;

/// How a refresh token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can be exchanged.
    Live,
    /// It has been spent, and can be exchanged again for a little while.
    InGrace,
    /// It has been spent: exchanging it is a replay, and ends all access of its user.
    Spent,
    /// It cannot be exchanged, and trying harms nobody.
    Dead(Refusal),
}

/// What one user approved once. Its terms are those of the day it was given: a later change of the application's
/// settings does not reach it.
#[derive(Debug)]
pub(super) struct Authorization {
    pub(super) user: Arc<str>,
    pub(super) usage: Usage,
    pub(super) scopes: Scopes,
    pub(super) granted_at: Timestamp,
    expires_at: Option<Timestamp>,
    idle: Option<Duration>,
    grace: Duration,
    pub(super) ended: Option<Refusal>,
    next_number: u32,
    /// Those that are not spent, and those that are and may still be within their grace; all others are spent.
    usable: Vec<Usable>,
}

#[derive(Clone, Copy, Debug)]
struct Usable {
    number: u32,
    used_at: Timestamp,
    spent_at: Option<Timestamp>,
}

impl Authorization {
    pub(super) fn new(
        user: Arc<str>,
        usage: Usage,
        scopes: Scopes,
        granted_at: Timestamp,
        terms: &SandboxConfig,
    ) -> Self {
        Self {
            user,
            usage,
            scopes,
            granted_at,
            expires_at: terms.consent_lifetime.map(|lifetime| granted_at + lifetime),
            idle: terms.idle_lifetime,
            grace: terms.grace,
            ended: None,
            next_number: 1,
            usable: vec![Usable { number: 0, used_at: granted_at, spent_at: None }],
        }
    }

    /// Whether any access of it is left to lose.
    pub(super) fn lives(&self, now: Timestamp) -> bool {
        self.ended.is_none() && !self.has_expired(now)
    }

    /// That a token is spent comes before everything else that is wrong with it: presenting it is the one mistake that
    /// the issuer punishes.
    pub(super) fn standing(&self, now: Timestamp, number: u32) -> Standing {
        let Some(token) = self.usable.iter().find(|token| token.number == number) else { return Standing::Spent };
        if token.spent_at.is_some_and(|spent| now.since(spent) >= self.grace) {
            Standing::Spent
        } else if let Some(why) = self.ended {
            Standing::Dead(why)
        } else if self.has_expired(now) {
            Standing::Dead(Refusal::Expired)
        } else if self.idle.is_some_and(|idle| now.since(token.used_at) >= idle) {
            Standing::Dead(Refusal::Idle)
        } else if token.spent_at.is_some() {
            Standing::InGrace
        } else {
            Standing::Live
        }
    }

    /// Exchanges a usable token: gives the number of the refresh token that the answer holds. `None`: too many are
    /// usable at once.
    pub(super) fn exchange(&mut self, now: Timestamp, number: u32, rotate: bool) -> Option<u32> {
        let grace = self.grace;
        self.usable.retain(|token| token.spent_at.is_none_or(|spent| now.since(spent) < grace));
        let rotate = rotate && self.usage == Usage::OneTime;
        if rotate && self.usable.len() >= MAX_USABLE_TOKENS {
            return None;
        }
        let token = self.usable.iter_mut().find(|token| token.number == number)?;
        token.used_at = now;
        if !rotate {
            return Some(number);
        }
        token.spent_at.get_or_insert(now);
        let fresh = self.next_number;
        self.next_number += 1;
        self.usable.push(Usable { number: fresh, used_at: now, spent_at: None });
        Some(fresh)
    }

    fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| now >= end)
    }
}
