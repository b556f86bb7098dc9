//! What others send about access: the application's answer to a question, and a key set. The first byte chooses.

#![no_main]

use std::time::Duration;

use http::StatusCode;
use libfuzzer_sys::fuzz_target;
use tidings_proxy::access::application::answer::Answer;
use tidings_proxy::access::key_file::parse_set;

/// The longest validity that an answer can state: ten years.
const LONGEST: Duration = Duration::from_secs(3600 * 24 * 3650);

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    if choice % 2 == 0 {
        return keys(data);
    }
    // Statuses of all classes, most of them with success.
    let status = [200, 201, 204, 206, 301, 401, 403, 404, 500, 503][usize::from(choice / 2) % 10];
    let status = StatusCode::from_u16(status).expect("a status");
    let Ok(answer) = Answer::read(status, data) else { return };
    match answer {
        Answer::No(status) => assert!(matches!(status.as_u16(), 401 | 403 | 404)),
        Answer::Yes(yes) => {
            assert!(status.is_success());
            assert!(yes.expires_in.is_none_or(|time| time <= LONGEST));
            // Nothing is allowed that the body does not name, and nothing narrows without naming.
            let text = String::from_utf8_lossy(data);
            assert!(yes.topics.is_none() || text.contains("topics") || text.contains("\\u"));
            assert_eq!(yes.allows("\0 no topic"), yes.topics.is_none_or(|topics| topics.contains("\0 no topic")));
        }
    }
});

fn keys(data: &[u8]) {
    let [all, published] = [true, false].map(|secrets| parse_set("fuzz", data, secrets));
    match (all, published) {
        // A published set never has more keys, because secrets are left out.
        (Ok(all), Ok(published)) => assert!(published.keys.len() <= all.keys.len() && !published.keys.is_empty()),
        (Ok(all), Err(_)) => assert!(!all.keys.is_empty()),
        (Err(_), published) => assert!(published.is_err()),
    }
}
