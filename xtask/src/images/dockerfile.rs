//! Reads a Dockerfile that starts from nothing and only copies: all that a static program needs. What the file may say is
//! what [`read`] knows; everything else is refused with its line, so that no image differs from what `docker build` makes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// What a Dockerfile asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Recipe {
    /// What a container of it starts with.
    pub config: Config,
    /// One layer each, in order.
    pub copies: Vec<Copies>,
}

/// What a container starts with.
#[derive(Debug, Default, PartialEq)]
pub struct Config {
    /// `NAME=VALUE`, in order.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `UID:GID`.
    pub user: String,
    /// As in `15006/tcp`.
    pub ports: BTreeSet<String>,
    /// Folders of which each container gets its own volume.
    pub volumes: BTreeSet<String>,
    /// Where it starts.
    pub folder: String,
    /// What ends it.
    pub stop_signal: String,
    /// The program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, when nobody gives any.
    pub command: Vec<String>,
}

/// One `COPY`.
#[derive(Debug, PartialEq)]
pub struct Copies {
    /// User and group of what is copied.
    pub owner: (u64, u64),
    /// In the context.
    pub from: Vec<String>,
    /// In the image.
    pub to: String,
}

/// Docker gives it to every image that starts from nothing.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Reads a Dockerfile. `name` is for errors; `arguments` are what `--build-arg` gives.
///
/// # Errors
/// What cannot be read, or is not known here, with its line.
pub fn read(name: &str, text: &str, arguments: &BTreeMap<&str, String>) -> Result<Recipe> {
    let mut reader = Reader { arguments, declared: BTreeMap::new(), recipe: None };
    for (line, statement) in statements(text) {
        reader.statement(&statement).with_context(|| format!("{name}:{line}"))?;
    }
    let recipe = reader.recipe.with_context(|| format!("{name} has no FROM"))?;
    ensure!(!recipe.config.entrypoint.is_empty(), "{name} has no ENTRYPOINT");
    Ok(recipe)
}

/// Lines that go on after a backslash, joined; each with the number of its first line.
fn statements(text: &str) -> Vec<(usize, String)> {
    let (mut all, mut open) = (Vec::new(), None::<(usize, String)>);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (number, mut so_far) = open.take().unwrap_or((index + 1, String::new()));
        match line.strip_suffix('\\') {
            Some(start) => {
                so_far.push_str(start);
                open = Some((number, so_far));
            }
            None => {
                so_far.push_str(line);
                all.push((number, so_far));
            }
        }
    }
    all.extend(open);
    all
}

struct Reader<'a> {
    arguments: &'a BTreeMap<&'a str, String>,
    declared: BTreeMap<String, String>,
    recipe: Option<Recipe>,
}

impl Reader<'_> {
    fn statement(&mut self, statement: &str) -> Result<()> {
        let (instruction, rest) = statement.split_once(char::is_whitespace).unwrap_or((statement, ""));
        let rest = rest.trim();
        if instruction == "FROM" {
            ensure!(rest == "scratch", "FROM {rest}: only `FROM scratch` is known here");
            ensure!(self.recipe.is_none(), "a second FROM: only one stage is known here");
            self.recipe = Some(Recipe::default());
            self.config()?.env.push(PATH.to_owned());
            return Ok(());
        }
        self.config().context("before FROM")?;
        match instruction {
            "ARG" => self.argument(rest)?,
            "LABEL" => {
                let pairs = self.pairs(rest)?;
                self.config()?.labels.extend(pairs);
            }
            "ENV" => {
                let pairs = self.pairs(rest)?;
                self.config()?.env.extend(pairs.into_iter().map(|(name, value)| format!("{name}={value}")));
            }
            "COPY" => self.copy(rest)?,
            "USER" => {
                owner(rest).context("a user is named by numbers: there is no /etc/passwd")?;
                self.config()?.user = rest.to_owned();
            }
            "EXPOSE" => {
                let ports = self.words(rest)?;
                let ports = ports.into_iter().map(|port| if port.contains('/') { port } else { port + "/tcp" });
                self.config()?.ports.extend(ports);
            }
            "WORKDIR" => self.config()?.folder = absolute(rest)?,
            "STOPSIGNAL" => self.config()?.stop_signal = rest.to_owned(),
            "VOLUME" => self.config()?.volumes.extend(list(rest)?),
            "ENTRYPOINT" => self.config()?.entrypoint = list(rest)?,
            "CMD" => self.config()?.command = list(rest)?,
            other => bail!("{other}: this instruction is not known here"),
        }
        Ok(())
    }

    fn config(&mut self) -> Result<&mut Config> {
        Ok(&mut self.recipe.as_mut().context("FROM comes first")?.config)
    }

    fn argument(&mut self, name: &str) -> Result<()> {
        ensure!(!name.contains('='), "ARG {name}: defaults are not known here");
        let value = self.arguments.get(name).with_context(|| format!("ARG {name}: nobody gives a value"))?;
        self.declared.insert(name.to_owned(), value.clone());
        Ok(())
    }

    fn copy(&mut self, rest: &str) -> Result<()> {
        let mut words = self.words(rest)?;
        let mut of = (0, 0);
        while let Some(option) = words.first().filter(|word| word.starts_with("--")) {
            let chown = option.strip_prefix("--chown=").with_context(|| format!("COPY {option} is not known here"))?;
            of = owner(chown)?;
            words.remove(0);
        }
        let to = absolute(&words.pop().context("COPY takes what and where")?)?;
        ensure!(!words.is_empty(), "COPY takes what and where");
        ensure!(words.len() == 1 || to.ends_with('/'), "COPY of several things needs a folder: `{to}/`");
        for word in &words {
            ensure!(!word.contains(['*', '?', '[']), "COPY {word}: wildcards are not known here");
            ensure!(
                !word.starts_with('/') && !word.split('/').any(|part| part == ".."),
                "COPY {word}: not in the context"
            );
        }
        let recipe = self.recipe.as_mut().context("FROM comes first")?;
        recipe.copies.push(Copies { owner: of, from: words, to });
        Ok(())
    }

    fn pairs(&self, rest: &str) -> Result<Vec<(String, String)>> {
        let split = |word: String| -> Result<(String, String)> {
            let (name, value) = word.split_once('=').with_context(|| format!("`{word}` is not NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        self.words(rest)?.into_iter().map(split).collect()
    }

    /// Words at white space, with double quotes and `$NAME`.
    fn words(&self, text: &str) -> Result<Vec<String>> {
        let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            rest = &rest[next.len_utf8()..];
            match next {
                '\\' => bail!("{next} is not known here"),
                '\'' if !quoted => bail!("{next} is not known here"),
                '"' => {
                    quoted = !quoted;
                    word.get_or_insert_default();
                }
                '$' => {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                    let name = &rest[..end];
                    let value = self.declared.get(name).with_context(|| format!("${name}: no ARG declares it"))?;
                    word.get_or_insert_default().push_str(value);
                    rest = &rest[end..];
                }
                space if space.is_whitespace() && !quoted => words.extend(word.take()),
                other => word.get_or_insert_default().push(other),
            }
        }
        ensure!(!quoted, "a double quote is not closed");
        words.extend(word);
        Ok(words)
    }
}

fn owner(text: &str) -> Result<(u64, u64)> {
    let ids = || text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    ids().with_context(|| format!("`{text}` is not UID:GID"))
}

fn absolute(path: &str) -> Result<String> {
    ensure!(path.starts_with('/'), "`{path}` does not begin with /");
    Ok(path.to_owned())
}

/// `["a", "b"]`; the other form would need a shell.
fn list(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).with_context(|| format!("`{text}` is not a JSON list of strings: there is no shell"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", read("x.Dockerfile", text, &BTreeMap::new()).expect_err("refused"))
    }

    #[test]
    fn what_is_known_is_read() {
        let text = "# why\nFROM scratch\nARG VERSION\nLABEL a=\"version $VERSION\" \\\n      b=2\nENV X=1\n\
                    COPY --chown=5:6 data/ /data/\nCOPY one two /\nUSER 5:6\nEXPOSE 80 53/udp\nWORKDIR /data\n\
                    VOLUME [\"/data\"]\nSTOPSIGNAL SIGTERM\nENTRYPOINT [\"/x\", \"y\"]\nCMD [\"z\"]\n";
        let recipe = read("x", text, &BTreeMap::from([("VERSION", "7".to_owned())])).unwrap();
        let config = &recipe.config;
        assert_eq!(config.labels["a"], "version 7");
        assert_eq!(config.labels["b"], "2");
        assert_eq!(config.env, [PATH, "X=1"]);
        assert_eq!((config.user.as_str(), config.folder.as_str()), ("5:6", "/data"));
        assert_eq!(config.ports, BTreeSet::from(["53/udp".to_owned(), "80/tcp".to_owned()]));
        assert_eq!(
            (&*config.entrypoint, &*config.command),
            (&["/x".to_owned(), "y".to_owned()][..], &["z".to_owned()][..])
        );
        assert_eq!(recipe.copies[0].owner, (5, 6));
        assert_eq!(recipe.copies[1], Copies { owner: (0, 0), from: vec!["one".into(), "two".into()], to: "/".into() });
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        assert!(
            error("FROM scratch\n\nRUN make\n").contains("x.Dockerfile:3: RUN"),
            "{}",
            error("FROM scratch\n\nRUN make\n")
        );
        assert!(error("FROM debian").contains("FROM debian"));
        assert!(error("USER 1:1").contains("before FROM"));
        assert!(error("FROM scratch\nUSER nobody").contains("UID:GID"));
        assert!(error("FROM scratch\nENTRYPOINT /x").contains("no shell"));
        assert!(error("FROM scratch\nCOPY a* /").contains("wildcards"));
        assert!(error("FROM scratch\nCOPY ../a /").contains("context"));
        assert!(error("FROM scratch\nCOPY a b /c").contains("/c/"));
        assert!(error("FROM scratch\nCOPY --chmod=5 a /").contains("--chmod=5"));
        assert!(error("FROM scratch\nARG X").contains("ARG X"));
        assert!(error("FROM scratch\nLABEL a=$X").contains("$X"));
        assert!(error("FROM scratch\nUSER 1:1").contains("no ENTRYPOINT"));
    }
}
