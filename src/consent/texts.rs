//! Every word that a person reads on the consent pages, in each language. Nothing here is markup: `page` escapes it all.

use super::{language::Language, trouble::Trouble};
use crate::model::OrganizationId;

/// Whom and what the pages of one link are about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Subject {
    /// Who asks.
    pub(super) asker: String,
    /// The organization's id.
    pub(super) id: OrganizationId,
    /// The organization as people know it: by its label `name` where it has one.
    pub(super) organization: String,
    /// The issuer, by a name that people know.
    pub(super) issuer: String,
    /// The token of the link, for another try.
    pub(super) token: String,
}

/// What a page says: its heading and its paragraphs.
pub(super) type Said = (String, Vec<String>);

/// The words around one link and one person.
pub(super) struct Labels {
    pub(super) asker: &'static str,
    pub(super) organization: &'static str,
    pub(super) organizations: &'static str,
    pub(super) issuer: &'static str,
    pub(super) scopes: &'static str,
    pub(super) until: &'static str,
    pub(super) withdrawn: &'static str,
    pub(super) reference: &'static str,
    pub(super) again: &'static str,
    pub(super) another_user: &'static str,
}

const ENGLISH: Labels = Labels {
    asker: "Who asks",
    organization: "Company",
    organizations: "Companies",
    issuer: "Where",
    scopes: "What for",
    until: "Until",
    withdrawn: "you withdraw it",
    reference: "Reference for support",
    again: "Try again",
    another_user: "Sign in as another user",
};
const DANISH: Labels = Labels {
    asker: "Hvem beder om adgang",
    organization: "Virksomhed",
    organizations: "Virksomheder",
    issuer: "Hvor",
    scopes: "Adgang til at",
    until: "Indtil",
    withdrawn: "du trækker den tilbage",
    reference: "Reference til support",
    again: "Prøv igen",
    another_user: "Log ind som en anden bruger",
};

use Language::{Danish, English};

/// The words of that language.
pub(super) const fn labels(language: Language) -> &'static Labels {
    match language {
        English => &ENGLISH,
        Danish => &DANISH,
    }
}

/// What a link asks for. `ends` is the day on which the access ends, or ended, that there is now.
pub(super) fn invitation(language: Language, subject: &Subject, renewal: bool, ends: Option<(String, bool)>) -> Said {
    let Subject { asker, organization, issuer, .. } = subject;
    let title = match (language, renewal) {
        (English, true) => format!("Renew the access to {organization}"),
        (English, false) => format!("Give access to {organization}"),
        (Danish, true) => format!("Forny adgangen til {organization}"),
        (Danish, false) => format!("Giv adgang til {organization}"),
    };
    let why = match (language, renewal, ends) {
        (English, false, _) => format!("{asker} asks for access to the data of {organization} at {issuer}."),
        (Danish, false, _) => format!("{asker} beder om adgang til data fra {organization} hos {issuer}."),
        (English, true, None) => {
            format!(
                "{asker} works with the data of {organization} at {issuer}. Renew the access, so that nothing stops."
            )
        }
        (Danish, true, None) => {
            format!("{asker} arbejder med data fra {organization} hos {issuer}. Forny adgangen, så intet går i stå.")
        }
        (English, true, Some((day, false))) => format!(
            "{asker} works with the data of {organization} at {issuer}. That access ends on {day}. Renew it here, so that \
             nothing stops."
        ),
        (Danish, true, Some((day, false))) => format!(
            "{asker} arbejder med data fra {organization} hos {issuer}. Adgangen udløber {day}. Forny den her, så intet \
             går i stå."
        ),
        (English, true, Some((day, true))) => format!(
            "{asker} worked with the data of {organization} at {issuer}. That access ended on {day}. Renew it here, so that \
             work can go on."
        ),
        (Danish, true, Some((day, true))) => format!(
            "{asker} arbejdede med data fra {organization} hos {issuer}. Adgangen udløb {day}. Forny den her, så arbejdet \
             kan fortsætte."
        ),
    };
    let how = match language {
        English => format!(
            "You sign in at {issuer}, as a user who has access to the company. {asker} never sees your password, and you can \
             withdraw the access at {issuer} at any time."
        ),
        Danish => format!(
            "Du logger ind hos {issuer} som en bruger, der har adgang til virksomheden. {asker} ser aldrig din adgangskode, \
             og du kan til enhver tid trække adgangen tilbage hos {issuer}."
        ),
    };
    (title, vec![why, how])
}

/// The button that leads to the issuer.
pub(super) fn go_on(language: Language, issuer: &str) -> String {
    match language {
        English => format!("Go on to {issuer}"),
        Danish => format!("Fortsæt til {issuer}"),
    }
}

/// A scope, in plain words where it is one that many know.
pub(super) fn scope(language: Language, scope: &str) -> String {
    let known = match (language, scope) {
        (English, "dineropublicapi:read") => "read the company’s data in Dinero",
        (English, "dineropublicapi:write") => "add to and change the company’s data in Dinero",
        (English, "offline_access") => "do so also while you are not signed in",
        (English, "openid") => "know which user you are",
        (English, "profile") => "know your name",
        (English, "email") => "know your e-mail address",
        (Danish, "dineropublicapi:read") => "læse virksomhedens data i Dinero",
        (Danish, "dineropublicapi:write") => "tilføje og ændre virksomhedens data i Dinero",
        (Danish, "offline_access") => "gøre det, også når du ikke er logget ind",
        (Danish, "openid") => "vide, hvilken bruger du er",
        (Danish, "profile") => "kende dit navn",
        (Danish, "email") => "kende din e-mailadresse",
        (_, unknown) => unknown,
    };
    known.to_owned()
}

/// What the page after a consent says; which organizations, it lists below.
pub(super) fn done(language: Language, subject: &Subject, renewed: bool, until: Option<&str>) -> Said {
    let asker = &subject.asker;
    let title = match (language, renewed) {
        (English, true) => "Done: the access is renewed",
        (English, false) => "Done: the access is given",
        (Danish, true) => "Færdig: adgangen er fornyet",
        (Danish, false) => "Færdig: adgangen er givet",
    };
    let holds = match (language, until) {
        (English, Some(day)) => format!("{asker} has access until {day}. You can close this window."),
        (English, None) => format!("{asker} has access until you withdraw it. You can close this window."),
        (Danish, Some(day)) => format!("{asker} har adgang indtil {day}. Du kan lukke vinduet."),
        (Danish, None) => format!("{asker} har adgang, indtil du trækker den tilbage. Du kan lukke vinduet."),
    };
    (title.to_owned(), vec![holds])
}

/// What the page says where an operator has to confirm before anything is connected.
pub(super) fn awaiting(language: Language, subject: &Subject) -> Said {
    let Subject { asker, organization, .. } = subject;
    match language {
        English => (
            "Thank you: almost done".to_owned(),
            vec![format!(
                "Your approval has arrived. {asker} has to confirm that it is that of {organization}; you need do nothing \
                 more. You can close this window."
            )],
        ),
        Danish => (
            "Tak, du er næsten færdig".to_owned(),
            vec![format!(
                "Din godkendelse er modtaget. {asker} skal bekræfte, at den gælder {organization}; du behøver ikke gøre \
                 mere. Du kan lukke vinduet."
            )],
        ),
    }
}

/// Above the list of organizations that are connected.
pub(super) const fn connected(language: Language) -> &'static str {
    match language {
        English => "Connected",
        Danish => "Forbundet",
    }
}

/// Above the list of organizations that an operator has to confirm.
pub(super) fn to_be_confirmed(language: Language, asker: &str) -> String {
    match language {
        English => format!("{asker} has to confirm these first; you need do nothing more"),
        Danish => format!("{asker} skal først bekræfte disse; du behøver ikke gøre mere"),
    }
}

/// Above the list of organizations that the user may not speak for.
pub(super) const fn beyond(language: Language) -> &'static str {
    match language {
        English => "The user you signed in as has no access to these, so nothing was changed for them",
        Danish => "Den bruger, du loggede ind som, har ikke adgang til disse, så intet er ændret for dem",
    }
}

/// While a consent is being stored.
pub(super) fn ending(language: Language) -> Said {
    match language {
        English => (
            "One moment".to_owned(),
            vec!["Your approval is being stored. This page looks again by itself.".to_owned()],
        ),
        Danish => ("Et øjeblik".to_owned(), vec!["Din godkendelse gemmes. Siden opdaterer sig selv.".to_owned()]),
    }
}

/// What a page about trouble may name.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct About<'a> {
    /// Who asks, and whom to ask for another link.
    pub(super) asker: Option<&'a str>,
    /// What a link that could be opened is about.
    pub(super) subject: Option<&'a Subject>,
    /// Until when a link that ended could be used.
    pub(super) day: Option<&'a str>,
}

/// What went wrong, in plain words.
pub(super) fn trouble(language: Language, trouble: Trouble, about: About<'_>) -> Said {
    let (title, text) = match language {
        English => in_english(trouble, about),
        Danish => in_danish(trouble, about),
    };
    (title.to_owned(), vec![text])
}

fn in_english(trouble: Trouble, about: About<'_>) -> (&'static str, String) {
    let (subject, day) = (about.subject, about.day.unwrap_or_default());
    let issuer = subject.map_or("the issuer", |subject| &subject.issuer);
    let organization = subject.map_or("the company", |subject| &subject.organization);
    let asker = about.asker.unwrap_or("whoever sent you the link");
    let text = |text: &str| text.to_owned();
    match trouble {
        Trouble::Unreadable => (
            "This link is not complete",
            format!(
                "It may have been cut off in an e-mail. Open it once more as a whole, or ask {asker} for a new one."
            ),
        ),
        Trouble::Expired(_) => {
            ("This link has ended", format!("It could be used until {day}. Ask {asker} for a new one."))
        }
        Trouble::Used => (
            "This link has been used",
            text("The access has been renewed since the link was made, so there is nothing more to do."),
        ),
        Trouble::Revoked => ("This link is no longer good", format!("It was withdrawn. Ask {asker} for a new one.")),
        Trouble::Awaiting => (
            "Your approval has arrived already",
            format!("It only has to be confirmed by {asker}. You need do nothing more."),
        ),
        Trouble::NotOffered => (
            "This link leads nowhere",
            format!("What it was made for is not offered any more. Ask {asker} for a new one."),
        ),
        Trouble::Lost => (
            "Please open the link again",
            text(
                "This page does not know you any more: it took longer than 15 minutes, or was opened in another browser. \
                  Nothing was changed.",
            ),
        ),
        Trouble::Foreign => {
            ("Please open the link again", text("The button was not pressed on our page. Nothing was changed."))
        }
        Trouble::Malformed | Trouble::OtherIssuer => {
            ("That did not work", format!("The answer of {issuer} makes no sense to us. Nothing was changed."))
        }
        Trouble::Declined => (
            "You said no",
            format!(
                "Nothing was changed: {asker} got no new access to {organization}. If that was a mistake, try again."
            ),
        ),
        Trouble::Issuer => ("That did not work", format!("{issuer} reported an error. Nothing was changed.")),
        Trouble::NoRefreshToken => (
            "That did not work",
            format!(
                "{issuer} gave access for one hour only, which is not enough. Nothing was changed. {asker} has to look into it."
            ),
        ),
        Trouble::WrongOrganization => (
            "This user has no access to the company",
            format!(
                "The user you signed in as has no access to {organization} at {issuer}. Nothing was changed. Sign in as a \
                 user who has."
            ),
        ),
        Trouble::Unavailable => (
            "That did not work",
            text(
                "Something did not answer in time. Nothing was changed, and the link is still good: try again in a moment.",
            ),
        ),
        Trouble::Starting => ("One moment", text("We are just starting. Try again in a moment.")),
        Trouble::TooMany => ("Too many requests", text("Try again in a moment.")),
        Trouble::NotFound => ("There is no such page", text("Open the link that you were sent, as a whole.")),
        Trouble::Method(_) | Trouble::TooLarge => {
            ("That did not work", text("Open the link that you were sent once more."))
        }
        Trouble::Internal => ("That did not work", text("The mistake is ours. Try again in a moment.")),
    }
}

fn in_danish(trouble: Trouble, about: About<'_>) -> (&'static str, String) {
    let (subject, day) = (about.subject, about.day.unwrap_or_default());
    let issuer = subject.map_or("udstederen", |subject| &subject.issuer);
    let organization = subject.map_or("virksomheden", |subject| &subject.organization);
    let asker = about.asker.unwrap_or("afsenderen");
    let text = |text: &str| text.to_owned();
    match trouble {
        Trouble::Unreadable => (
            "Linket er ikke komplet",
            format!("Det kan være blevet afkortet i en e-mail. Åbn hele linket igen, eller bed {asker} om et nyt."),
        ),
        Trouble::Expired(_) => ("Linket er udløbet", format!("Det kunne bruges indtil {day}. Bed {asker} om et nyt.")),
        Trouble::Used => (
            "Linket er brugt",
            text("Adgangen er blevet fornyet, siden linket blev lavet, så der er ikke mere at gøre."),
        ),
        Trouble::Revoked => {
            ("Linket gælder ikke længere", format!("Det er blevet trukket tilbage. Bed {asker} om et nyt."))
        }
        Trouble::Awaiting => (
            "Din godkendelse er allerede modtaget",
            format!("Den skal blot bekræftes af {asker}. Du behøver ikke gøre mere."),
        ),
        Trouble::NotOffered => (
            "Linket fører ingen steder hen",
            format!("Det, linket blev lavet til, tilbydes ikke længere. Bed {asker} om et nyt."),
        ),
        Trouble::Lost => (
            "Åbn linket igen",
            text(
                "Siden kender dig ikke længere: det tog mere end 15 minutter, eller den blev åbnet i en anden browser. Intet \
                  er ændret.",
            ),
        ),
        Trouble::Foreign => {
            ("Åbn linket igen", text("Knappen, der blev trykket på, var ikke på vores side. Intet er ændret."))
        }
        Trouble::Malformed | Trouble::OtherIssuer => {
            ("Det lykkedes ikke", format!("Vi forstår ikke svaret fra {issuer}. Intet er ændret."))
        }
        Trouble::Declined => (
            "Du sagde nej",
            format!(
                "Intet er ændret: {asker} har ikke fået ny adgang til {organization}. Var det en fejl, så prøv igen."
            ),
        ),
        Trouble::Issuer => ("Det lykkedes ikke", format!("{issuer} meldte en fejl. Intet er ændret.")),
        Trouble::NoRefreshToken => (
            "Det lykkedes ikke",
            format!(
                "{issuer} gav kun adgang i en time, og det er ikke nok. Intet er ændret. {asker} skal se nærmere på det."
            ),
        ),
        Trouble::WrongOrganization => (
            "Brugeren har ikke adgang til virksomheden",
            format!(
                "Den bruger, du loggede ind som, har ikke adgang til {organization} hos {issuer}. Intet er ændret. Log ind \
                 som en bruger, der har det."
            ),
        ),
        Trouble::Unavailable => (
            "Det lykkedes ikke",
            text("Vi fik ikke svar i tide. Intet er ændret, og linket gælder stadig: prøv igen om lidt."),
        ),
        Trouble::Starting => ("Et øjeblik", text("Vi er lige ved at starte op. Prøv igen om lidt.")),
        Trouble::TooMany => ("For mange forespørgsler", text("Prøv igen om lidt.")),
        Trouble::NotFound => ("Siden findes ikke", text("Åbn hele det link, du har fået.")),
        Trouble::Method(_) | Trouble::TooLarge => ("Det lykkedes ikke", text("Åbn det link, du har fået, igen.")),
        Trouble::Internal => ("Det lykkedes ikke", text("Fejlen er vores. Prøv igen om lidt.")),
    }
}
