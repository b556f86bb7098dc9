//! The keys that verify tokens, read from a file that holds a secret or a JSON Web Key Set.
//!
//! A set is read key by key (RFC 7517, section 5). A key is skipped, and logged, if its kind is unknown, if it lacks
//! what its kind needs, or if it is for another purpose or too weak.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde_json::Value;

use crate::access::key_url::KeyUrlError;

/// The shortest secret, in bytes (RFC 7518, section 3.2).
pub const MIN_SECRET: usize = 32;

/// The shortest and the longest modulus of an RSA key, in bits. RFC 7518 (section 3.3) forbids shorter ones; the
/// library refuses longer ones.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The bytes of a coordinate of P-256, and of a key of Ed25519.
const CURVE_BYTES: usize = 32;

/// The longest key file, in bytes: it is read once a second, and the largest providers publish a few dozen KiB.
pub const MAX_FILE: u64 = 1024 * 1024;

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A secret for HS256; one newline at the end is ignored.
    Secret(PathBuf),
    /// A JSON Web Key Set.
    Jwks(PathBuf),
}

/// Why the keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The reason.
        error: std::io::Error,
    },
    /// The file is too long.
    #[error("{} is longer than {MAX_FILE} bytes", .0.display())]
    TooLong(PathBuf),
    /// The secret is too short.
    #[error("{} contains a secret of less than {MIN_SECRET} bytes", .0.display())]
    Short(PathBuf),
    /// The file, or what the URL answers, is not a key set.
    #[error("{0} is not a JSON Web Key Set")]
    Malformed(String),
    /// The keys of a URL can't be fetched.
    #[error("the keys of {origin}: {error}")]
    Url {
        /// The URL.
        origin: String,
        /// The reason.
        error: KeyUrlError,
    },
    /// None of the keys can verify a signature by RS256, ES256, EdDSA or HS256.
    #[error("{origin} contains no key for RS256, ES256, EdDSA or HS256{}", listed(.skipped))]
    Empty {
        /// The file or the URL.
        origin: String,
        /// What is wrong with each key.
        skipped: Vec<String>,
    },
}

fn listed(skipped: &[String]) -> String {
    if skipped.is_empty() { String::new() } else { format!(" ({})", skipped.join("; ")) }
}

/// The keys of one reading.
pub struct KeySet {
    /// The usable keys.
    pub keys: Vec<Key>,
    /// What is wrong with the others, one line for each.
    pub skipped: Vec<String>,
}

/// A key that can verify signatures of one kind.
pub struct Key {
    id: Option<String>,
    /// The only algorithm that the key is for.
    pub algorithm: Algorithm,
    /// The key itself.
    pub key: DecodingKey,
}

impl Source {
    /// The content of the file.
    pub fn read(&self) -> Result<Vec<u8>, KeyError> {
        let (Self::Secret(file) | Self::Jwks(file)) = self;
        let mut bytes = Vec::new();
        File::open(file)
            .and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(|error| KeyError::File { file: file.into(), error })?;
        if bytes.len() as u64 > MAX_FILE { Err(KeyError::TooLong(file.into())) } else { Ok(bytes) }
    }

    /// Parses the content of the file.
    pub fn parse(&self, bytes: &[u8]) -> Result<KeySet, KeyError> {
        match self {
            Self::Secret(file) => {
                let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                if secret.len() < MIN_SECRET {
                    return Err(KeyError::Short(file.into()));
                }
                let key = Key { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) };
                Ok(KeySet { keys: vec![key], skipped: Vec::new() })
            }
            Self::Jwks(file) => parse_set(&file.display().to_string(), bytes, true),
        }
    }
}

/// Parses a key set. A set that everyone can read must hold no `secrets`.
pub fn parse_set(origin: &str, bytes: &[u8], secrets: bool) -> Result<KeySet, KeyError> {
    let malformed = || KeyError::Malformed(origin.into());
    let set: Value = serde_json::from_slice(bytes).map_err(|_| malformed())?;
    let entries = set.get("keys").and_then(Value::as_array).ok_or_else(malformed)?;
    let (mut keys, mut skipped) = (Vec::new(), Vec::new());
    for (entry, n) in entries.iter().zip(1..) {
        let key = Key::of(entry).and_then(|key| match key.algorithm {
            Algorithm::HS256 if !secrets => Err("a secret, which must not be published"),
            _ => Ok(key),
        });
        match key {
            Ok(key) => keys.push(key),
            Err(reason) => {
                let id = entry.get("kid").and_then(Value::as_str);
                let id = id.map(|id| format!(" {:?}", id.chars().take(64).collect::<String>())).unwrap_or_default();
                skipped.push(format!("key {n}{id}: {reason}"));
            }
        }
    }
    if keys.is_empty() { Err(KeyError::Empty { origin: origin.into(), skipped }) } else { Ok(KeySet { keys, skipped }) }
}

impl Key {
    /// Reads a key of a set, or says why it can't be used. The reason contains no part of the key.
    fn of(entry: &Value) -> Result<Self, &'static str> {
        // The JSON library's errors quote the input, so they are not repeated.
        let jwk: Jwk = serde_json::from_value(entry.clone())
            .map_err(|_| "its kind is unknown, or it lacks what its kind needs")?;
        let algorithm = algorithm_of(&jwk.algorithm)?;
        let key = DecodingKey::from_jwk(&jwk).map_err(|_| "not in base64url")?;
        check_size(algorithm, &jwk.algorithm, &key)?;
        let named = match jwk.common.key_algorithm {
            None => algorithm,
            Some(KeyAlgorithm::RS256) => Algorithm::RS256,
            Some(KeyAlgorithm::ES256) => Algorithm::ES256,
            Some(KeyAlgorithm::EdDSA) => Algorithm::EdDSA,
            Some(KeyAlgorithm::HS256) => Algorithm::HS256,
            Some(_) => return Err("its algorithm is not supported"),
        };
        if named != algorithm {
            return Err("its algorithm does not fit its kind");
        }
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return Err("its use is not sig");
        }
        if jwk.common.key_operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
            return Err("its key_ops lack verify");
        }
        Ok(Self { id: jwk.common.key_id, algorithm, key })
    }

    /// Whether this key may have signed a token with this header.
    pub fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithm == algorithm && (self.id.is_none() || id.is_none() || self.id.as_deref() == id)
    }
}

/// The one algorithm for this kind of key.
fn algorithm_of(parameters: &AlgorithmParameters) -> Result<Algorithm, &'static str> {
    match parameters {
        AlgorithmParameters::RSA(_) => Ok(Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Ok(Algorithm::ES256),
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Ok(Algorithm::EdDSA),
        AlgorithmParameters::OctetKey(_) => Ok(Algorithm::HS256),
        AlgorithmParameters::EllipticCurve(_) | AlgorithmParameters::OctetKeyPair(_) => {
            Err("its curve is not supported")
        }
    }
}

fn check_size(algorithm: Algorithm, parameters: &AlgorithmParameters, key: &DecodingKey) -> Result<(), &'static str> {
    match (key.kind(), parameters) {
        (DecodingKeyKind::RsaModulusExponent { n, .. }, _) => match bits(n) {
            bits if bits < *RSA_BITS.start() => Err("an RSA key of less than 2048 bits"),
            bits if bits > *RSA_BITS.end() => Err("an RSA key of more than 4096 bits"),
            _ => Ok(()),
        },
        (DecodingKeyKind::SecretOrDer(secret), _) if algorithm == Algorithm::HS256 => {
            if secret.len() < MIN_SECRET {
                Err("a secret of less than 32 bytes")
            } else {
                Ok(())
            }
        }
        // A point of a curve is a byte for its form and two coordinates.
        (DecodingKeyKind::SecretOrDer(point), AlgorithmParameters::EllipticCurve(_)) => {
            if point.len() == 1 + 2 * CURVE_BYTES { Ok(()) } else { Err("not a point of its curve") }
        }
        (DecodingKeyKind::SecretOrDer(point), _) => {
            if point.len() == CURVE_BYTES {
                Ok(())
            } else {
                Err("not a point of its curve")
            }
        }
    }
}

/// The number of bits of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let number = &number[first..];
    number.first().map_or(0, |byte| number.len() * 8 - byte.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";

    /// The ids of the usable keys of a set, and the reasons why the others are skipped.
    fn read(keys: &[Value]) -> (Vec<String>, Vec<String>) {
        let mut keys = keys.to_vec();
        keys.push(json!({"kty": "oct", "kid": "good", "k": SECRET}));
        let set = Source::Jwks("set".into()).parse(json!({"keys": keys}).to_string().as_bytes()).unwrap();
        (set.keys.into_iter().filter_map(|key| key.id).filter(|id| id != "good").collect(), set.skipped)
    }

    /// A modulus of this many bytes with this first byte.
    fn modulus(bytes: usize, first: u8) -> String {
        let text = |byte: u8| format!("{byte:08b}");
        let bits: String = text(first) + &text(0xFF).repeat(bytes - 1);
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let sixes = bits.as_bytes().chunks(6);
        sixes
            .map(|six| {
                let six = format!("{:0<6}", String::from_utf8_lossy(six));
                char::from(letters[usize::from_str_radix(&six, 2).unwrap()])
            })
            .collect()
    }

    fn rsa(kid: &str, bytes: usize, first: u8) -> Value {
        json!({"kty": "RSA", "kid": kid, "n": modulus(bytes, first), "e": "AQAB"})
    }

    #[test]
    fn a_key_of_an_unknown_kind_is_skipped_and_the_others_are_used() {
        let (good, skipped) = read(&[
            json!({"kty": "AKP", "kid": "post-quantum", "alg": "ML-DSA-65", "pub": "AAAA"}),
            json!({"kty": "RSA", "kid": "no modulus", "e": "AQAB"}),
            json!({"kty": "EC", "kid": "unknown curve", "crv": "secp256k1", "x": "AA", "y": "AA"}),
            json!({"kty": "OKP", "kid": "for agreement", "crv": "X25519", "x": SECRET}),
            json!({"kty": "oct", "kid": "not base64", "k": "*"}),
            json!({"kty": "oct", "kid": "no text", "alg": 5, "k": SECRET}),
            json!({"kty": 7}),
            json!("not an object"),
            json!(null),
        ]);
        assert!(good.is_empty(), "{good:?}");
        assert_eq!(skipped.len(), 9);
        assert!(skipped[0].starts_with("key 1 \"post-quantum\": its kind is unknown"), "{skipped:?}");
        assert!(!skipped.iter().any(|line| line.contains(SECRET)), "{skipped:?}");
    }

    #[test]
    fn weak_keys_are_skipped() {
        let (good, skipped) = read(&[
            rsa("1024", 128, 0x80),
            rsa("2047", 256, 0x7F),
            rsa("2048 with zeros before", 257, 0),
            rsa("2048", 256, 0x80),
            rsa("3072", 384, 0x80),
            rsa("4096", 512, 0xFF),
            rsa("4097", 513, 1),
            rsa("1024 after zeros", 129, 0),
            json!({"kty": "oct", "kid": "short", "k": "c2hvcnQ"}),
            json!({"kty": "OKP", "kid": "cut", "crv": "Ed25519", "x": "AAAA"}),
            json!({"kty": "EC", "kid": "cut too", "crv": "P-256", "x": "AAAA", "y": SECRET}),
        ]);
        assert_eq!(good, ["2048 with zeros before", "2048", "3072", "4096"], "{skipped:?}");
    }

    #[test]
    fn a_key_is_used_only_for_its_stated_purpose() {
        let oct = |kid: &str, member: &str, value: Value| {
            let mut key = json!({"kty": "oct", "kid": kid, "k": SECRET});
            key[member] = value;
            key
        };
        let (good, skipped) = read(&[
            oct("for signatures", "use", json!("sig")),
            oct("to verify", "key_ops", json!(["sign", "verify"])),
            oct("to sign only", "key_ops", json!(["sign"])),
            oct("to nothing", "key_ops", json!([])),
            oct("to encrypt", "key_ops", json!(["encrypt", "wrapKey", "somethingElse"])),
            oct("for encryption", "use", json!("enc")),
            oct("for something else", "use", json!("tls")),
            oct("other algorithm", "alg", json!("HS512")),
            oct("unknown algorithm", "alg", json!("HS1")),
            oct("another kind's", "alg", json!("RS256")),
        ]);
        assert_eq!(good, ["for signatures", "to verify"]);
        assert_eq!(skipped.len(), 8, "{skipped:?}");
    }

    #[test]
    fn a_published_set_has_no_secrets() {
        let set = json!({"keys": [{"kty": "oct", "kid": "leak", "k": SECRET}, rsa("2048", 256, 0x80)]}).to_string();
        let set = parse_set("https://login", set.as_bytes(), false).unwrap();
        assert_eq!((set.keys.len(), set.skipped.len()), (1, 1));
        assert!(set.skipped[0].contains("must not be published"), "{:?}", set.skipped);
    }

    #[test]
    fn a_set_without_a_usable_key_says_what_is_wrong_with_each() {
        let parse = |text: &str| Source::Jwks("set".into()).parse(text.as_bytes()).map(|_| ()).unwrap_err();
        let error = parse(&json!({"keys": [rsa("old", 128, 0x80)]}).to_string()).to_string();
        assert!(error.contains("key 1 \"old\": an RSA key of less than 2048 bits"), "{error}");
        for bad in ["", "{", "[]", "{}", "{\"keys\": 1}", "{\"keys\": {}}"] {
            assert!(matches!(parse(bad), KeyError::Malformed(_)), "{bad}");
        }
        assert!(matches!(parse("{\"keys\": []}"), KeyError::Empty { .. }));
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        assert!(matches!(Source::Jwks("/dev/zero".into()).read(), Err(KeyError::TooLong(_))));
    }
}
