//! A user and a group as people name them, and the numbers behind the names.
//!
//! `/etc/passwd` and `/etc/group` are read here, not by the C library: a static program has no plug-ins that would know more,
//! and accounts of daemons are in these files. Those of a directory service can be given as numbers.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::str::FromStr;

use super::PrivilegesError;
use crate::bad_text::BadText;

/// `NAME`, `NAME:GROUP`, or numbers in place of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName {
    user: String,
    /// `None`: the user's own.
    group: Option<String>,
}

impl FromStr for UserName {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let is_name = |name: &str| {
            let is_odd =
                |letter: char| letter == ':' || letter.is_whitespace() || letter.is_control();
            !name.is_empty() && !name.contains(is_odd)
        };
        if !is_name(user) || !group.is_none_or(is_name) {
            return Err(BadText::new(
                text,
                "is not a user, or a user and a group",
                EXAMPLE,
            ));
        }
        Ok(Self {
            user: user.to_owned(),
            group: group.map(str::to_owned),
        })
    }
}

/// The numbers of a user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl UserName {
    /// The numbers, as the files of this machine tell them.
    pub(super) fn look_up(&self) -> Result<Account, PrivilegesError> {
        self.look_up_in(Path::new("/etc/passwd"), Path::new("/etc/group"))
    }

    fn look_up_in(&self, passwd: &Path, group: &Path) -> Result<Account, PrivilegesError> {
        let user = &self.user;
        let entry = match (find(passwd, user), number(user)) {
            // Numbers do without the file.
            (Err(_), Some(_)) => None,
            (entry, _) => entry?,
        };
        let uid = entry.map(|(uid, _)| uid).or_else(|| number(user));
        let uid = uid.ok_or_else(|| PrivilegesError::UnknownUser(user.clone()))?;
        let gid = match (&self.group, entry) {
            (Some(name), _) => match number(name) {
                Some(gid) => gid,
                None => {
                    let entry = find(group, name)?;
                    let unknown = || PrivilegesError::UnknownGroup(name.clone());
                    entry.map(|(gid, _)| gid).ok_or_else(unknown)?
                }
            },
            (None, Some((_, Some(gid)))) => gid,
            (None, _) => return Err(PrivilegesError::NoGroup(user.clone())),
        };
        Ok(Account { uid, gid })
    }
}

/// The two numbers behind a name or a number: of a user his own and his group's, of a group its own. passwd(5), group(5): `name:password:number:…`.
fn find(path: &Path, wanted: &str) -> Result<Option<(u32, Option<u32>)>, PrivilegesError> {
    let read = || -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().map_err(|error| PrivilegesError::Accounts(path.to_owned(), error))?;
    let entries = || {
        text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, id) = (fields.next()?, number(fields.nth(1)?)?);
            Some((name, (id, fields.next().and_then(number))))
        })
    };
    // A name may look like a number, and comes first then, as with chown(1).
    let by_name = entries().find(|(name, _)| *name == wanted);
    let by_number = || entries().find(|(_, (id, _))| number(wanted) == Some(*id));
    Ok(by_name.or_else(by_number).map(|(_, ids)| ids))
}

/// A user's or group's number. The highest one means "unchanged" to the system.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits)?;
    (number != u32::MAX).then_some(number)
}

/// The files of machines with people have some kilobytes.
const MOST_BYTES: u64 = 1024 * 1024;

const EXAMPLE: &str = "nobody, sockhop:yggdrasil or 65534:65534";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn look_up(text: &str) -> Result<Account, String> {
        let folder = tempfile::tempdir().unwrap();
        let (passwd, group) = (folder.path().join("passwd"), folder.path().join("group"));
        fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/sh\n\nbroken\n# no:x:y:z\n1000:x:7:8::/:\nhop:x:900:901:\u{fc}:/:/bin/false\nlone:x:902\n",
        )
        .unwrap();
        fs::write(&group, "root:x:0:\nhops:x:903:ada,hop\n").unwrap();
        let name: UserName = text.parse().map_err(|error: BadText| error.to_string())?;
        name.look_up_in(&passwd, &group)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_numbers_become_numbers() {
        for (text, uid, gid) in [
            ("hop", 900, 901),
            ("hop:hops", 900, 903),
            ("hop:5", 900, 5),
            ("900", 900, 901),
            ("900:5", 900, 5),
            ("4242:hops", 4242, 903),
            ("4242:4343", 4242, 4343),
            ("lone:5", 902, 5),
            ("1000", 7, 8),
        ] {
            assert_eq!(look_up(text), Ok(Account { uid, gid }), "{text}");
        }
    }

    #[test]
    fn what_nobody_knows_is_told() {
        for (text, expected) in [
            ("nemo", "there is no user nemo"),
            ("hop:nemo", "there is no group nemo"),
            ("4242", "user 4242 has no group"),
            ("lone", "user lone has no group"),
            ("4294967295", "there is no user 4294967295"),
            ("hop:4294967295", "there is no group 4294967295"),
        ] {
            let error = look_up(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        for text in ["", ":", "hop:", ":hops", "hop:a:b", "a b", "a\n"] {
            let error = look_up(text).unwrap_err();
            assert!(error.contains("is not a user"), "{text}: {error}");
        }
    }

    #[test]
    fn numbers_do_without_files() {
        let none = Path::new("/nonexistent");
        let name: UserName = "12:34".parse().unwrap();
        let account = name.look_up_in(none, none).unwrap();
        assert_eq!(account, Account { uid: 12, gid: 34 });
        let name: UserName = "hop:34".parse().unwrap();
        let error = name.look_up_in(none, none).unwrap_err();
        assert!(matches!(error, PrivilegesError::Accounts(..)), "{error}");
    }
}
