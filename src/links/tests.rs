mod fuzz;

use proptest::{collection::vec, option, prelude::*};

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_123);
const LIFETIME: Duration = Duration::from_hours(14 * 24);

fn links(key: u8, public_url: &str) -> Links {
    Links::new(&[key; 32], &public_url.parse().unwrap(), LIFETIME)
}

fn invitation() -> Invitation {
    Invitation {
        organization: "4711".parse().unwrap(),
        provider: "visma-connect".parse().unwrap(),
        also: vec!["4712".parse().unwrap()],
        binding: Binding { grant: Some(GrantId::from_bytes([7; 16])), generation: 3 },
    }
}

fn token(link: &Link) -> &str {
    link.url.rsplit_once('/').unwrap().1
}

fn any_invitation() -> impl Strategy<Value = Invitation> {
    let organization = || "[A-Za-z0-9._:@-]{1,128}".prop_map(|id| id.parse::<OrganizationId>().unwrap());
    let provider = "[a-z0-9-]{1,64}".prop_map(|name| name.parse::<ProviderName>().unwrap());
    let grant = option::of(any::<[u8; 16]>().prop_map(GrantId::from_bytes));
    (organization(), provider, vec(organization(), 0..=MAX_ALSO), grant, any::<u32>()).prop_map(
        |(organization, provider, also, grant, generation)| Invitation {
            organization,
            provider,
            also,
            binding: Binding { grant, generation },
        },
    )
}

proptest! {
    #[test]
    fn every_link_opens_as_it_was_made_and_fits_into_a_line(invitation in any_invitation()) {
        let links = links(1, "https://connect.example.com");
        let link = links.make(&invitation, NOW);
        prop_assert!(token(&link).len() <= MAX_TOKEN_BYTES);
        prop_assert!(token(&link).bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
        prop_assert_eq!(links.open(token(&link), NOW), Ok(invitation));
    }

    #[test]
    fn a_link_with_any_letter_changed_or_missing_opens_nothing(at in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_-]") {
        let links = links(1, "https://connect.example.com");
        let link = links.make(&invitation(), NOW);
        let token = token(&link);
        let at = at.index(token.len());
        let altered = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
        prop_assume!(altered != token);
        prop_assert_eq!(links.open(&altered, NOW), Err(LinkError::Unreadable));
        prop_assert_eq!(links.open(&token[..at], NOW), Err(LinkError::Unreadable));
        prop_assert_eq!(links.open(&format!("{token}{letter}"), NOW), Err(LinkError::Unreadable));
    }
}

#[test]
fn it_ends_at_the_second_that_was_told() {
    let links = links(1, "https://connect.example.com");
    let link = links.make(&invitation(), NOW);
    assert_eq!(link.expires_at, Timestamp::from_millis(1_790_000_000_000) + LIFETIME);
    let last = link.expires_at - Duration::from_millis(1);
    assert!(links.open(token(&link), last).is_ok());
    let ended = LinkError::Expired { at: link.expires_at };
    assert_eq!(links.open(token(&link), link.expires_at), Err(ended));
    assert!(ended.to_string().contains(&link.expires_at.to_string()), "{ended}");
}

#[test]
fn another_vaults_link_opens_nothing_here_and_one_of_this_vault_also_at_another_address() {
    let link = links(1, "https://connect.example.com").make(&invitation(), NOW);
    assert_eq!(links(2, "https://connect.example.com").open(token(&link), NOW), Err(LinkError::Unreadable));
    assert!(links(1, "https://other.example.com/consent").open(token(&link), NOW).is_ok());
}

#[test]
fn the_address_keeps_the_path_it_has() {
    for (public_url, begins) in [
        ("https://connect.example.com", "https://connect.example.com/c/"),
        ("https://example.com/dinero/connect/", "https://example.com/dinero/connect/c/"),
        ("http://127.0.0.1:9465", "http://127.0.0.1:9465/c/"),
    ] {
        let link = links(1, public_url).make(&invitation(), NOW);
        assert!(link.url.starts_with(begins), "{}", link.url);
        assert!(link.url.len() < begins.len() + 120, "{} is long", link.url);
    }
}

#[test]
fn the_same_link_is_made_twice_and_shows_nothing_of_what_it_holds() {
    let links = links(1, "https://connect.example.com");
    let link = links.make(&invitation(), NOW);
    assert_eq!(links.make(&invitation(), NOW), link);
    let bytes = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, token(&link)).unwrap();
    for shown in [&b"4711"[..], b"visma", &[7; 16]] {
        assert!(!bytes.windows(shown.len()).any(|window| window == shown));
    }
    assert_ne!(links.make(&invitation(), NOW + Duration::from_secs(1)).url, link.url);
    assert!(!format!("{links:?}").contains("Seal"));
}

#[test]
fn a_token_that_is_too_long_is_not_even_read() {
    let links = links(1, "https://connect.example.com");
    assert_eq!(links.open(&"A".repeat(MAX_TOKEN_BYTES + 1), NOW), Err(LinkError::Unreadable));
}
