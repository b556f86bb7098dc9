//! Where the password for Postgres comes from. It is looked up for each connection, so a changed password needs no
//! restart.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The longest file with a password, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Mode bits that let other users read or write the file.
const OTHERS: u32 = 0o077;

/// The password can't be read.
#[derive(Debug, thiserror::Error)]
#[error("the password in {}: {error}", file.display())]
pub struct PasswordError {
    file: PathBuf,
    error: io::Error,
}

/// The sources of a password, in order of precedence.
#[derive(Clone, Debug, Default)]
pub struct Passwords {
    /// A file with only the password.
    pub file: Option<PathBuf>,
    /// `PGPASSWORD`. In the order of precedence, the connection string comes between the file and this.
    variable: Option<Variable>,
    /// A file of passwords for many servers, in libpq's format.
    passfile: Option<PathBuf>,
}

#[derive(Clone)]
struct Variable(String);

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("_")
    }
}

impl Passwords {
    /// The sources as in libpq: `passfile` of the connection string, then the environment.
    pub fn new(passfile: Option<PathBuf>, variable: impl Fn(&str) -> Option<String>) -> Self {
        let some = |name| variable(name).filter(|value| !value.is_empty());
        let home = || Some(Path::new(&some("HOME")?).join(".pgpass"));
        let passfile = passfile.or_else(|| some("PGPASSFILE").map(PathBuf::from)).or_else(home);
        Self { file: None, variable: some("PGPASSWORD").map(Variable), passfile }
    }

    /// The configuration of a connection, with the current password.
    pub fn fill(&self, config: &Config) -> Result<Config, PasswordError> {
        let mut config = config.clone();
        if let Some(file) = &self.file {
            config.password(read_alone(file)?);
        } else if config.get_password().is_none() {
            if let Some(Variable(password)) = &self.variable {
                config.password(password);
            } else if let Some(password) = self.passfile.as_deref().and_then(|file| look_up(file, &config)) {
                config.password(password);
            }
        }
        Ok(config)
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    Ok(bytes)
}

/// The password in its own file; one newline at the end is ignored.
fn read_alone(file: &Path) -> Result<Vec<u8>, PasswordError> {
    let failed = |error| PasswordError { file: file.into(), error };
    let mut bytes = read(file).map_err(failed)?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        bytes.pop_if(|byte| *byte == b'\r');
    }
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is empty or contains a NUL")));
    }
    Ok(bytes)
}

/// The password of the first matching line, for the first host that has one. As in libpq, a missing file is not an
/// error, and a file that other users may read is skipped.
fn look_up(file: &Path, config: &Config) -> Option<String> {
    let metadata = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
    if metadata.permissions().mode() & OTHERS != 0 {
        tracing::warn!(file = %file.display(), "skipped a password file that other users may read: set its mode to 0600");
        return None;
    }
    let bytes = read(file)
        .inspect_err(|error| tracing::warn!(file = %file.display(), %error, "skipped a password file"))
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let user = match config.get_user() {
        Some(user) => user.to_owned(),
        None => std::env::var("USER").unwrap_or_default(),
    };
    let database = config.get_dbname().unwrap_or(&user);
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    (0..hosts.len().max(addresses.len())).find_map(|i| {
        let host = match (hosts.get(i), addresses.get(i)) {
            (Some(Host::Tcp(name)), _) => name.clone(),
            (Some(Host::Unix(path)), _) => path.to_string_lossy().into_owned(),
            (None, address) => address.map(ToString::to_string).unwrap_or_default(),
        };
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432).to_string();
        text.lines().find_map(|line| fitting(line, [&host, &port, database, &user]))
    })
}

/// The password of a line `host:port:database:user:password`, if it matches. `*` matches everything; a backslash makes
/// the next character literal.
fn fitting(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut only_star = vec![false];
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        let n = fields.len() - 1;
        match c {
            // The password is the rest of the line.
            ':' if n < 4 => {
                fields.push(String::new());
                only_star.push(false);
            }
            '\\' => {
                only_star[n] = false;
                fields[n].extend(characters.next());
            }
            c => {
                only_star[n] = c == '*' && fields[n].is_empty();
                fields[n].push(c);
            }
        }
    }
    let fits = fields.iter().zip(&only_star).zip(wanted).all(|((field, star), wanted)| *star || field == wanted);
    (fields.len() == 5 && fits).then(|| fields.pop().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is removed when the value is dropped.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str, text: &str, mode: u32) -> Self {
            let file = std::env::temp_dir().join(format!("tidings-{}-password-{name}", std::process::id()));
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            Self(file)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn password(passwords: &Passwords, text: &str) -> Option<String> {
        let config = passwords.fill(&text.parse().unwrap()).unwrap();
        config.get_password().map(|password| String::from_utf8(password.to_vec()).unwrap())
    }

    #[test]
    fn lines_match_as_in_libpq() {
        let wanted = ["h", "5432", "db", "u"];
        for (line, password) in [
            ("h:5432:db:u:secret", Some("secret")),
            ("*:*:*:*:a:b", Some("a:b")),
            (r"*:*:*:u:a\:b\\c", Some(r"a:b\c")),
            (r"\h:5432:db:u:p", Some("p")),
            (r"\*:5432:db:u:p", None),
            ("h:5433:db:u:p", None),
            ("*h:5432:db:u:p", None),
            ("#h:5432:db:u:p", None),
            ("h:5432:db:u", None),
            ("", None),
        ] {
            assert_eq!(fitting(line, wanted).as_deref(), password, "{line}");
        }
        assert_eq!(fitting(r"\:\:1:*:*:*:p", ["::1", "1", "d", "u"]).as_deref(), Some("p"));
    }

    #[test]
    fn the_first_place_that_has_a_password_counts() {
        let own = Temporary::new("own", "from the file\r\n", 0o644);
        let passfile = Temporary::new("pass", "other:*:*:*:wrong\n*:5433:db:u:from the passfile\n", 0o600);
        let path = passfile.0.to_str().unwrap().to_owned();
        let variables = |name: &str| match name {
            "PGPASSWORD" => Some("from the variable".to_owned()),
            "PGPASSFILE" => Some(path.clone()),
            _ => None,
        };
        let all = Passwords { file: Some(own.0.clone()), ..Passwords::new(None, variables) };
        let without = "host=h port=5433 dbname=db user=u";
        let with = "host=h port=5433 dbname=db user=u password=given";
        assert_eq!(password(&all, with).as_deref(), Some("from the file"));
        let all = Passwords { file: None, ..all };
        assert_eq!(password(&all, with).as_deref(), Some("given"));
        assert_eq!(password(&all, without).as_deref(), Some("from the variable"));
        let environment = Passwords::new(None, |name| variables(name).filter(|_| name != "PGPASSWORD"));
        assert_eq!(password(&environment, without).as_deref(), Some("from the passfile"));
        let named = Passwords::new(Some(passfile.0.clone()), |_| None);
        assert_eq!(password(&named, "host=other,h port=1,5433 dbname=db user=u").as_deref(), Some("wrong"));
        assert_eq!(password(&named, "host=h port=5434 dbname=db user=u"), None);
        assert_eq!(password(&Passwords::new(None, |_| None), without), None);
    }

    #[test]
    fn a_passfile_that_others_may_read_is_skipped() {
        let file = Temporary::new("open", "*:*:*:*:p\n", 0o640);
        assert_eq!(password(&Passwords::new(Some(file.0.clone()), |_| None), "host=h user=u"), None);
        fs::set_permissions(&file.0, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(password(&Passwords::new(Some(file.0.clone()), |_| None), "host=h user=u").as_deref(), Some("p"));
    }

    #[test]
    fn a_file_without_a_password_is_an_error_that_names_it() {
        let empty = Temporary::new("empty", "\n", 0o600);
        for file in [empty.0.clone(), "/nonexistent/password".into(), "/dev/zero".into()] {
            let passwords = Passwords { file: Some(file.clone()), ..Passwords::default() };
            let error = passwords.fill(&"host=h".parse().unwrap()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(file.to_str().unwrap()), "{error}");
        }
    }
}
