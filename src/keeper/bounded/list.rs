//! Lists of a fleet that is not in memory: read a page at a time, in the order of the records' names, which is the order of nothing else.
//!
//! A filter looks further, but not for ever: a page may have fewer than were asked for, or none, and still say where the next begins.

use super::{
    super::{
        Filter, Found, KeeperError, Mark, Scope, Search, Shared,
        operate::has_labels,
        search::{MAX_ROWS, holds},
        slot::Brief,
    },
    Bounded,
    sweeping::AT_ONCE,
};
use crate::{
    model::{Grant, GrantId, Organization, OrganizationId, State, Timestamp},
    vault::{Stored, VaultError, postgres::Place},
    wire,
};

/// How many organizations are looked at for one page.
const MOST_LOOKED_AT: usize = 20_000;

/// An organization as it was read, and what would be in memory of its grant.
struct Read {
    organization: Organization,
    grant: Grant,
    provider: u16,
    brief: Brief,
    last_fetched: Option<Timestamp>,
}

impl Read {
    fn view(self) -> wire::Organization {
        Shared::view_by(&self.organization.id, &self.brief, self.last_fetched, &self.grant, self.organization.labels)
    }
}

/// A page in the making.
struct Page {
    limit: usize,
    organizations: Vec<wire::Organization>,
    looked_at: usize,
    /// After the last that is on it.
    end: Option<Place>,
}

/// Whether more is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    /// Another fits, and is the first of the next page.
    IsFull,
}

impl Page {
    const fn of(limit: usize) -> Self {
        Self { limit, organizations: Vec::new(), looked_at: 0, end: None }
    }

    /// Looks at one, of which it is said whether it fits.
    fn look_at(&mut self, fits: bool, view: impl FnOnce() -> (wire::Organization, Place)) -> Then {
        self.looked_at += 1;
        if !fits {
            return Then::GoOn;
        }
        if self.organizations.len() == self.limit {
            return Then::IsFull;
        }
        let (organization, place) = view();
        self.organizations.push(organization);
        self.end = Some(place);
        Then::GoOn
    }
}

impl Shared {
    pub(in crate::keeper) async fn list_read(
        &self,
        bounded: &Bounded,
        filter: &Filter,
        limit: usize,
        scope: Scope<'_>,
    ) -> Result<wire::OrganizationPage, KeeperError> {
        let mut page = Page::of(limit);
        let after = filter.after.as_ref().map(place_in).transpose()?;
        // Where nothing is asked for but a few, no more is read.
        let at_once = if is_everything(filter) { limit.saturating_add(1).min(AT_ONCE) } else { AT_ONCE };
        let fits = |one: &Read| {
            scope(&one.organization.id)
                && self.fits(one.provider, &one.brief, one.last_fetched, filter)
                && has_labels(&one.organization.labels, filter)
        };
        let next = self.fill(bounded, &mut page, after, at_once, &fits).await?;
        Ok(wire::OrganizationPage { organizations: page.organizations, next_cursor: next.map(|next| next.to_string()) })
    }

    pub(in crate::keeper) async fn search_read(
        &self,
        bounded: &Bounded,
        search: &Search,
    ) -> Result<Found, KeeperError> {
        let text = search.text.to_ascii_lowercase();
        let mut page = Page::of(search.limit.clamp(1, MAX_ROWS));
        let after = search.after.as_ref().map(|mark| place_in(mark.place())).transpose()?;
        let whole: Option<OrganizationId> = search.text.parse().ok();
        let first = whole.as_ref().filter(|_| after.is_none());
        let fits_besides = |provider: u16, brief: &Brief| {
            let state = if brief.paused { "paused" } else { brief.state.word() };
            search.state.as_deref().is_none_or(|wanted| wanted == state)
                && search.provider.as_ref().is_none_or(|wanted| *wanted == self.lanes[usize::from(provider)].name)
                && search.ends.as_ref().is_none_or(|ends| brief.consent_ends.is_some_and(|end| ends.contains(&end)))
        };
        if let Some(id) = first
            && let Some(entry) = self.present(id).await?
            && fits_besides(entry.slot.provider, &entry.slot.brief())
        {
            // Beside the others of its page.
            page.organizations.extend(self.view_of(&entry).await?);
            page.limit += page.organizations.len();
        }
        let fits = |one: &Read| {
            let id = &one.organization.id;
            let mut labels = one.organization.labels.iter();
            whole.as_ref() != Some(id)
                && fits_besides(one.provider, &one.brief)
                && (holds(id.as_str(), &text) || labels.any(|(key, value)| holds(key, &text) || holds(value, &text)))
        };
        let is_any = search.text.is_empty() && search.state.is_none() && search.provider.is_none();
        let at_once = if is_any && search.ends.is_none() { page.limit + 1 } else { AT_ONCE };
        let next = self.fill(bounded, &mut page, after, at_once, &fits).await?;
        let census = self.counted(bounded).await;
        let in_all = |state: Option<&str>| -> u64 {
            let of =
                census.providers.iter().filter(|(name, _)| search.provider.as_ref().is_none_or(|one| one == *name));
            let states = of.flat_map(|(_, counts)| &counts.states);
            states.filter(|(word, _)| state.is_none_or(|state| state == **word)).map(|(_, number)| *number).sum()
        };
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let is_short = page.organizations.len() < page.limit;
        Ok(Found {
            matched: if search.text.is_empty() && search.ends.is_none() {
                in_all(search.state.as_deref())
            } else {
                number(page.organizations.len())
            },
            unsearched: match &next {
                Some(_) if is_short => in_all(None).saturating_sub(number(page.looked_at)).max(1),
                _ => 0,
            },
            next: next.map(|next| mark_at(&next)).transpose()?,
            organizations: page.organizations,
        })
    }

    /// Fills a page with those that fit, beginning after that place. Gives where the next one begins; `None`: there are no more.
    async fn fill(
        &self,
        bounded: &Bounded,
        page: &mut Page,
        mut after: Option<Place>,
        at_once: usize,
        fits: &(dyn Fn(&Read) -> bool + Send + Sync),
    ) -> Result<Option<Place>, KeeperError> {
        loop {
            let (read, next) = self.read_page(bounded, after, at_once).await?;
            for one in read {
                let place = bounded.store.place_of(&one.organization.id);
                if page.look_at(fits(&one), || (one.view(), place)) == Then::IsFull {
                    return Ok(page.end);
                }
            }
            match next {
                None => return Ok(None),
                Some(next) if page.looked_at >= MOST_LOOKED_AT || self.stopping.is_cancelled() => {
                    return Ok(Some(next));
                }
                Some(next) => after = Some(next),
            }
        }
    }

    /// So many organizations, each with its grant. One whose grant cannot be read is left out, and told in the log.
    async fn read_page(
        &self,
        bounded: &Bounded,
        after: Option<Place>,
        most: usize,
    ) -> Result<(Vec<Read>, Option<Place>), KeeperError> {
        let failed = |error: VaultError| self.vault_failed(&error);
        let (organizations, next) = bounded.store.organizations_after(after, most).await.map_err(failed)?;
        let ids: Vec<GrantId> = organizations.iter().map(|stored| stored.value.grant).collect();
        let grants = bounded.store.grants(&ids).await.map_err(failed)?;
        let read = organizations.into_iter().zip(grants);
        Ok((read.filter_map(|(organization, grant)| self.as_read(bounded, organization, grant?)).collect(), next))
    }

    fn as_read(&self, bounded: &Bounded, organization: Stored<Organization>, grant: Stored<Grant>) -> Option<Read> {
        let Stored { value: grant, sequence } = grant;
        let provider = *self.lane_of.get(&grant.provider)?;
        let resident = self.index.slot(grant.id).filter(|slot| slot.brief().sequence >= sequence);
        let (brief, last_fetched) = match resident {
            // It may know of a failing vault what no vault could store.
            Some(slot) => (slot.brief(), slot.last_fetched().max(grant.last_fetched_at)),
            None => (self.brief(provider, &grant, sequence, None, self.now()), grant.last_fetched_at),
        };
        // The database has its own throw of when it is due; this is the middle of all.
        let policy = &self.lanes[usize::from(provider)].policy;
        let due = bounded.dating.due_alone(&grant, None, policy, 0.5);
        let brief = Brief { due: if grant.state == State::Active { due } else { brief.due }, ..brief };
        Some(Read { organization: organization.value, grant, provider, brief, last_fetched })
    }
}

/// Whether nothing is looked for but what comes next.
fn is_everything(filter: &Filter) -> bool {
    filter.state.is_none()
        && filter.provider.is_none()
        && filter.expires_within.is_none()
        && filter.unused_for.is_none()
        && filter.labels.is_empty()
}

/// The place that a cursor names.
fn place_in(cursor: &OrganizationId) -> Result<Place, KeeperError> {
    let place = cursor.as_str().parse();
    place.map_err(|_| KeeperError::BadRequest("cursor: expected what next_cursor of the page before said".into()))
}

/// A place as the board names it.
fn mark_at(place: &Place) -> Result<Mark, KeeperError> {
    // Hexadecimal digits are an id, too.
    place.to_string().parse().map(Mark::at).map_err(|_| KeeperError::Starting)
}
