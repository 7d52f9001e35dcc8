//! The application's user, as container engines read it: by number or name, with the groups and home that `/etc/passwd` and
//! `/etc/group` give it. Read here, since the C library of a static program has no way to ask other directories.

use std::path::PathBuf;

use super::SettingsError;

/// Far more than the files of an image or a host have; what comes after it is not looked at.
const LARGEST: u64 = 4 << 20;

/// A user with its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Its home directory, when `/etc/passwd` has it.
    pub home: Option<PathBuf>,
}

/// Who is known on this machine, or in this container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// `/etc/passwd`; empty when there is none.
    pub passwd: String,
    /// `/etc/group`; empty when there is none.
    pub group: String,
}

impl Accounts {
    /// Reads the files. Many images have none.
    #[must_use]
    pub fn here() -> Self {
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// `USER[:GROUP]`, each a number or a name. Without a group: the user's own, or 0 when it has no entry. Further groups
    /// are those that list it, unless a group was given.
    ///
    /// # Errors
    /// A name that is in neither file.
    pub(super) fn user(&self, text: &str) -> Result<AppUser, SettingsError> {
        let text = text.trim();
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let wrong = |problem: String| {
            let remedy = "write UID or UID:GID, as in 1000:1000, or names that are in /etc/passwd and /etc/group";
            SettingsError::new("--app-user", text, problem, remedy)
        };
        let entries = || self.passwd.lines().filter_map(Entry::of);
        let entry = match number(user) {
            Some(uid) => entries().find(|entry| entry.uid == uid),
            None => entries().find(|entry| entry.name == user),
        };
        let Some(uid) = number(user).or(entry.as_ref().map(|entry| entry.uid)) else {
            return Err(wrong(format!("there is no user `{user}` here")));
        };
        let home = entry.as_ref().map(|entry| PathBuf::from(entry.home)).filter(|home| home.is_absolute());
        let (gid, groups) = match (group, &entry) {
            (Some(group), _) => {
                let gid = number(group).or_else(|| self.groups().find(|line| line.name == group).map(|line| line.gid));
                (gid.ok_or_else(|| wrong(format!("there is no group `{group}` here")))?, Vec::new())
            }
            (None, Some(entry)) => {
                let lists = |line: &Group<'_>| line.members.split(',').any(|member| member == entry.name);
                (entry.gid, self.groups().filter(lists).map(|line| line.gid).collect())
            }
            (None, None) => (0, Vec::new()),
        };
        Ok(AppUser { uid, gid, groups, home })
    }

    /// The home of a user, as engines set HOME.
    #[must_use]
    pub fn home(&self, uid: u32) -> Option<&str> {
        self.passwd.lines().filter_map(Entry::of).find(|entry| entry.uid == uid).map(|entry| entry.home)
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(Group::of)
    }
}

/// A line of `/etc/passwd`: `name:password:uid:gid:comment:home:shell`.
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// A line of `/etc/group`: `name:password:gid:members`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some(Self { name, gid: number(fields.next()?)?, members: fields.next().unwrap_or_default() })
    }
}

/// The highest number means "no change" to the kernel.
fn number(digits: &str) -> Option<u32> {
    digits.parse::<u32>().ok().filter(|number| *number != u32::MAX)
}

fn read(path: &str) -> String {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    // Absent in many images; then only numbers can be meant.
    let _ = std::fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd:
                "root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken:x\nredis:x:999:1000:,,:/var/lib/redis:/bin/false\n\
                     twin:x:999:5::/:/bin/false\nhomeless:x:7:7::\n"
                    .to_owned(),
            group: "root:x:0:\nredis:x:1000:\nssl-cert:x:107:other,redis\ntls:x:108:redis2\nempty:x:9\n".to_owned(),
        }
    }

    #[test]
    fn users_are_read_as_engines_read_them() {
        let user = |text: &str| {
            let user = accounts().user(text).unwrap();
            let home = user.home.map(|home| home.display().to_string()).unwrap_or_default();
            (user.uid, user.gid, user.groups, home)
        };
        let redis = "/var/lib/redis".to_owned();
        assert_eq!(user("redis"), (999, 1000, vec![107], redis.clone()));
        assert_eq!(user(" 999 "), (999, 1000, vec![107], redis.clone()));
        assert_eq!(user("redis:ssl-cert"), (999, 107, vec![], redis.clone()));
        assert_eq!(user("redis:12"), (999, 12, vec![], redis));
        assert_eq!(user("0"), (0, 0, vec![], "/root".to_owned()));
        assert_eq!(user("homeless").3, "");
        // An image without an entry for its user: the group is root's, as it is without a wrapper.
        assert_eq!(user("65532"), (65532, 0, vec![], String::new()));
        assert_eq!(user("1000:1000"), (1000, 1000, vec![], String::new()));
        assert_eq!(accounts().home(999), Some("/var/lib/redis"));
    }

    #[test]
    fn who_is_not_there_is_told() {
        for (text, problem) in [
            ("nobody", "no user `nobody`"),
            ("redis:staff", "no group `staff`"),
            ("", "no user ``"),
            ("-1", "no user `-1`"),
            ("4294967295", "no user"),
            ("1:4294967295", "no group"),
            ("1:", "no group ``"),
        ] {
            let error = accounts().user(text).unwrap_err().to_string();
            assert!(error.contains("--app-user") && error.contains(problem), "{text}: {error}");
        }
        assert!(Accounts::default().user("redis").is_err());
    }
}
