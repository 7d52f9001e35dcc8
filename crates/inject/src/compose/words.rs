//! Texts of compose files: commands written as one string, and dollar signs.

/// Splits a command as compose does: words, quotes and backslashes, no variables. `None`: a quote is not closed.
pub fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), close) if open == close => quote = None,
            (Some('\''), char) => word.get_or_insert_default().push(char),
            (_, '\\') => {
                let escaped = chars.next()?;
                let kept = quote == Some('"') && !matches!(escaped, '"' | '\\' | '$' | '`');
                let word = word.get_or_insert_default();
                if kept {
                    word.push('\\');
                }
                word.push(escaped);
            }
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, char) if char.is_whitespace() => words.extend(word.take()),
            (_, char) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// As a compose file has it: compose reads `$` as the beginning of a variable.
pub fn escape(text: &str) -> String {
    text.replace('$', "$$")
}

/// As a person reads it, on one line: words with blanks quoted.
pub fn join(words: &[String]) -> String {
    let quoted = words.iter().map(|word| {
        let word = word.replace("$$", "$").replace('\n', "\\n");
        if word.is_empty() || word.contains([' ', '\t', '"', '\'']) { format!("{word:?}") } else { word }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Whether a user, as compose and images write it, is root.
pub fn is_root(user: &str) -> bool {
    matches!(user.split(':').next(), None | Some("" | "0" | "root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_compose_does() {
        for (text, words) in [
            ("sh -c \"echo $$HOME\"", &["sh", "-c", "echo $$HOME"][..]),
            ("a  'b c'd \"e\\\"f\" g\\ h", &["a", "b cd", "e\"f", "g h"]),
            ("a '' \"\\n\"", &["a", "", "\\n"]),
            ("", &[]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("a\\"), None);
    }

    #[test]
    fn dollars() {
        assert_eq!(escape("echo $HOME"), "echo $$HOME");
        assert_eq!(join(&["sh".into(), "-c".into(), "echo $$HOME".into()]), "sh -c \"echo $HOME\"");
    }
}
