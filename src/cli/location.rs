//! The place of a store: a directory, or a database.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::out::{Done, Stop};
use crate::{Engine, EngineOptions};
#[cfg(not(feature = "postgres"))]
use crate::{Error, ErrorKind};

/// The beginnings of the address of a database.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// The place of a store. Its printed form has no password.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Location {
    Directory(PathBuf),
    Database(Url),
}

/// The address of a database, which may contain a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url(String);

impl From<OsString> for Location {
    fn from(typed: OsString) -> Self {
        match typed.to_str().filter(|text| SCHEMES.iter().any(|scheme| text.starts_with(scheme))) {
            Some(url) => Self::Database(Url(url.to_owned())),
            None => Self::Directory(typed.into()),
        }
    }
}

impl Location {
    /// Returns the directory. `instead` says what to do for a database.
    pub(super) fn directory(&self, command: &str, instead: &str) -> Done<&Path> {
        match self {
            Self::Directory(path) => Ok(path),
            Self::Database(_) => {
                Err(Stop::Usage(format!("{command} is for the directory of a store, not for a database: {instead}")))
            }
        }
    }

    pub(super) fn is_database(&self) -> bool {
        matches!(self, Self::Database(_))
    }

    /// Returns the same place, independent of the current directory.
    pub(super) fn absolute(&self) -> std::io::Result<Self> {
        match self {
            Self::Directory(path) => std::path::absolute(path).map(Self::Directory),
            Self::Database(_) => Ok(self.clone()),
        }
    }

    /// Returns the place as a word of a shell.
    #[cfg(feature = "postgres")]
    pub(super) fn quoted(&self) -> String {
        super::out::quoted(self.to_string().as_ref())
    }
}

impl Url {
    /// Opens the store in the database.
    pub(super) fn open(&self, options: &EngineOptions) -> crate::Result<Engine> {
        #[cfg(feature = "postgres")]
        return options.connect(&self.for_connect());
        #[cfg(not(feature = "postgres"))]
        {
            let (Self(_), _) = (self, options);
            Err(missing_feature())
        }
    }
}

#[cfg(feature = "postgres")]
impl Url {
    /// Returns the address with the password.
    pub(super) fn for_connect(&self) -> String {
        self.with_password(std::env::var("PGPASSWORD").ok().as_deref())
    }

    /// Adds a password, if the address has none.
    fn with_password(&self, password: Option<&str>) -> String {
        let Self(url) = self;
        let (address, parameters) = url.split_once('?').unwrap_or((url, ""));
        let login = SCHEMES.iter().find_map(|scheme| address.strip_prefix(scheme)?.split_once('@'));
        let has_one = login.is_some_and(|(login, _)| login.contains(':'))
            || parameters.split('&').any(|parameter| parameter.starts_with("password="));
        let Some(password) = password.filter(|password| !password.is_empty() && !has_one) else { return url.clone() };
        let added = password.bytes().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
        format!("{url}{}password={added}", if url.contains('?') { '&' } else { '?' })
    }
}

/// Returns the error of a command on a database, if this program can open none.
#[cfg(not(feature = "postgres"))]
pub(super) fn missing_feature() -> Error {
    let message = "this program was built without the feature `postgres`, so it cannot open a database: \
                   cargo install oncekey --features cli,postgres";
    Error::new(ErrorKind::InvalidOptions, message)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Database(Url(url)) => f.write_str(&without_passwords(url)),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_passwords(&self.0))
    }
}

/// Returns the text with three dots for the password of each address of a database in it.
pub(super) fn without_passwords(text: &str) -> String {
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = split_at_scheme(rest) {
        shown.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "'\"`".contains(c)).unwrap_or(after.len());
        let (url, next) = after.split_at(end);
        // A password that is not percent-encoded may contain `@`, `/` and `?`.
        match url.rsplit_once('@') {
            Some((login, host)) => {
                let user = login.split_once(':').map_or(login, |(user, _)| user);
                shown.push_str(user);
                if user.len() < login.len() {
                    shown.push_str(":...");
                }
                shown.push('@');
                shown.push_str(&without_parameter(host));
            }
            None => shown.push_str(&without_parameter(url)),
        }
        rest = next;
    }
    shown.push_str(rest);
    shown
}

/// Splits after the first scheme.
fn split_at_scheme(text: &str) -> Option<(&str, &str)> {
    let ends = SCHEMES.iter().filter_map(|scheme| text.find(scheme).map(|at| at + scheme.len()));
    text.split_at_checked(ends.min()?)
}

/// Leaves out the password of `?password=secret`.
fn without_parameter(url: &str) -> String {
    let Some((address, parameters)) = url.split_once('?') else { return url.to_owned() };
    let parameters = parameters.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name @ ("password" | "sslpassword"), _)) => format!("{name}=..."),
        _ => parameter.to_owned(),
    });
    format!("{address}?{}", parameters.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (text, shown) in [
            ("postgres://app@db/x", "postgres://app@db/x"),
            ("postgres://db/x", "postgres://db/x"),
            ("postgres://app:secret@db:5432/x", "postgres://app:...@db:5432/x"),
            ("postgresql://app:sec@ret@db/x", "postgresql://app:...@db/x"),
            ("postgres://app:sec/r?et@db/x", "postgres://app:...@db/x"),
            ("postgres://db/x?user=app&password=secret&a=b", "postgres://db/x?user=app&password=...&a=b"),
            (
                "unexpected 'postgres://a:secret@b/c' and postgres://d:secret@e",
                "unexpected 'postgres://a:...@b/c' and postgres://d:...@e",
            ),
            ("no address: a@b", "no address: a@b"),
        ] {
            assert_eq!(without_passwords(text), shown);
            let location = Location::Database(Url(text.to_owned()));
            assert!(!format!("{location} {location:?}").contains("secret"));
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn a_password_of_the_environment_is_added_if_there_is_none() {
        let with = |url: &str, password| Url(url.to_owned()).with_password(password);
        assert_eq!(with("postgres://app@db/x", Some("a&b")), "postgres://app@db/x?password=%61%26%62");
        assert_eq!(
            with("postgres://app@db/x?sslmode=disable", Some("a")),
            "postgres://app@db/x?sslmode=disable&password=%61"
        );
        for url in ["postgres://app:own@db/x", "postgres://db/x?user=app&password=own"] {
            assert_eq!(with(url, Some("a")), url);
        }
        assert_eq!(with("postgres://app@db/x", None), "postgres://app@db/x");
    }

    #[test]
    fn only_an_address_is_a_database() {
        assert!(Location::from(OsString::from("postgresql://db/x")).is_database());
        for path in ["postgres", "postgres:", "./postgres://db", "http://db"] {
            assert_eq!(Location::from(OsString::from(path)), Location::Directory(path.into()));
        }
    }
}
