//! Tokens: from the text in a request to claims that can be trusted. A library does the cryptography.
//!
//! The key decides the algorithm, never the token (RFC 8725, section 3.1): a public key cannot be taken for a secret.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use serde_json::{Map, Value};

use crate::access::keys::Keys;

/// The longest token, in bytes: more than any identity provider issues.
const MAX_TOKEN: usize = 8 * 1024;

/// How far clocks may differ.
const LEEWAY: Duration = Duration::from_secs(10);

/// The claims of a token, and when it expires.
#[derive(Debug)]
pub struct Token {
    /// All of its claims.
    pub claims: Map<String, Value>,
    /// When it expires, the leeway included.
    pub expires: Option<SystemTime>,
}

/// Why a token is not accepted, for the log. The client learns only that it isn't.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is too long.
    #[error("longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// It is not a token, or its algorithm is not supported.
    #[error("not a token")]
    Malformed,
    /// Its header requires an extension that is not supported (RFC 7515, section 4.1.11; RFC 7797).
    #[error("its header contains {0}, which is not supported")]
    Critical(&'static str),
    /// No key has its algorithm and its key id.
    #[error("no such key")]
    NoKey,
    /// It was good, but has expired.
    #[error("expired")]
    Expired,
    /// Signature, time, audience or issuer is wrong.
    #[error("{0}")]
    Invalid(String),
}

impl TokenError {
    /// What the application must do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::TooLong | Self::Malformed => "send the token itself, and nothing else",
            Self::Critical(_) => "sign tokens without it",
            Self::NoKey => "sign with a key that the proxy has, or give the proxy this one and send it SIGHUP",
            Self::Expired => "the application must renew it before it expires; look at the clocks, too",
            Self::Invalid(_) => "sign it with the key that the proxy has, for its audience and issuer",
        }
    }
}

impl Token {
    /// Verifies a token with `keys`.
    pub fn verify(token: &str, keys: &Keys) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        understand(&header)?;
        let validation = |algorithm| validation(algorithm, keys);
        let mut failure = TokenError::NoKey;
        for key in keys.current().iter().filter(|key| key.fits(header.alg, header.kid.as_deref())) {
            match decode::<Map<String, Value>>(token, &key.key, &validation(key.algorithm)) {
                Ok(data) => return accept(data.claims),
                Err(error) => failure = TokenError::of(error.kind()),
            }
        }
        Err(failure)
    }
}

impl TokenError {
    fn of(error: &ErrorKind) -> Self {
        match error {
            // The library looks at the claims only after the signature has proved right.
            ErrorKind::ExpiredSignature => Self::Expired,
            other => Self::Invalid(describe(other)),
        }
    }
}

/// What is required of a token in addition to its signature.
fn validation(algorithm: Algorithm, keys: &Keys) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY.as_secs();
    validation.validate_nbf = true;
    let mut required = Vec::new();
    if keys.audience.is_empty() {
        validation.validate_aud = false;
    } else {
        validation.set_audience(&keys.audience);
        required.push("aud");
    }
    if !keys.issuer.is_empty() {
        validation.set_issuer(&keys.issuer);
        required.push("iss");
    }
    validation.set_required_spec_claims(&required);
    validation
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
        ErrorKind::ImmatureSignature => "not valid yet".into(),
        ErrorKind::InvalidAudience => "for another audience".into(),
        ErrorKind::InvalidIssuer => "by another issuer".into(),
        // The names are those that this program requires.
        ErrorKind::MissingRequiredClaim(name) => format!("without {name}"),
        ErrorKind::InvalidClaimFormat(name) => format!("{name} is of the wrong type"),
        _ => "not acceptable".into(),
    }
}

/// Accepts claims whose signature is right. The library ignores times that are not numbers; here they are an error.
fn accept(claims: Map<String, Value>) -> Result<Token, TokenError> {
    for name in ["exp", "nbf"] {
        if claims.get(name).is_some_and(|time| time.as_f64().is_none_or(|time| !(0.0..1e12).contains(&time))) {
            return Err(TokenError::Invalid(format!("{name} is not a time")));
        }
    }
    let seconds = claims.get("exp").and_then(Value::as_f64);
    let expires = seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs_f64(seconds) + LEEWAY);
    Ok(Token { claims, expires })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    use crate::access::key_file::{KeyError, Source};
    use jsonwebtoken::{EncodingKey, encode, get_current_timestamp};
    use proptest::prelude::*;
    use serde_json::json;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// A file that is removed when the value is dropped.
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
    fn only_a_token_signed_with_the_secret_is_accepted() {
        let (_file, keys) = keys("secret", &[]);
        let claims = json!({"role": "web", "exp": get_current_timestamp() + 60});
        let good = sign(&Header::default(), &claims, SECRET);
        let token = Token::verify(&good, &keys).unwrap();
        assert_eq!(token.claims["role"], "web");
        assert!(token.expires.unwrap() > SystemTime::now());

        let other_secret = sign(&Header::default(), &claims, &SECRET.replace('0', "1"));
        assert!(matches!(Token::verify(&other_secret, &keys), Err(TokenError::Invalid(_))));
        let other_algorithm = sign(&Header::new(Algorithm::HS512), &claims, SECRET);
        assert_eq!(Token::verify(&other_algorithm, &keys).unwrap_err(), TokenError::NoKey);
        // {"alg":"none"}, and the good token's payload without a signature.
        let payload = good.split('.').nth(1).unwrap();
        let none = format!("eyJhbGciOiJub25lIn0.{payload}.");
        assert_eq!(Token::verify(&none, &keys).unwrap_err(), TokenError::Malformed);
        assert_eq!(Token::verify(&"x".repeat(MAX_TOKEN + 1), &keys).unwrap_err(), TokenError::TooLong);
        assert!(Token::verify(&format!("{good}x"), &keys).is_err());
    }

    #[test]
    fn times_audience_and_issuer_are_checked() {
        let (_file, keys) = keys("claims", &["app"]);
        let now = get_current_timestamp();
        let verify = |claims: Value| Token::verify(&sign(&Header::default(), &claims, SECRET), &keys);
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
        assert_eq!(keys.current().len(), 1);
        let token = |kid: Option<&str>, claims| {
            let header = Header { kid: kid.map(Into::into), ..Header::default() };
            Token::verify(&sign(&header, &claims, SECRET), &keys)
        };
        assert!(token(Some("a"), json!({"iss": "me"})).is_ok());
        assert!(token(None, json!({"iss": "me"})).is_ok());
        for kid in ["b", "c", "../d", "../../etc/passwd", ""] {
            assert_eq!(token(Some(kid), json!({"iss": "me"})).unwrap_err(), TokenError::NoKey, "{kid}");
        }
        assert!(token(Some("a"), json!({"iss": "you"})).is_err());
    }

    #[test]
    fn invalid_keys_are_refused_and_a_bad_change_keeps_the_old_ones() {
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
        assert!(keys.reload().is_err() && Token::verify(&token, &keys).is_ok());
        fs::write(&file.0, SECRET.replace('0', "1")).unwrap();
        assert!(keys.reload().is_ok() && Token::verify(&token, &keys).is_err());
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
    fn a_token_with_a_critical_header_is_refused() {
        let (_file, keys) = keys("critical", &[]);
        assert!(Token::verify(&token(r#"{"alg":"HS256"}"#, "{}"), &keys).is_ok());
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
            let refused = Token::verify(&token(header, "{}"), &keys).unwrap_err();
            assert!(error.is_none_or(|error| error == refused), "{header}: {refused}");
        }
    }

    #[test]
    fn an_error_contains_nothing_of_the_token() {
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
            let error = Token::verify(&token(header, payload), &keys).unwrap_err().to_string();
            assert!(!error.contains("confidential") && !error.contains("1234"), "{payload}: {error}");
        }
        let header = r#"{"alg":"confidential","kid":"confidential"}"#;
        assert_eq!(Token::verify(&token(header, "{}"), &keys).unwrap_err().to_string(), "not a token");
    }

    #[test]
    fn a_replaced_file_is_noticed_even_if_its_modification_time_is_the_same() {
        let (file, keys) = keys("replaced", &[]);
        let before = token(r#"{"alg":"HS256"}"#, "{}");
        keys.refresh();
        assert!(Token::verify(&before, &keys).is_ok());
        let modified = fs::metadata(&file.0).and_then(|metadata| metadata.modified()).unwrap();
        fs::write(&file.0, format!("{}\n", SECRET.replace('0', "1"))).unwrap();
        fs::File::options().write(true).open(&file.0).and_then(|file| file.set_modified(modified)).unwrap();
        keys.refresh();
        assert!(Token::verify(&before, &keys).is_err());
    }

    proptest! {
        #[test]
        fn no_random_text_is_a_valid_token(text in "[A-Za-z0-9_.-]{0,60}|\\PC{0,30}") {
            let (_file, keys) = keys("fuzz", &[]);
            prop_assert!(Token::verify(&text, &keys).is_err());
        }
    }
}
