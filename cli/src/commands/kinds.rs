//! Names of kinds as people type them.

use anyhow::bail;
use weft_model::Kind;
use weft_proto::weft::v1::ResourceKey;

/// The kind that a word names.
///
/// # Errors
/// When none does; lists what there is.
pub fn kind(word: &str) -> anyhow::Result<&'static str> {
    match Kind::from_word(word) {
        Some(kind) => Ok(kind.as_str()),
        None => bail!("there is no kind `{word}`; the kinds are {}", Kind::ALL.map(Kind::as_str).join(", ")),
    }
}

/// `KIND NAME` or `KIND/NAME` words as keys.
///
/// # Errors
/// When a kind is unknown or a name is missing.
pub fn keys(words: &[String], namespace: &str) -> anyhow::Result<Vec<ResourceKey>> {
    let key = |kind_word: &str, name: &str| -> anyhow::Result<ResourceKey> {
        Ok(ResourceKey { kind: kind(kind_word)?.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    };
    match words {
        [word, names @ ..] if !word.contains('/') => {
            if names.is_empty() {
                bail!("name the resource: {word} NAME");
            }
            names.iter().map(|name| key(word, name)).collect()
        }
        words => words
            .iter()
            .map(|word| match word.split_once('/') {
                Some((kind_word, name)) => key(kind_word, name),
                None => bail!("`{word}` is not KIND/NAME"),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_key_are_understood() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let spaced = keys(&words(&["svc", "a", "b"]), "shop").expect("valid");
        let slashed = keys(&words(&["Service/a", "service/b"]), "shop").expect("valid");
        assert_eq!(spaced, slashed);
        assert!(keys(&words(&["pod", "a"]), "shop").unwrap_err().to_string().contains("HTTPRoute"));
    }
}
