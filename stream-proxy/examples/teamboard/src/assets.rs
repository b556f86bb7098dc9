//! The page's files, unchanged from `page/`: there is no build step.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

macro_rules! files {
    ($($name:literal: $kind:literal in $folder:literal),* $(,)?) => {
        &[$((concat!("/page/", $name), $kind, include_bytes!(concat!("../", $folder, "/", $name)) as &[u8])),*]
    };
}

/// Path, type and content.
const FILES: &[(&str, &str, &[u8])] = files! {
    "teamboard.css": "text/css; charset=utf-8" in "page",
    "icon.svg": "image/svg+xml" in "page",
    "main.js": "text/javascript; charset=utf-8" in "page",
    "api.js": "text/javascript; charset=utf-8" in "page",
    "tidings-client.js": "text/javascript; charset=utf-8" in "../../client",
    "notes.js": "text/javascript; charset=utf-8" in "page",
    "board.js": "text/javascript; charset=utf-8" in "page",
    "note.js": "text/javascript; charset=utf-8" in "page",
    "home.js": "text/javascript; charset=utf-8" in "page",
    "people.js": "text/javascript; charset=utf-8" in "page",
    "dom.js": "text/javascript; charset=utf-8" in "page",
};

const PAGE: &[u8] = include_bytes!("../page/index.html");

/// Answers a request for a file, or with the page, which knows its own paths.
pub fn answer(path: &str, events_url: &str) -> Response<Full<Bytes>> {
    // Browsers request this icon for a document that names none, such as a picture, and report an error in the console
    // if it does not exist.
    let path = if path == "/favicon.ico" { "/page/icon.svg" } else { path };
    let (kind, content) = match FILES.iter().find(|(name, ..)| *name == path) {
        Some((_, kind, content)) => (*kind, *content),
        None if path == "/" || path.starts_with("/boards/") => ("text/html; charset=utf-8", PAGE),
        None => {
            let mut response = Response::new(Full::from("There is nothing here.\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    let mut response = Response::new(Full::from(content));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A note can contain anything, but it can't run or load anything.
    let policy =
        format!("default-src 'self'; connect-src 'self' {events_url}; base-uri 'none'; frame-ancestors 'none'");
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}
