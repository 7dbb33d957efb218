use std::sync::Arc;

use crate::{
    model::{OrganizationId, ProviderName, Secret, Timestamp, Usage},
    simulation::network::Network,
    wire,
};

/// The providers, by their places among the networks.
pub(super) const CONSENTS: usize = 0;
pub(super) const WITH_GRACE: usize = 1;
pub(super) const KEYS: usize = 2;
/// Their names.
pub(super) const NAMES: [&str; 3] = ["consents", "with-grace", "keys"];

/// What a customer gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gift {
    OneTime,
    Reuse,
    ApiKey,
}

/// Whether the worker has acknowledged that it knows an organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enrolled {
    No,
    /// It was asked, and did not answer, or with an error.
    Perhaps,
    Yes,
}

/// One organization, and the person behind it.
#[derive(Clone, Debug)]
pub(super) struct Customer {
    pub(super) organization: OrganizationId,
    pub(super) network: usize,
    pub(super) user: String,
    pub(super) gift: Gift,
    /// Every organization of the same person.
    pub(super) family: Vec<String>,
    /// Takes the secret of this customer instead of one of its own.
    pub(super) follows: Option<usize>,
    pub(super) enrolled: Enrolled,
    /// What was given last, and has not been found to be of no use.
    pub(super) secret: Option<Secret>,
    /// Since when the operator sees it in doubt.
    pub(super) doubtful_since: Option<Timestamp>,
    pub(super) paused: bool,
}

impl Customer {
    /// Gives a consent or a key anew.
    pub(super) fn give(&self, network: &Network, now: Timestamp) -> Secret {
        let family: Vec<&str> = self.family.iter().map(String::as_str).collect();
        match self.gift {
            Gift::ApiKey => network.issuer().new_api_key(self.organization.as_str()),
            Gift::OneTime => network.issuer().new_consent_at(now, &self.user, Usage::OneTime, &family),
            Gift::Reuse => network.issuer().new_consent_at(now, &self.user, Usage::Reuse, &family),
        }
    }

    /// How it is enrolled with that secret.
    pub(super) fn enrolment(&self, secret: Secret, granted_at: Timestamp, verify: bool) -> wire::Enrolment {
        let is_key = self.gift == Gift::ApiKey;
        wire::Enrolment {
            provider: provider(self.network),
            refresh_token: (!is_key).then(|| secret.clone()),
            api_key: is_key.then_some(secret),
            client_id: None,
            client_secret: None,
            granted_at: (!is_key).then_some(granted_at),
            expires_at: None,
            usage: None,
            grace: None,
            labels: None,
            verify: Some(verify),
        }
    }
}

/// The name of a provider.
pub(super) fn provider(network: usize) -> ProviderName {
    NAMES[network].parse().expect("a valid name")
}

/// So many organizations of every kind.
pub(super) fn customers(count: usize) -> Vec<Customer> {
    let mut customers: Vec<Customer> = Vec::with_capacity(count);
    for number in 0..count {
        let (network, gift, persons) = match number % 20 {
            0..6 => (CONSENTS, Gift::OneTime, 1),
            6..9 => (CONSENTS, Gift::OneTime, 3),
            9..12 => (CONSENTS, Gift::OneTime, 0),
            12..15 => (CONSENTS, Gift::Reuse, 1),
            15..18 => (WITH_GRACE, Gift::OneTime, 1),
            _ => (KEYS, Gift::ApiKey, 1),
        };
        // Three organizations of one person, with a consent each, or with one for all.
        let family_of = |number: usize| -> Vec<usize> {
            let first = number - number % 20 + if persons == 3 { 6 } else { 9 };
            if persons == 1 { vec![number] } else { (first..first + 3).collect() }
        };
        let family = family_of(number);
        customers.push(Customer {
            organization: name_of(number).parse().expect("a valid id"),
            network,
            user: format!("person-{}", family[0]),
            gift,
            family: family.iter().map(|number| name_of(*number)).collect(),
            follows: (persons == 0 && family[0] != number).then_some(family[0]),
            enrolled: Enrolled::No,
            secret: None,
            doubtful_since: None,
            paused: false,
        });
    }
    customers
}

/// The names of all that may use the grant that `name` uses.
pub(super) fn sharing_with(name: &str) -> Vec<String> {
    let number: usize = name.trim_start_matches("org-").parse().unwrap_or_default();
    let place = number % 20;
    if (9..12).contains(&place) {
        (9..12).map(|place_of| name_of(number - place + place_of)).collect()
    } else {
        vec![name.to_owned()]
    }
}

fn name_of(number: usize) -> String {
    format!("org-{number}")
}

/// The network that a customer's exchanges take.
pub(super) fn network_of<'a>(networks: &'a [Arc<Network>], customer: &Customer) -> &'a Arc<Network> {
    &networks[customer.network]
}
