//! Tokens: from the text in a request to claims that can be trusted. The cryptography is a library's.
//!
//! The key decides the algorithm, never the token (RFC 8725, section 3.1): a public key cannot be taken for a secret.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use parking_lot::RwLock;
use serde_json::{Map, Value};

/// The longest token, in bytes: more than any identity provider issues.
const MAX_TOKEN: usize = 8 * 1024;

/// How far clocks may be apart.
const LEEWAY: Duration = Duration::from_secs(10);

/// The shortest secret, in bytes (RFC 7518, section 3.2).
const MIN_SECRET: usize = 32;

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A secret for HS256; one newline at its end does not count.
    Secret(PathBuf),
    /// A JSON Web Key Set.
    Jwks(PathBuf),
}

/// The keys in use, and what a token must say beside being signed with one of them.
pub struct Keys {
    source: Source,
    audience: Vec<String>,
    issuer: Vec<String>,
    current: RwLock<Arc<KeySet>>,
}

struct KeySet {
    keys: Vec<Key>,
    /// When the file was changed last.
    modified: Option<SystemTime>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What a token says, and until when it holds.
#[derive(Debug)]
pub struct Token {
    /// All of its claims.
    pub claims: Map<String, Value>,
    /// When it expires, the leeway included.
    pub expires: Option<SystemTime>,
}

/// Why the keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read.
    #[error("{}: {error}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The secret could be guessed.
    #[error("{} holds a secret of less than {MIN_SECRET} bytes", .0.display())]
    Short(PathBuf),
    /// The file is no key set.
    #[error("{} is not a JSON Web Key Set", .0.display())]
    Malformed(PathBuf),
    /// None of the keys can verify a signature by RS256, ES256, EdDSA or HS256.
    #[error("{} holds no key for RS256, ES256, EdDSA or HS256", .0.display())]
    Empty(PathBuf),
}

/// Why a token is not accepted: for the log. The client is told only that it isn't.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is too long.
    #[error("longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// It is no token, or one with an algorithm that is not served.
    #[error("not a token")]
    Malformed,
    /// No key has its algorithm and its key id.
    #[error("no such key")]
    NoKey,
    /// Signature, time, audience or issuer is wrong.
    #[error("{0}")]
    Invalid(String),
}

impl Keys {
    /// Reads the keys. A token must be for one of `audience` and by one of `issuer`, where these are not empty.
    pub fn load(source: Source, audience: Vec<String>, issuer: Vec<String>) -> Result<Self, KeyError> {
        let current = RwLock::new(Arc::new(KeySet::read(&source)?));
        Ok(Self { source, audience, issuer, current })
    }

    /// Reads the keys again. On an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), KeyError> {
        *self.current.write() = Arc::new(KeySet::read(&self.source)?);
        Ok(())
    }

    /// Whether the file has changed since it was read.
    pub fn changed(&self) -> bool {
        modified(self.source.file()) != self.current.read().modified
    }

    /// Checks a token.
    pub fn verify(&self, token: &str) -> Result<Token, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        let set = self.current.read().clone();
        let mut failure = TokenError::NoKey;
        for key in set.keys.iter().filter(|key| key.fits(header.alg, header.kid.as_deref())) {
            match decode::<Map<String, Value>>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(data) => return accept(data.claims),
                Err(error) => failure = TokenError::Invalid(error.to_string()),
            }
        }
        Err(failure)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        let mut required = Vec::new();
        if self.audience.is_empty() {
            validation.validate_aud = false;
        } else {
            validation.set_audience(&self.audience);
            required.push("aud");
        }
        if !self.issuer.is_empty() {
            validation.set_issuer(&self.issuer);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

/// Takes claims whose signature is right. The library lets a time pass that is no number; here it is an error.
fn accept(claims: Map<String, Value>) -> Result<Token, TokenError> {
    for name in ["exp", "nbf"] {
        if claims.get(name).is_some_and(|time| time.as_f64().is_none_or(|time| !(0.0..1e12).contains(&time))) {
            return Err(TokenError::Invalid(format!("{name} is no time")));
        }
    }
    let seconds = claims.get("exp").and_then(Value::as_f64);
    let expires = seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs_f64(seconds) + LEEWAY);
    Ok(Token { claims, expires })
}

impl Source {
    fn file(&self) -> &Path {
        match self {
            Self::Secret(file) | Self::Jwks(file) => file,
        }
    }
}

impl KeySet {
    fn read(source: &Source) -> Result<Self, KeyError> {
        let file = source.file();
        // Taken before the file is read: a change in between is seen as one.
        let modified = modified(file);
        let bytes = fs::read(file).map_err(|error| KeyError::File { file: file.into(), error })?;
        let keys = match source {
            Source::Secret(_) => {
                let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                if secret.len() < MIN_SECRET {
                    return Err(KeyError::Short(file.into()));
                }
                vec![Key { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) }]
            }
            Source::Jwks(_) => {
                let set: JwkSet = serde_json::from_slice(&bytes).map_err(|_| KeyError::Malformed(file.into()))?;
                set.keys.iter().filter_map(Key::of).collect()
            }
        };
        if keys.is_empty() { Err(KeyError::Empty(file.into())) } else { Ok(Self { keys, modified }) }
    }
}

impl Key {
    /// The key of a set, unless it is not for signatures or of a kind that is not served.
    fn of(jwk: &Jwk) -> Option<Self> {
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
            AlgorithmParameters::OctetKey(_) if key.try_get_hmac_secret().is_ok_and(|s| s.len() >= MIN_SECRET) => {
                Algorithm::HS256
            }
            _ => return None,
        };
        let named = match jwk.common.key_algorithm {
            None => Some(algorithm),
            Some(KeyAlgorithm::RS256) => Some(Algorithm::RS256),
            Some(KeyAlgorithm::ES256) => Some(Algorithm::ES256),
            Some(KeyAlgorithm::EdDSA) => Some(Algorithm::EdDSA),
            Some(KeyAlgorithm::HS256) => Some(Algorithm::HS256),
            Some(_) => None,
        };
        let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let id = jwk.common.key_id.clone();
        (named == Some(algorithm) && for_signatures).then_some(Self { id, algorithm, key })
    }

    /// Whether a token with this header may be one of this key's.
    fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithm == algorithm && (self.id.is_none() || id.is_none() || self.id.as_deref() == id)
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
    use proptest::prelude::*;
    use serde_json::json;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// A file that is gone with the value.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let file = std::env::temp_dir().join(format!("tidings-{}-{name}", std::process::id()));
            fs::write(&file, text).unwrap();
            Self(file)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn sign(header: &Header, claims: &Value, secret: &str) -> String {
        encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn keys(name: &str, audience: &[&str]) -> (File, Keys) {
        let file = File::new(name, &format!("{SECRET}\n"));
        let audience = audience.iter().map(|text| (*text).into()).collect();
        let keys = Keys::load(Source::Secret(file.0.clone()), audience, vec![]).unwrap();
        (file, keys)
    }

    #[test]
    fn a_token_signed_with_the_secret_is_taken_and_others_are_not() {
        let (_file, keys) = keys("secret", &[]);
        let claims = json!({"role": "web", "exp": get_current_timestamp() + 60});
        let good = sign(&Header::default(), &claims, SECRET);
        let token = keys.verify(&good).unwrap();
        assert_eq!(token.claims["role"], "web");
        assert!(token.expires.unwrap() > SystemTime::now());

        let other_secret = sign(&Header::default(), &claims, &SECRET.replace('0', "1"));
        assert!(matches!(keys.verify(&other_secret), Err(TokenError::Invalid(_))));
        let other_algorithm = sign(&Header::new(Algorithm::HS512), &claims, SECRET);
        assert_eq!(keys.verify(&other_algorithm).unwrap_err(), TokenError::NoKey);
        // {"alg":"none"}, and the good token's payload without a signature.
        let payload = good.split('.').nth(1).unwrap();
        let none = format!("eyJhbGciOiJub25lIn0.{payload}.");
        assert_eq!(keys.verify(&none).unwrap_err(), TokenError::Malformed);
        assert_eq!(keys.verify(&"x".repeat(MAX_TOKEN + 1)).unwrap_err(), TokenError::TooLong);
        assert!(keys.verify(&format!("{good}x")).is_err());
    }

    #[test]
    fn times_audience_and_issuer_are_checked() {
        let (_file, keys) = keys("claims", &["app"]);
        let now = get_current_timestamp();
        let verify = |claims: Value| keys.verify(&sign(&Header::default(), &claims, SECRET));
        assert!(verify(json!({"aud": "app"})).is_ok());
        assert!(verify(json!({"aud": ["x", "app"], "exp": now + 9, "nbf": now - 9})).is_ok());
        for bad in [
            json!({}),
            json!({"aud": "x"}),
            json!({"aud": "app", "exp": now - 60}),
            json!({"aud": "app", "exp": "soon"}),
            json!({"aud": "app", "exp": -1}),
            json!({"aud": "app", "nbf": now + 60}),
            json!({"aud": "app", "nbf": "x"}),
        ] {
            assert!(verify(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_key_decides_the_algorithm() {
        let k = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";
        let set = json!({"keys": [
            {"kty": "oct", "kid": "a", "alg": "HS256", "k": k},
            {"kty": "oct", "kid": "b", "alg": "HS512", "k": k},
            {"kty": "oct", "kid": "c", "use": "enc", "k": k},
            {"kty": "oct", "kid": "../d", "k": "c2hvcnQ"},
        ]});
        let file = File::new("jwks", &set.to_string());
        let keys = Keys::load(Source::Jwks(file.0.clone()), vec![], vec!["me".into()]).unwrap();
        assert_eq!(keys.current.read().keys.len(), 1);
        let token = |kid: Option<&str>, claims| {
            let header = Header { kid: kid.map(Into::into), ..Header::default() };
            keys.verify(&sign(&header, &claims, SECRET))
        };
        assert!(token(Some("a"), json!({"iss": "me"})).is_ok());
        assert!(token(None, json!({"iss": "me"})).is_ok());
        for kid in ["b", "c", "../d", "../../etc/passwd", ""] {
            assert_eq!(token(Some(kid), json!({"iss": "me"})).unwrap_err(), TokenError::NoKey, "{kid}");
        }
        assert!(token(Some("a"), json!({"iss": "you"})).is_err());
    }

    #[test]
    fn keys_that_are_none_are_refused_and_a_bad_change_keeps_the_old_ones() {
        let short = File::new("short", "0123456789abcdef0123456789abcde\n");
        let load = |source| Keys::load(source, vec![], vec![]);
        assert!(matches!(load(Source::Secret(short.0.clone())), Err(KeyError::Short(_))));
        assert!(matches!(load(Source::Jwks(short.0.clone())), Err(KeyError::Malformed(_))));
        assert!(matches!(load(Source::Secret("/nonexistent".into())), Err(KeyError::File { .. })));
        let empty = File::new("empty", "{\"keys\": []}");
        assert!(matches!(load(Source::Jwks(empty.0.clone())), Err(KeyError::Empty(_))));

        let (file, keys) = keys("reload", &[]);
        let token = sign(&Header::default(), &json!({}), SECRET);
        fs::write(&file.0, "short").unwrap();
        assert!(keys.reload().is_err() && keys.verify(&token).is_ok());
        fs::write(&file.0, SECRET.replace('0', "1")).unwrap();
        assert!(keys.reload().is_ok() && keys.verify(&token).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_token(text in "[A-Za-z0-9_.-]{0,60}|\\PC{0,30}") {
            let (_file, keys) = keys("fuzz", &[]);
            prop_assert!(keys.verify(&text).is_err());
        }
    }
}
