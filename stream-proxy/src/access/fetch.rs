//! GET requests to other servers: the application that decides about access, and the publisher of keys. Their answers
//! are not trusted: time and size are limited, and redirects are not followed.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::Url;

use crate::certificates::TlsError;
use crate::upstream::tls;

/// How long a connection is kept for the next request. Servers close idle connections after 5 s (Node) or 20 s (Puma),
/// and a request that arrives just then has to be sent again.
const IDLE: Duration = Duration::from_secs(4);

/// The proxy's name in `User-Agent`.
const NAME: HeaderValue = HeaderValue::from_static(concat!("tidings-proxy/", env!("CARGO_PKG_VERSION")));

/// A client for one server.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    /// The longest time for one answer.
    time: Duration,
    /// The longest body.
    most: usize,
}

/// An answer.
#[derive(Debug)]
pub struct Fetched {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer. The texts contain no part of the request, which may be secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It took too long.
    #[error("gave no answer within {0:?}")]
    Late(Duration),
    /// It is too long.
    #[error("gave an answer of more than {0} bytes")]
    TooLong(usize),
    /// There is no connection, or it broke.
    #[error("can't be reached: {0}")]
    Unreachable(String),
    /// The request can't be written.
    #[error("can't be asked: {0}")]
    Request(#[from] hyper::http::Error),
}

/// Why a URL can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BadUrl {
    /// It can't be parsed.
    #[error("not a URL: {0}")]
    Malformed(#[from] url::ParseError),
    /// Its scheme is neither http nor https.
    #[error("expected http:// or https://")]
    Scheme,
    /// It has a part that can't be sent.
    #[error("a user, a password or a fragment is not allowed")]
    Extra,
}

/// Parses the URL of a server.
pub fn parse_url(text: &str) -> Result<Url, BadUrl> {
    let url = Url::parse(text)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(BadUrl::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(BadUrl::Extra);
    }
    Ok(url)
}

/// Whether others could read on the way what is sent to `url`.
pub fn is_exposed(url: &Url) -> bool {
    let is_local = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "http" && !is_local
}

impl Fetcher {
    /// A client for the server of `url`. The server's certificate must come from an authority in the file `roots`, or
    /// else from one that the system trusts. The client waits `time` for an answer, and reads at most `most` bytes of
    /// its body.
    pub fn new(url: &Url, roots: Option<&Path>, time: Duration, most: usize) -> Result<Self, TlsError> {
        let config = match url.scheme() {
            "https" => tls::client(roots, true, None)?,
            _ => ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth(),
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(time));
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector.wrap_connector(http));
        Ok(Self { client, time, most })
    }

    /// Fetches `target` with these headers. If the server closes an idle connection just then, the request is sent
    /// again.
    pub async fn get(&self, target: &Uri, headers: &[(HeaderName, HeaderValue)]) -> Result<Fetched, FetchError> {
        let fetching = async {
            match self.get_once(target, headers).await {
                Err(Failure::Closed(_)) => self.get_once(target, headers).await,
                fetched => fetched,
            }
        };
        match timeout(self.time, fetching).await {
            Ok(Ok(fetched)) => Ok(fetched),
            Ok(Err(Failure::Closed(error) | Failure::Other(error))) => Err(error),
            Err(_) => Err(FetchError::Late(self.time)),
        }
    }

    async fn get_once(&self, target: &Uri, headers: &[(HeaderName, HeaderValue)]) -> Result<Fetched, Failure> {
        let mut request = Request::get(target.clone()).body(Empty::new()).map_err(FetchError::Request)?;
        let sent = request.headers_mut();
        sent.insert(USER_AGENT, NAME);
        sent.insert(ACCEPT, HeaderValue::from_static("application/json"));
        sent.extend(headers.iter().cloned());
        let response = self.client.request(request).await.map_err(|error| {
            let unreachable = FetchError::Unreachable(chain(&error));
            if is_closed(&error) { Failure::Closed(unreachable) } else { Failure::Other(unreachable) }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.most).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                FetchError::TooLong(self.most)
            } else {
                FetchError::Unreachable(chain(&*error))
            }
        })?;
        Ok(Fetched { status: head.status, headers: head.headers, body: body.to_bytes() })
    }
}

/// Why one attempt failed.
enum Failure {
    /// The server closed the connection instead of an answer.
    Closed(FetchError),
    Other(FetchError),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::Other(error)
    }
}

/// Whether the server closed the connection instead of an answer.
fn is_closed(error: &hyper_util::client::legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_incomplete_message() || error.is_closed())
        {
            return true;
        }
        let reset = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| reset.contains(&error.kind())) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error and its causes, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_that_can_be_sent_are_accepted() {
        for good in ["http://localhost:3000/may?x=1", "https://app.example.org", "http://[::1]/"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["", "/may", "ftp://x/", "http://user@x/", "http://:secret@x/", "http://x/#here", "file:///etc/x"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_text_is_exposed_except_on_this_machine() {
        let exposed = |text: &str| is_exposed(&parse_url(text).unwrap());
        for safe in ["https://x", "http://localhost:1", "http://a.localhost", "http://127.0.0.9", "http://[::1]"] {
            assert!(!exposed(safe), "{safe}");
        }
        for open in ["http://app", "http://10.0.0.1", "http://localhost.example.org"] {
            assert!(exposed(open), "{open}");
        }
    }
}
