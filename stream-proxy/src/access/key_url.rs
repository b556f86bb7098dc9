//! Keys that an identity provider publishes at a URL. They are fetched at the start, when they are old, and when a
//! token names an unknown key. If a fetch fails, the keys of the last success stay in use.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AGE, CACHE_CONTROL};
use hyper::{HeaderMap, StatusCode, Uri};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use url::Url;

use crate::access::fetch::{FetchError, Fetcher};

/// The shortest time between two fetches, whatever keys tokens name: bad tokens must not flood the publisher.
const AT_MOST: Duration = Duration::from_secs(60);

/// The same while there are no keys at all, so that no token can be verified.
const AT_MOST_WITHOUT: Duration = Duration::from_secs(5);

/// The age at which keys are fetched again if the publisher states none, and the highest such age.
const USUAL_AGE: Duration = Duration::from_secs(3600);
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// A URL, and when it was last fetched.
#[derive(Debug)]
pub struct KeyUrl {
    /// The URL without its query, for messages.
    pub name: String,
    target: Uri,
    fetcher: Fetcher,
    /// Held during a fetch, so that those who wait for it share it.
    fetching: AsyncMutex<()>,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    /// When the last fetch ended, and whether it succeeded.
    last: Option<Instant>,
    /// Whether there are keys.
    has_keys: bool,
    /// When the keys will be old.
    old: Option<Instant>,
}

/// Why keys can't be fetched.
#[derive(Debug, thiserror::Error)]
pub enum KeyUrlError {
    /// There is no answer.
    #[error("it {0}")]
    Fetch(#[from] FetchError),
    /// There is an answer, without keys.
    #[error("it answered {0}")]
    Status(StatusCode),
}

impl KeyUrl {
    /// Keys at `url`. Fails if a URL can be parsed but not sent.
    pub fn new(url: &Url, fetcher: Fetcher) -> Result<Self, hyper::http::uri::InvalidUri> {
        let target = Uri::try_from(url.as_str())?;
        let mut named = url.clone();
        named.set_query(None);
        let (fetching, times) = (AsyncMutex::default(), Mutex::default());
        Ok(Self { name: named.into(), target, fetcher, fetching, times })
    }

    /// Fetches the keys and gives them to `take`, which says whether it could use them. Does nothing if they were
    /// fetched just now. All callers that wait for the same fetch share it.
    pub async fn fetch<E: From<KeyUrlError>>(
        &self,
        take: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let _fetching = self.fetching.lock().await;
        if !self.times.lock().may_fetch(Instant::now()) {
            return None;
        }
        let fetched = self.get().await;
        let age = fetched.as_ref().map_or(AT_MOST, |(headers, _)| lifetime(headers));
        let taken = fetched.map_err(E::from).and_then(|(_, body)| take(&body));
        self.times.lock().note(Instant::now(), taken.is_ok(), age);
        Some(taken)
    }

    async fn get(&self) -> Result<(HeaderMap, Bytes), KeyUrlError> {
        let fetched = self.fetcher.get(&self.target, &[]).await?;
        match fetched.status {
            StatusCode::OK => Ok((fetched.headers, fetched.body)),
            status => Err(KeyUrlError::Status(status)),
        }
    }

    /// When to fetch again although no token names an unknown key.
    pub fn due(&self) -> Instant {
        self.times.lock().due()
    }
}

impl Times {
    fn may_fetch(&self, now: Instant) -> bool {
        let pause = if self.has_keys { AT_MOST } else { AT_MOST_WITHOUT };
        self.last.is_none_or(|last| last + pause <= now)
    }

    fn note(&mut self, now: Instant, success: bool, age: Duration) {
        self.last = Some(now);
        self.has_keys |= success;
        let age = if success {
            age
        } else if self.has_keys {
            AT_MOST
        } else {
            AT_MOST_WITHOUT
        };
        self.old = Some(now + age);
    }

    fn due(&self) -> Instant {
        self.old.unwrap_or_else(Instant::now)
    }
}

/// For how long the keys of an answer are fresh, as its headers say (RFC 9111), within bounds.
fn lifetime(headers: &HeaderMap) -> Duration {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<String> =
        directives.flat_map(|value| value.split(',')).map(|part| part.trim().to_ascii_lowercase()).collect();
    if directives.iter().any(|directive| directive == "no-cache" || directive == "no-store") {
        return AT_MOST;
    }
    let seconds = |text: &str| text.trim_matches('"').parse().ok().map(Duration::from_secs);
    let max_age = directives.iter().find_map(|directive| seconds(directive.strip_prefix("max-age=")?));
    let age = headers.get(AGE).and_then(|value| seconds(value.to_str().ok()?)).unwrap_or_default();
    max_age.map_or(USUAL_AGE, |max_age| max_age.saturating_sub(age)).clamp(AT_MOST, MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    #[test]
    fn cache_headers_are_respected_within_bounds() {
        let of = |pairs: &[(HeaderName, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            lifetime(&pairs.collect()).as_secs()
        };
        assert_eq!(of(&[]), 3600);
        assert_eq!(of(&[(CACHE_CONTROL, "public, Max-Age=600, must-revalidate")]), 600);
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=\"600\""), (AGE, "500")]), 100);
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=600"), (AGE, "590")]), 60);
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=0")]), 60);
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=99999999999")]), 24 * 3600);
        for never in ["no-store", "no-cache, max-age=600"] {
            assert_eq!(of(&[(CACHE_CONTROL, never)]), 60, "{never}");
        }
        for odd in ["max-age=-5", "max-age=soon", "s-maxage=1", "max-age"] {
            assert_eq!(of(&[(CACHE_CONTROL, odd)]), 3600, "{odd}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_fetched_at_most_once_a_minute_and_more_often_only_while_there_are_none() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut times = Times::default();
        assert!(times.may_fetch(start) && times.due() <= Instant::now());
        times.note(start, false, USUAL_AGE);
        assert_eq!((times.may_fetch(after(4)), times.may_fetch(after(5)), times.due()), (false, true, after(5)));
        times.note(after(5), true, USUAL_AGE);
        assert_eq!((times.may_fetch(after(64)), times.may_fetch(after(65)), times.due()), (false, true, after(3605)));
        times.note(after(3605), false, USUAL_AGE);
        assert_eq!(
            (times.may_fetch(after(3664)), times.may_fetch(after(3665)), times.due()),
            (false, true, after(3665))
        );
    }
}
