//! Who runs: `USER[:GROUP]` resolved with the image's own `/etc/passwd` and `/etc/group`, by docker's rules.
//!
//! Both files come from the image and may hold anything: lines that do not parse are skipped, as libc does.

/// Most bytes of a passwd or group file that are read.
pub const MAX_FILE: usize = 1 << 20;
/// Most supplementary groups: the kernel's NGROUPS_MAX.
const MAX_GROUPS: usize = 65536;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups; the primary one is among them.
    pub groups: Vec<u32>,
    /// Home directory, `/` where the image knows none.
    pub home: String,
}

/// Why there is no such user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// A name that is not in `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in the image's /etc/passwd")]
    UnknownUser(String),
    /// A name that is not in `/etc/group`.
    #[error("unable to find group {0}: no matching entries in the image's /etc/group")]
    UnknownGroup(String),
    /// An id the kernel does not take.
    #[error("the id {0} is out of range: ids are 0 to 2147483647")]
    Range(String),
}

/// The two files.
#[derive(Debug, Clone, Default)]
pub struct Database {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

/// A line of `/etc/passwd`.
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Database {
    /// From the contents of `/etc/passwd` and `/etc/group`; a file the image does not have is empty.
    pub fn new(passwd: Vec<u8>, group: Vec<u8>) -> Self {
        Self { passwd, group }
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        lines(&self.passwd).filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let home = fields.nth(1).unwrap_or("");
            Some(User { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            Some(Group { name, gid: gid.parse().ok()?, members: fields.next().unwrap_or("") })
        })
    }

    /// Resolves `USER[:GROUP]`, each a name or a number; the empty text is root. `added` are further groups.
    ///
    /// A number that the image does not know is taken as it is, with group 0. Without `:GROUP` the user's groups of
    /// `/etc/group` are given; with it, none.
    pub fn resolve(&self, text: &str, added: &[String]) -> Result<Identity, UserError> {
        let (user_text, group_text) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let user_text = if user_text.is_empty() { "0" } else { user_text };
        let number = number(user_text)?;
        let user = self.users().find(|user| user.name == user_text || number == Some(user.uid));
        let (uid, gid, home) = match (&user, number) {
            (Some(user), _) => (user.uid, user.gid, user.home),
            (None, Some(uid)) => (uid, 0, ""),
            (None, None) => return Err(UserError::UnknownUser(user_text.to_owned())),
        };
        let mut identity = Identity { uid, gid, groups: Vec::new(), home: home.to_owned() };
        if !identity.home.starts_with('/') {
            identity.home = "/".to_owned();
        }
        match (group_text, &user) {
            (Some(group), _) => {
                identity.gid = self.group(group)?;
                identity.groups.push(identity.gid);
            }
            (None, user) => {
                identity.groups.push(gid);
                if let Some(user) = user {
                    let member = |group: &Group<'_>| group.members.split(',').any(|name| name == user.name);
                    identity.groups.extend(self.groups().filter(member).map(|group| group.gid));
                }
            }
        }
        for group in added {
            identity.groups.push(self.group(group)?);
        }
        let mut seen = std::collections::HashSet::new();
        identity.groups.retain(|gid| seen.insert(*gid));
        identity.groups.truncate(MAX_GROUPS);
        Ok(identity)
    }

    fn group(&self, text: &str) -> Result<u32, UserError> {
        let number = number(text)?;
        let found = self
            .groups()
            .find(|group| group.name == text || number == Some(group.gid))
            .map(|group| group.gid);
        found.or(number).ok_or_else(|| UserError::UnknownGroup(text.to_owned()))
    }
}

/// Lines that are text; comments are skipped.
fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    let file = &file[..file.len().min(MAX_FILE)];
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// `Some` if the text is a number, an error if the number is no id.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<i32>() {
        Ok(id) => Ok(Some(id.unsigned_abs())),
        Err(_) => Err(UserError::Range(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\ndaemon:x:1:1::/usr/sbin:/bin/false\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n77:x:5:5::/odd:/bin/sh\nnohome:x:6:6\n";
    const GROUP: &str =
        "root:x:0:root\nbin:x:1:root,daemon\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:app\n88:x:9:\n";

    fn database() -> Database {
        Database::new(PASSWD.into(), GROUP.into())
    }

    fn resolve(text: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = database().resolve(text, &[]).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn dockers_table() {
        for (text, uid, gid, groups, home) in [
            ("", 0, 0, vec![0, 1, 10], "/root"),
            ("root", 0, 0, vec![0, 1, 10], "/root"),
            ("0", 0, 0, vec![0, 1, 10], "/root"),
            ("app", 1000, 1001, vec![1001, 10, 44], "/home/app"),
            ("1000", 1000, 1001, vec![1001, 10, 44], "/home/app"),
            ("app:video", 1000, 44, vec![44], "/home/app"),
            ("app:4711", 1000, 4711, vec![4711], "/home/app"),
            ("app:", 1000, 1001, vec![1001, 10, 44], "/home/app"),
            (":video", 0, 44, vec![44], "/root"),
            ("4242", 4242, 0, vec![0], "/"),
            ("4242:4343", 4242, 4343, vec![4343], "/"),
            ("77", 5, 5, vec![5], "/odd"),
            ("app:88", 1000, 9, vec![9], "/home/app"),
            ("nohome", 6, 6, vec![6], "/"),
        ] {
            assert_eq!(resolve(text), (uid, gid, groups, home.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn unknown_names_and_ids_out_of_range() {
        let database = database();
        assert_eq!(database.resolve("ghost", &[]), Err(UserError::UnknownUser("ghost".into())));
        assert_eq!(database.resolve("app:ghosts", &[]), Err(UserError::UnknownGroup("ghosts".into())));
        assert_eq!(database.resolve("4294967296", &[]), Err(UserError::Range("4294967296".into())));
        assert!(database.resolve("-1", &[]).is_err());
    }

    #[test]
    fn added_groups_come_once_each() {
        let added = ["video", "10", "4711"].map(str::to_owned);
        assert_eq!(database().resolve("app", &added).unwrap().groups, [1001, 10, 44, 4711]);
        assert!(database().resolve("app", &["ghosts".to_owned()]).is_err());
    }

    #[test]
    fn an_image_without_the_files_knows_numbers_only() {
        let empty = Database::default();
        assert_eq!(empty.resolve("", &[]).map(|i| (i.uid, i.gid, i.home)), Ok((0, 0, "/".to_owned())));
        assert!(empty.resolve("root", &[]).is_err());
    }

    proptest! {
        #[test]
        fn any_file_is_survived(passwd in prop::collection::vec(any::<u8>(), 0..300), text in "[a-z0-9:]{0,8}") {
            let database = Database::new(passwd.clone(), passwd);
            if let Ok(identity) = database.resolve(&text, &[]) {
                prop_assert!(identity.home.starts_with('/'));
                prop_assert!(identity.groups.contains(&identity.gid));
            }
        }
    }
}
