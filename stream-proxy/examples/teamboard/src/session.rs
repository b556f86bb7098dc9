//! Who is signed in: a token in a cookie, signed with the secret that the proxy also has. Signing in is for development
//! only: anyone can pick a person.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::COOKIE;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

/// The cookie's name. Cookies ignore ports, so browsers send it to the proxy on the same host too.
const COOKIE_NAME: &str = "teamboard_token";

/// The database role of everyone who is signed in.
const ROLE: &str = "teamboard_member";

/// How long a sign-in lasts.
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// HS256 needs a key as long as its hash.
const MIN_SECRET_BYTES: usize = 32;

/// The claims of a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// The database role.
    pub role: String,
    /// The person's id.
    pub sub: String,
    /// When the token ends, in seconds since 1970.
    exp: u64,
}

/// Signs tokens and checks them.
pub struct Keys {
    sign: EncodingKey,
    check: DecodingKey,
}

impl Keys {
    /// Reads the secret; one newline at its end is ignored.
    pub fn read(file: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(file)?;
        let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if secret.len() < MIN_SECRET_BYTES {
            return Err(io::Error::other(format!("the secret has less than {MIN_SECRET_BYTES} bytes")));
        }
        Ok(Self { sign: EncodingKey::from_secret(secret), check: DecodingKey::from_secret(secret) })
    }

    /// The `Set-Cookie` header that signs a person in.
    pub fn sign_in(&self, person: &str) -> Result<String, jsonwebtoken::errors::Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let exp = (now + LIFETIME).as_secs();
        let claims = Claims { role: ROLE.into(), sub: person.into(), exp };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign)?;
        Ok(format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}", LIFETIME.as_secs()))
    }

    /// The claims of the request's cookie, if it is valid.
    pub fn signed_in(&self, headers: &HeaderMap) -> Option<Claims> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split("; ")).filter_map(|pair| pair.split_once('='));
        let (_, token) = pairs.find(|(name, _)| *name == COOKIE_NAME)?;
        Some(jsonwebtoken::decode(token, &self.check, &Validation::new(Algorithm::HS256)).ok()?.claims)
    }
}

/// The `Set-Cookie` header that signs out.
pub fn sign_out() -> String {
    format!("{COOKIE_NAME}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")
}
