//! The parameters of a connection string, in libpq's forms, a URL or keys and values. The library parses the string,
//! but it does not know every parameter of libpq. So those that the proxy handles itself are taken out here first, and
//! unsupported ones are refused by name.

use std::borrow::Cow;
use std::collections::HashMap;

use percent_encoding::percent_decode_str;

use crate::certificates::TlsError;

/// Parameters that the library handles.
const LIBRARY: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslnegotiation",
    "target_session_attrs",
    "user",
];

/// Parameters that this module handles.
const OWN: &[&str] = &[
    "fallback_application_name",
    "gssencmode",
    "keepalives_count",
    "passfile",
    "ssl_min_protocol_version",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "tcp_user_timeout",
];

/// Parameters that change nothing here: the encoding is always UTF-8, there is no GSSAPI, and TLS neither compresses
/// nor works without SNI.
const WITHOUT_EFFECT: &[&str] =
    &["client_encoding", "gssdelegation", "gsslib", "krbsrvname", "sslcompression", "sslsni"];

/// Parameters of libpq that the proxy does not support. Ignoring one would make the connection less safe, or go to
/// another server.
const UNSUPPORTED: &[&str] = &[
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
];

/// What is wrong with the connection string.
#[derive(Debug, thiserror::Error)]
pub enum BadUrl {
    /// It can't be parsed.
    #[error("neither a URL (postgresql://user@host/database) nor a connection string (host=… dbname=…)")]
    Syntax,
    /// A parameter that libpq doesn't know either.
    #[error("unknown parameter {0:?}: remove it (some tools have their own parameters, such as Prisma's schema)")]
    Unknown(String),
    /// A parameter that the proxy does not support.
    #[error("the parameter {0:?} is not supported")]
    Unsupported(&'static str),
    /// A value that is invalid for its parameter, or that the proxy does not support.
    #[error("the value of the parameter {0:?} is not supported; supported are {1}")]
    Value(&'static str, &'static str),
    /// A TLS parameter on a connection without TLS.
    #[error(
        "the parameter {0:?} needs sslmode=verify-full: with disable, allow or prefer the connection is in plain text"
    )]
    NeedsTls(&'static str),
    /// A certificate without its key, or a key without its certificate.
    #[error("sslcert and sslkey must be given together")]
    Half,
    /// TLS with these parameters is not possible.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The parameters of a connection string.
#[derive(Debug)]
pub struct Parameters {
    /// The string without the parameters that the library doesn't know.
    pub rest: String,
    /// The removed parameters, by name.
    pub values: HashMap<&'static str, String>,
    /// The names of all parameters.
    pub given: Vec<String>,
}

impl Parameters {
    /// Reads a connection string in either form.
    pub fn of(text: &str) -> Result<Self, BadUrl> {
        let mut parameters = Self { rest: String::new(), values: HashMap::new(), given: Vec::new() };
        let scheme = ["postgres://", "postgresql://"].into_iter().find(|scheme| text.starts_with(scheme));
        match scheme {
            Some(scheme) => parameters.read_url(text, scheme.len())?,
            None => parameters.read_words(text)?,
        }
        Ok(parameters)
    }

    /// In a URL, the parameters follow the first question mark that is not part of the password.
    fn read_url(&mut self, text: &str, start: usize) -> Result<(), BadUrl> {
        let body = &text[start..];
        let is_in_query = |at| body[..at].split_once('/').is_some_and(|(_, path)| path.contains('?'));
        let credentials = body.find('@').filter(|at| !is_in_query(*at)).unwrap_or(0);
        let Some(query) = body[credentials..].find('?').map(|at| start + credentials + at) else {
            self.rest = text.into();
            return Ok(());
        };
        self.rest = text[..query].into();
        let mut separator = '?';
        for pair in text[query + 1..].split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or(BadUrl::Syntax)?;
            let decode = |text| percent_decode_str(text).decode_utf8().map_err(|_| BadUrl::Syntax);
            if self.is_for_library(&decode(name)?, || decode(value).map(Cow::into_owned))? {
                self.rest.push(separator);
                // The library would read everything before the first @ as user and password.
                self.rest.push_str(&pair.replace('@', "%40"));
                separator = '&';
            }
        }
        Ok(())
    }

    fn read_words(&mut self, text: &str) -> Result<(), BadUrl> {
        let mut left = text.trim_start();
        while !left.is_empty() {
            let end = left.find(|c: char| c == '=' || c.is_whitespace()).ok_or(BadUrl::Syntax)?;
            let name = &left[..end];
            let value = left[end..].trim_start().strip_prefix('=').ok_or(BadUrl::Syntax)?.trim_start();
            let (value, behind) = word(value).ok_or(BadUrl::Syntax)?;
            if self.is_for_library(name, || Ok(value))? {
                self.rest.push_str(&left[..left.len() - behind.len()]);
                self.rest.push(' ');
            }
            left = behind.trim_start();
        }
        Ok(())
    }

    /// Whether the library knows a parameter. Any other parameter has been removed before, or is an error.
    fn is_for_library(&mut self, name: &str, value: impl FnOnce() -> Result<String, BadUrl>) -> Result<bool, BadUrl> {
        let among = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
        if let Some(own) = among(OWN) {
            self.values.insert(own, value()?);
        } else if let Some(unsupported) = among(UNSUPPORTED) {
            return Err(BadUrl::Unsupported(unsupported));
        } else if among(WITHOUT_EFFECT).is_none() && among(LIBRARY).is_none() {
            let is_name = name.len() <= 40 && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
            // After a password that should have been quoted, this may be the rest of the password.
            let after_password = self.given.last().is_some_and(|given| given == "password");
            return Err(if is_name && !after_password { BadUrl::Unknown(name.into()) } else { BadUrl::Syntax });
        }
        self.given.push(name.into());
        Ok(among(LIBRARY).is_some())
    }
}

/// A value of a connection string, quoted or not, and the text after it.
fn word(text: &str) -> Option<(String, &str)> {
    let (quoted, text) = text.strip_prefix('\'').map_or((false, text), |text| (true, text));
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\'' if quoted => return Some((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return (!value.is_empty()).then_some((value, &text[at..])),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (!quoted && !value.is_empty()).then_some((value, ""))
}
