//! Finds the token of a request, in a header, a cookie or the query. `access` decides whether the token is valid.

use std::borrow::Cow;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, COOKIE};

use crate::http::query;

/// The token of a request: from its `Authorization` header, otherwise from the cookie, otherwise from the query. Only
/// the first of these that is present counts.
pub fn find_token<'a>(headers: &'a HeaderMap, query: &'a str, cookie: Option<&str>) -> Option<Cow<'a, str>> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        // Another scheme, or a value that is not text, counts as a bad token.
        let text = value.to_str().unwrap_or("");
        let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
        return Some(if scheme.eq_ignore_ascii_case("bearer") { token.trim().into() } else { "".into() });
    }
    // Compared as bytes, so that another cookie that is not text does not hide this one.
    let cookies = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    for pair in cookies.map(<[u8]>::trim_ascii) {
        if let Some(name) = cookie
            && let Some(token) = pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
        {
            return Some(std::str::from_utf8(token).unwrap_or("").trim_matches('"').into());
        }
    }
    query::token(query)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn the_header_wins_over_the_cookie_and_that_over_the_query() {
        let both = headers(&[(AUTHORIZATION, "bearer  a.b.c"), (COOKIE, "x=1; token=d.e.f; y")]);
        assert_eq!(find_token(&both, "token=g", Some("token")).as_deref(), Some("a.b.c"));
        let cookie = headers(&[(COOKIE, "x=1; token=\"d.e.f\"; y")]);
        assert_eq!(find_token(&cookie, "token=g", Some("token")).as_deref(), Some("d.e.f"));
        assert_eq!(find_token(&cookie, "a=1&token=g%2Eh", None).as_deref(), Some("g.h"));
        assert_eq!(find_token(&headers(&[]), "topic=token", Some("token")), None);
    }

    #[test]
    fn a_cookie_is_found_among_others_whatever_they_contain() {
        let mut among = HeaderMap::new();
        among.insert(
            COOKIE,
            HeaderValue::from_bytes(b"name=Chlo\xC3\xA9; xtoken=a; token2=b; token; token=d.e.f;").unwrap(),
        );
        assert_eq!(find_token(&among, "", Some("token")).as_deref(), Some("d.e.f"));
        among.insert(COOKIE, HeaderValue::from_bytes(b"token=\xFF").unwrap());
        assert_eq!(find_token(&among, "token=g", Some("token")).as_deref(), Some(""));
    }

    #[test]
    fn an_invalid_token_is_not_the_same_as_no_token() {
        for value in ["Basic dXNlcg==", "Bearer", "Bearer ", "token"] {
            assert!(find_token(&headers(&[(AUTHORIZATION, value)]), "", None).is_some(), "{value}");
        }
        assert_eq!(find_token(&headers(&[]), "token=", None).as_deref(), Some(""));
    }

    proptest! {
        #[test]
        fn no_cookie_breaks_the_parser(cookie in "[ -~]{0,60}", query in "[ -~]{0,40}") {
            let _ = find_token(&headers(&[(COOKIE, &cookie)]), &query, Some("token"));
        }
    }
}
