use std::time::Duration;

use super::{Client, ClientError, MAX_PAGE, PAGE, call::Call};
use crate::{
    model::{Labels, ProviderName},
    wire,
};

/// Which organizations a list is about; every field that is set must fit.
#[derive(Debug, Default, Clone)]
pub struct ListFilter {
    /// `active`, `failing`, `in_doubt`, `lost` or `paused`.
    pub state: Option<String>,
    /// The provider.
    pub provider: Option<ProviderName>,
    /// The consent ends within this time, or has ended.
    pub expires_within: Option<Duration>,
    /// No token of it was fetched for this long, or never.
    pub unused_for: Option<Duration>,
    /// Labels it carries.
    pub labels: Labels,
    /// How many a page holds at most; [`PAGE`] where it is `None`.
    pub page: Option<usize>,
}

/// Pages of a list, from [`Client::list`].
#[derive(Debug)]
pub struct Pages<'a> {
    pub(super) client: &'a Client,
    pub(super) filter: ListFilter,
    pub(super) cursor: Option<String>,
    pub(super) ended: bool,
}

impl Pages<'_> {
    /// The next page; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<Vec<wire::Organization>>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let mut call = Call::get(format!("/v1/organizations?{}", self.query()));
        call.max_answer = MAX_PAGE;
        let page: wire::OrganizationPage = self.client.call(call).await?.json()?;
        if page.next_cursor.is_some() && page.next_cursor == self.cursor {
            return Err(ClientError::Protocol("the list does not move on: the same cursor came twice".into()));
        }
        self.ended = page.next_cursor.is_none();
        self.cursor = page.next_cursor;
        Ok(Some(page.organizations))
    }

    pub(super) fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &self.filter.page.unwrap_or(PAGE).to_string());
        if let Some(state) = &self.filter.state {
            query.append_pair("state", state);
        }
        if let Some(provider) = &self.filter.provider {
            query.append_pair("provider", provider.as_str());
        }
        if let Some(within) = self.filter.expires_within {
            query.append_pair("expires_within", &format!("{}s", within.as_secs()));
        }
        if let Some(unused) = self.filter.unused_for {
            query.append_pair("unused_for", &format!("{}s", unused.as_secs()));
        }
        for (key, value) in &self.filter.labels {
            query.append_pair("label", &format!("{key}={value}"));
        }
        if let Some(cursor) = &self.cursor {
            query.append_pair("cursor", cursor);
        }
        query.finish()
    }
}
