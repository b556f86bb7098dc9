//! Tokens: from the text in a request to claims that can be trusted. The cryptography is a library's.
//!
//! The key decides the algorithm, never the token (RFC 8725, section 3.1): a public key cannot be taken for a secret.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};

use crate::access::keys::{Key, KeyError, Source};

/// The longest token, in bytes: more than any identity provider issues.
const MAX_TOKEN: usize = 8 * 1024;

/// How far clocks may be apart.
const LEEWAY: Duration = Duration::from_secs(10);

/// The keys in use, and what a token must say beside being signed with one of them.
pub struct Keys {
    source: Source,
    audience: Vec<String>,
    issuer: Vec<String>,
    current: RwLock<Arc<Vec<Key>>>,
    last: Mutex<Reading>,
}

/// The result of the last reading of the keys.
#[derive(Default)]
struct Reading {
    /// The file's content, if it could be read. Its modification time is not enough, because a file may be replaced by
    /// one with the same time.
    bytes: Option<Vec<u8>>,
    /// Why its keys could not be used.
    error: Option<String>,
}

/// What a token says, and until when it holds.
#[derive(Debug)]
pub struct Token {
    /// All of its claims.
    pub claims: Map<String, Value>,
    /// When it expires, the leeway included.
    pub expires: Option<SystemTime>,
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
    /// Its header requires an extension that is not supported (RFC 7515, section 4.1.11; RFC 7797).
    #[error("its header contains {0}, which is not supported")]
    Critical(&'static str),
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
        let keys = Self { source, audience, issuer, current: RwLock::default(), last: Mutex::default() };
        keys.reload()?;
        Ok(keys)
    }

    /// Reads the keys again. On an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), KeyError> {
        let read = self.source.read();
        let mut last = self.last.lock();
        last.bytes = read.as_ref().ok().cloned();
        match read.and_then(|bytes| self.source.parse(&bytes)) {
            Ok(set) => {
                for passed_over in &set.passed_over {
                    tracing::warn!("skipped a key for tokens: {passed_over}");
                }
                *self.current.write() = Arc::new(set.keys);
                last.error = None;
                Ok(())
            }
            Err(error) => {
                last.error = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Reads the keys again if the content of the file has changed. An error is logged once, until there is another
    /// one.
    pub fn refresh(&self) {
        let read = self.source.read();
        let told = {
            let last = self.last.lock();
            match read {
                Ok(bytes) if last.bytes.as_ref() == Some(&bytes) => return,
                Err(error) if last.error.as_ref() == Some(&error.to_string()) => return,
                _ => last.error.clone(),
            }
        };
        match self.reload() {
            Ok(()) => tracing::info!("keys read again"),
            Err(error) if told.as_ref() == Some(&error.to_string()) => {}
            Err(error) => tracing::error!(%error, "the new keys are not usable: the old ones stay in use"),
        }
    }

    /// Checks a token.
    pub fn verify(&self, token: &str) -> Result<Token, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        understand(&header)?;
        let keys = self.current.read().clone();
        let mut failure = TokenError::NoKey;
        for key in keys.iter().filter(|key| key.fits(header.alg, header.kid.as_deref())) {
            match decode::<Map<String, Value>>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(data) => return accept(data.claims),
                Err(error) => failure = TokenError::Invalid(describe(error.kind())),
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

/// A token may name extensions that must be understood before it is trusted. None is supported here.
fn understand(header: &Header) -> Result<(), TokenError> {
    if header.crit.is_some() {
        return Err(TokenError::Critical("crit"));
    }
    if header.extras.contains_key("b64") {
        return Err(TokenError::Critical("b64"));
    }
    Ok(())
}

/// What is wrong with a token, without any part of it, because a parser's errors quote their input.
fn describe(error: &ErrorKind) -> String {
    match error {
        ErrorKind::Json(_) => "its claims are not a JSON object".into(),
        ErrorKind::Base64(_) | ErrorKind::Utf8(_) => "not in base64url".into(),
        ErrorKind::InvalidSignature => "the signature is wrong".into(),
        ErrorKind::ExpiredSignature => "expired".into(),
        ErrorKind::ImmatureSignature => "not valid yet".into(),
        ErrorKind::InvalidAudience => "for another audience".into(),
        ErrorKind::InvalidIssuer => "by another issuer".into(),
        // The names are those that this program requires.
        ErrorKind::MissingRequiredClaim(name) => format!("without {name}"),
        ErrorKind::InvalidClaimFormat(name) => format!("{name} is of the wrong type"),
        _ => "not acceptable".into(),
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

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    use jsonwebtoken::{EncodingKey, encode, get_current_timestamp};
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
        assert_eq!(keys.current.read().len(), 1);
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
        assert!(matches!(load(Source::Jwks(empty.0.clone())), Err(KeyError::Empty { .. })));

        let (file, keys) = keys("reload", &[]);
        let token = sign(&Header::default(), &json!({}), SECRET);
        fs::write(&file.0, "short").unwrap();
        assert!(keys.reload().is_err() && keys.verify(&token).is_ok());
        fs::write(&file.0, SECRET.replace('0', "1")).unwrap();
        assert!(keys.reload().is_ok() && keys.verify(&token).is_err());
    }

    /// A token of these three parts, signed with the secret.
    fn token(header: &str, payload: &str) -> String {
        let message = format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    }

    fn base64url(bytes: &[u8]) -> String {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let six = |chunk: &[u8], i: usize| {
            let word = chunk.iter().chain(&[0, 0]).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
            char::from(letters[(word >> (18 - 6 * i) & 63) as usize])
        };
        bytes.chunks(3).flat_map(|chunk| (0..=chunk.len()).map(move |i| six(chunk, i))).collect()
    }

    #[test]
    fn what_a_token_calls_critical_is_refused() {
        let (_file, keys) = keys("critical", &[]);
        assert!(keys.verify(&token(r#"{"alg":"HS256"}"#, "{}")).is_ok());
        for (header, error) in [
            (r#"{"alg":"HS256","crit":["exp"],"exp":1}"#, None),
            (r#"{"alg":"HS256","crit":["http://example.com/undefined"]}"#, Some(TokenError::Critical("crit"))),
            (r#"{"alg":"HS256","crit":[]}"#, Some(TokenError::Critical("crit"))),
            (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, None),
            (r#"{"alg":"HS256","b64":false}"#, None),
            (r#"{"alg":"HS256","b64":"false"}"#, Some(TokenError::Critical("b64"))),
            (r#"{"alg":"HS256","crit":"exp"}"#, Some(TokenError::Malformed)),
            (r#"{"alg":"HS256","crit":["x"],"crit":null}"#, Some(TokenError::Malformed)),
        ] {
            let refused = keys.verify(&token(header, "{}")).unwrap_err();
            assert!(error.is_none_or(|error| error == refused), "{header}: {refused}");
        }
    }

    #[test]
    fn nothing_of_a_token_is_in_its_error() {
        let (_file, keys) = keys("silent", &["app"]);
        let header = r#"{"alg":"HS256"}"#;
        for payload in [
            r#""a confidential text""#,
            r#"["confidential"]"#,
            r#"{"aud":"app","confidential"#,
            r#"{"aud":{"confidential":1}}"#,
            r#"{"aud":"app","exp":"confidential"}"#,
            r#"{"aud":"app","nbf":"confidential"}"#,
            r#"{"aud":"confidential"}"#,
            "confidential",
            "12345678",
            "null",
        ] {
            let error = keys.verify(&token(header, payload)).unwrap_err().to_string();
            assert!(!error.contains("confidential") && !error.contains("1234"), "{payload}: {error}");
        }
        let header = r#"{"alg":"confidential","kid":"confidential"}"#;
        assert_eq!(keys.verify(&token(header, "{}")).unwrap_err().to_string(), "not a token");
    }

    #[test]
    fn a_replaced_file_is_seen_even_if_its_time_of_change_is_the_same() {
        let (file, keys) = keys("replaced", &[]);
        let before = token(r#"{"alg":"HS256"}"#, "{}");
        keys.refresh();
        assert!(keys.verify(&before).is_ok());
        let modified = fs::metadata(&file.0).and_then(|metadata| metadata.modified()).unwrap();
        fs::write(&file.0, format!("{}\n", SECRET.replace('0', "1"))).unwrap();
        fs::File::options().write(true).open(&file.0).and_then(|file| file.set_modified(modified)).unwrap();
        keys.refresh();
        assert!(keys.verify(&before).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_token(text in "[A-Za-z0-9_.-]{0,60}|\\PC{0,30}") {
            let (_file, keys) = keys("fuzz", &[]);
            prop_assert!(keys.verify(&text).is_err());
        }
    }
}
