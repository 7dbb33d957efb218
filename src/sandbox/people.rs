//! The made-up people who can sign in, and the companies they own.

/// A person who can sign in on the consent page.
pub(super) struct Person {
    /// What they sign in with.
    pub(super) user: &'static str,
    /// Their name.
    pub(super) name: &'static str,
    /// Their companies: id and name.
    pub(super) organizations: &'static [(&'static str, &'static str)],
}

/// Everybody.
pub(super) const PEOPLE: [Person; 3] = [
    Person { user: "birgit", name: "Birgit Holm", organizations: &[("481001", "Bageriet ApS")] },
    Person {
        user: "anders",
        name: "Anders Bruun",
        organizations: &[("482001", "Nordhavn Cykler ApS"), ("482002", "Nordhavn Ejendomme ApS")],
    },
    Person { user: "camilla", name: "Camilla Juul", organizations: &[("483001", "Tømrer Juul & Søn I/S")] },
];

/// The name of an organization, made up where nobody in [`PEOPLE`] owns it.
pub(super) fn organization_name(id: &str) -> String {
    PEOPLE
        .iter()
        .flat_map(|person| person.organizations)
        .find(|(known, _)| *known == id)
        .map_or_else(|| format!("Organization {id}"), |(_, name)| (*name).to_owned())
}
