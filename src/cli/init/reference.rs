use std::path::Path;

use super::places::Places;
use crate::cli::{Failure, print};

/// The folder of secrets in the examples of the reference configuration.
const EXAMPLE_FOLDER: &str = "/etc/consentry/";

/// The reference configuration with these places in it. The examples' secrets are shown beside the identity.
pub(super) fn with_places(reference: &str, places: &Places) -> Result<String, Failure> {
    let folder = places.identity.parent().and_then(Path::to_str).unwrap_or_default();
    let is_plain = !folder.is_empty() && print::toml_text(folder) == format!("\"{folder}\"");
    let shown = if is_plain { format!("{}/", folder.trim_end_matches('/')) } else { EXAMPLE_FOLDER.to_owned() };
    let text = reference.replace(EXAMPLE_FOLDER, &shown);
    let text = set(&text, "vault", "path", &places.vault)?;
    let text = set(&text, "vault", "identity_file", &places.identity)?;
    set(&text, "socket", "path", &places.socket)
}

/// Replaces the value of one key of one section and nothing else, so that every comment stays. The key is known to be
/// there; the built-in reference would be broken otherwise.
fn set(text: &str, section: &str, key: &str, value: &Path) -> Result<String, Failure> {
    let Some(value) = value.to_str() else {
        return Err(Failure::failed(format!("{} is not UTF-8, so TOML cannot hold it", value.display())));
    };
    let header = format!("[{section}]");
    let mut inside = false;
    let mut found = false;
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            inside = trimmed == header || trimmed.starts_with(&format!("{header} "));
        }
        let is_key = inside && !found && trimmed.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        if is_key {
            found = true;
            lines.push(format!("{key} = {}", print::toml_text(value)));
        } else {
            lines.push(line.to_owned());
        }
    }
    if !found {
        return Err(Failure::failed(format!("the built-in configuration has no {key} in [{section}]")).with_hint(
            "this is a mistake in this version of consentry; write a configuration by hand and name it with --config",
        ));
    }
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_examples_keep_their_secrets_beside_the_identity() {
        let places = Places { vault: "/a/vault".into(), identity: "/a/b/identity.txt".into(), socket: "/s".into() };
        let text = with_places(config::REFERENCE, &places).expect("all three are there");
        assert!(text.contains("#client_secret_file = \"/a/b/visma.secret\""), "{text}");
        assert!(!text.contains(EXAMPLE_FOLDER));
    }

    #[test]
    fn only_the_three_places_change() {
        let places = Places { vault: "/v/\"x\"".into(), identity: "/etc/consentry/i".into(), socket: "/s".into() };
        let text = with_places(config::REFERENCE, &places).expect("all three are there");
        let config = config::Config::parse(&text).expect("a configuration");
        assert_eq!((&config.vault.path, &config.vault.identity_file), (&places.vault, &places.identity));
        assert_eq!(config.socket.path, places.socket);
        let changed = text.lines().zip(config::REFERENCE.lines()).filter(|(new, old)| new != old).count();
        assert_eq!((changed, text.lines().count()), (3, config::REFERENCE.lines().count()));
    }

    #[test]
    fn a_key_that_is_not_there_is_an_error_and_not_an_addition() {
        let error = set("[other]\npath = 1\n# path = 2\n[vault]\n#path = 3\n", "vault", "path", Path::new("/v"));
        assert!(error.expect_err("missing").to_string().contains("no path in [vault]"));
    }
}
