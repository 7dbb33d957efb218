use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::model::OrganizationId;

/// One `[[access]]` rule.
#[derive(Clone, Debug)]
pub struct AccessRule {
    /// Whom it is for: callers with this effective uid.
    pub uid: Option<u32>,
    /// Whom it is for: callers with this gid, effective or supplementary. With `uid` too, both must fit.
    pub gid: Option<u32>,
    /// What they may do.
    pub role: Role,
    /// To which organizations.
    pub organizations: Globs,
}

/// What a caller may do; each role may do all that the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Fetch access tokens.
    Fetch,
    /// Enrol, list, show, pause, resume.
    Operate,
    /// Everything.
    Admin,
}

/// Organization ids or globs over them.
#[derive(Clone, Debug)]
pub struct Globs {
    patterns: Vec<String>,
    set: GlobSet,
    all: bool,
}

impl Globs {
    /// Reads patterns: ids, or globs with `*`, `?`, `[…]` and `{a,b}`.
    pub fn parse(patterns: &[String]) -> Result<Self, globset::Error> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            set.add(Glob::new(pattern)?);
        }
        Ok(Self { patterns: patterns.to_vec(), set: set.build()?, all: patterns.iter().any(|pattern| pattern == "*") })
    }

    /// Whether `id` is covered.
    pub fn covers(&self, id: &OrganizationId) -> bool {
        self.covers_text(id.as_str())
    }

    /// Whether an id written as `text` is covered.
    pub fn covers_text(&self, text: &str) -> bool {
        self.all || self.set.is_match(text)
    }

    /// Whether every organization is covered.
    pub const fn covers_all(&self) -> bool {
        self.all
    }

    /// The patterns as they were written.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}
