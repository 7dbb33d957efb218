//! The nearest valid word to a mistyped one.

/// The longest mistyped word that is compared at all; none of ours is half as long.
const MAX_COMPARED: usize = 64;

/// The word of `known` that `typed` was most likely meant to be, if any is near enough for the hint to help: a third
/// of its letters may be wrong, and two always may. Case and `-` for `_` count for nothing.
pub(super) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    if typed.len() > MAX_COMPARED {
        return None;
    }
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let typed = plain(typed);
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&typed, &plain(word)), *word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(2) && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_is_mended_and_nonsense_is_not() {
        let known = ["at", "keep_warm", "concurrency", "timeout"];
        for (typed, meant) in [
            ("concurency", Some("concurrency")),
            ("Keep-Warm", Some("keep_warm")),
            ("tiemout", Some("timeout")),
            ("keepwarm", Some("keep_warm")),
            ("ta", Some("at")),
            ("xy", None),
            ("jitter", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, &known), meant, "{typed}");
        }
        assert_eq!(nearest(&"t".repeat(10_000), &known), None);
    }
}
