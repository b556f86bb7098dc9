//! Who decides about access, as the command line says.

use std::sync::Arc;

use url::Url;

use crate::access::application;
use crate::access::fetch::{self, Fetcher};
use crate::access::key_file::{MAX_FILE, Source};
use crate::access::key_url::KeyUrl;
use crate::access::keys::Keys;
use crate::cli::Cli;

/// Who decides about access.
#[derive(Clone, Debug)]
pub enum Judge {
    /// Nobody: every topic is open to everyone.
    Nobody,
    /// Tokens, verified with these keys, and the rules in the database.
    Tokens(Arc<Keys>),
    /// The application that answers at this URL.
    Application(Url, Box<Fetcher>),
}

/// Who decides about access, as the flags say.
pub fn judge(cli: &Cli) -> Result<Judge, String> {
    if let Some(url) = &cli.auth_url {
        let (url, fetcher) = server(cli, "--auth-url", url, application::MOST)?;
        return Ok(Judge::Application(url, Box::new(fetcher)));
    }
    let (audience, issuer) = (cli.jwt_audience.clone(), cli.jwt_issuer.clone());
    if let Some(url) = &cli.jwks_url {
        let (url, fetcher) = server(cli, "--jwks-url", url, MAX_FILE as usize)?;
        let url = KeyUrl::new(&url, fetcher).map_err(|error| format!("--jwks-url: {error}"))?;
        return Ok(Judge::Tokens(Arc::new(Keys::at(url, audience, issuer))));
    }
    let source = cli.jwt_secret_file.clone().map(Source::Secret).or(cli.jwks_file.clone().map(Source::Jwks));
    let Some(source) = source else { return Ok(Judge::Nobody) };
    let keys = Keys::load(source, audience, issuer);
    Ok(Judge::Tokens(Arc::new(keys.map_err(|error| format!("the keys of tokens: {error}"))?)))
}

/// A server that a flag names, whose answers have at most `most` bytes.
fn server(cli: &Cli, flag: &str, url: &str, most: usize) -> Result<(Url, Fetcher), String> {
    let url = fetch::parse_url(url).map_err(|error| format!("{flag}: {error}"))?;
    if fetch::is_exposed(&url) {
        tracing::warn!("{flag} is in plain text, so others on the way can read and change everything: use https://");
    }
    let fetcher = Fetcher::new(&url, cli.auth_ca.as_deref(), cli.auth_timeout, most);
    Ok((url, fetcher.map_err(|error| format!("--auth-ca: {error}"))?))
}
