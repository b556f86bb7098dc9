//! What a request says about its sender, and which headers of it are passed on to the application.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, CONNECTION, COOKIE, HeaderName, HeaderValue};

use crate::stream::hub::Seen;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What a request says about its sender.
#[derive(Debug)]
pub struct Credentials<'a> {
    /// Its token, from a header, a cookie or the query.
    pub token: Option<Cow<'a, str>>,
    /// All of its headers.
    pub headers: &'a HeaderMap,
    /// The host that it was sent to.
    pub host: Option<&'a str>,
    /// Where it comes from.
    pub peer: IpAddr,
    /// Whether it came over TLS.
    pub secure: bool,
    /// What the hub had published when it came.
    pub seen: Seen,
}

/// Headers for the application.
pub type Forwarded = Arc<[(HeaderName, HeaderValue)]>;

impl Credentials<'_> {
    /// The headers that are passed on to the application: `Cookie`, `Authorization` and `X-Forwarded-…`. Like a reverse
    /// proxy, this adds the client's address to `X-Forwarded-For`, and adds host and scheme if no proxy in front of
    /// this one did.
    pub fn forwarded(&self) -> Forwarded {
        let mut shown: Vec<(HeaderName, HeaderValue)> = Vec::new();
        let hidden = self.hop_by_hop();
        let mut joined = |name: HeaderName, values: Vec<&[u8]>, separator: &[u8]| {
            // Each part was a header's value, so the whole is one too.
            if !values.is_empty()
                && let Ok(value) = HeaderValue::from_bytes(&values.join(separator))
            {
                shown.push((name, value));
            }
        };
        let values = |name: &HeaderName| -> Vec<&[u8]> {
            let is_shown = !hidden.contains(name);
            self.headers.get_all(name).iter().filter(|_| is_shown).map(HeaderValue::as_bytes).collect()
        };
        // HTTP/2 may send each cookie in a field of its own (RFC 9113, section 8.2.3).
        joined(COOKIE, values(&COOKIE), b"; ");
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        match (values(&AUTHORIZATION), &bearer) {
            (given, _) if !given.is_empty() => joined(AUTHORIZATION, given, b", "),
            // An EventSource can't set headers, so its token is in the query.
            (_, Some(bearer)) => joined(AUTHORIZATION, vec![bearer.as_bytes()], b""),
            _ => {}
        }
        let peer = self.peer.to_canonical().to_string();
        let mut addresses = values(&FORWARDED_FOR);
        addresses.push(peer.as_bytes());
        joined(FORWARDED_FOR, addresses, b", ");
        let scheme: &[u8] = if self.secure { b"https" } else { b"http" };
        let (host, scheme) = (self.host.map(str::as_bytes), Some(scheme));
        for (name, default) in [(FORWARDED_HOST, host), (FORWARDED_PROTO, scheme)] {
            let given = values(&name);
            let given = if given.is_empty() { default.into_iter().collect() } else { given };
            joined(name, given, b", ");
        }
        let is_other = |name: &HeaderName| {
            name.as_str().starts_with("x-forwarded-")
                && ![FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO].contains(name)
        };
        for name in self.headers.keys().filter(|name| is_other(name)) {
            joined(name.clone(), values(name), b", ");
        }
        shown.into()
    }

    /// The headers that are only for this connection, which must not be passed on (RFC 9110, section 7.6.1).
    fn hop_by_hop(&self) -> Vec<HeaderName> {
        let named =
            self.headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        named.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(headers: &[(&str, &str)], token: Option<&str>) -> Vec<String> {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap();
        let mut map = HeaderMap::new();
        for (header, value) in headers {
            map.append(name(header), HeaderValue::from_str(value).unwrap());
        }
        let credentials = Credentials {
            token: token.map(Into::into),
            headers: &map,
            host: Some("events.example.org"),
            peer: "::ffff:192.0.2.1".parse().unwrap(),
            secure: false,
            seen: Seen::default(),
        };
        let line = |(name, value): &(HeaderName, HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        credentials.forwarded().iter().map(line).collect()
    }

    const OWN: [&str; 3] =
        ["x-forwarded-for: 192.0.2.1", "x-forwarded-host: events.example.org", "x-forwarded-proto: http"];

    #[test]
    fn the_application_is_shown_cookies_authorization_and_where_the_request_came_from() {
        let seen = shown(
            &[
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("authorization", "Basic x"),
                ("x-forwarded-for", "203.0.113.9"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-prefix", "/live"),
                ("accept", "text/event-stream"),
                ("last-event-id", "5-1"),
                ("host", "other"),
                ("forwarded", "for=127.0.0.1"),
                ("x-user", "admin"),
            ],
            None,
        );
        assert_eq!(
            seen,
            [
                "cookie: a=1; b=2",
                "authorization: Basic x",
                "x-forwarded-for: 203.0.113.9, 192.0.2.1",
                "x-forwarded-host: events.example.org",
                "x-forwarded-proto: https",
                "x-forwarded-prefix: /live",
            ]
        );
    }

    #[test]
    fn hop_by_hop_headers_are_not_passed_on() {
        let headers = [
            ("connection", "keep-alive, Cookie,x-forwarded-secret, x-forwarded-for"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("cookie", "a=1"),
            ("x-forwarded-secret", "x"),
            ("x-forwarded-for", "203.0.113.9"),
        ];
        assert_eq!(shown(&headers, None), OWN);
    }

    #[test]
    fn a_token_from_the_query_is_shown_as_a_header_unless_it_would_break_out_of_it() {
        let with = |value| [&[value], &OWN[..]].concat();
        assert_eq!(shown(&[], Some("a.b")), with("authorization: Bearer a.b"));
        assert_eq!(shown(&[("authorization", "Bearer c")], Some("c")), with("authorization: Bearer c"));
        assert_eq!(shown(&[], Some("a\r\nx-user: admin")), OWN);
    }
}
