//! What a request asks for: its query, its `Last-Event-ID` and its `Accept`, parsed once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderName};
use percent_encoding::percent_decode_str;
use tidings_wire::Topic;

use crate::http::problem::Problem;
use crate::proxy::{StartAt, StreamRequest};
use crate::stream::frame::SNAPSHOT;

/// Parameters with the meaning of the header. Libraries that can't set headers use different names.
const LAST_EVENT_IDS: [&str; 3] = ["last_event_id", "lastEventId", "lastEventID"];

/// The header with which an EventSource resumes.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Parses a query and headers. `given` is the topic that the path names, if any.
pub fn parse(
    query: &str,
    headers: &HeaderMap,
    given: Option<Topic>,
    max_topics: usize,
) -> Result<StreamRequest, Problem> {
    let mut topics: Vec<Arc<str>> = Vec::new();
    let mut known: HashSet<Arc<str>> = HashSet::new();
    let mut add = |topic: &Topic| {
        let topic: Arc<str> = topic.as_str().into();
        if known.insert(topic.clone()) {
            // Stops at the first topic beyond the limit, because the client's identity has not been checked yet.
            if topics.len() == max_topics {
                return Err(bad(format!("too many topics: at most {max_topics} are allowed")));
            }
            topics.push(topic);
        }
        Ok(())
    };
    given.iter().try_for_each(&mut add)?;
    let (mut once, mut since, mut last_event_id) = (Once::default(), StartAt::Live, StartAt::Live);
    for (name, value) in pairs(query) {
        let name = decode(name)?;
        match &*name {
            "topic" => {
                let text = decode(value)?;
                add(&Topic::new(&text).map_err(|error| bad(format!("bad topic {}: {error}", quoted(&text))))?)?;
                continue;
            }
            "since" => since = start(&name, &decode(value)?)?,
            // A library appends its own parameter to the page's URL, and its position is newer.
            id if LAST_EVENT_IDS.contains(&id) => match start(id, &decode(value)?)? {
                StartAt::Live => {}
                start => last_event_id = start,
            },
            // `credentials` reads the token.
            "token" => {}
            _ => return Err(bad(format!("unknown parameter {}", quoted(&name)))),
        }
        once.take(&name)?;
    }
    if topics.is_empty() {
        return Err(bad("no topic: add ?topic=NAME to the URL".into()));
    }
    let header = match headers.get(LAST_EVENT_ID) {
        Some(value) => {
            let text = value.to_str().map_err(|_| bad("bad Last-Event-ID: not a position".into()))?;
            Some(start("Last-Event-ID", text)?)
        }
        None => None,
    };
    let given = [header.unwrap_or(StartAt::Live), last_event_id, since];
    let wants_rows = given.contains(&StartAt::Rows);
    let chosen = given.into_iter().find(|start| *start != StartAt::Live);
    Ok(StreamRequest { topics, start: chosen.unwrap_or(StartAt::Live), wants_rows })
}

/// The parameters given so far, of those that may be given only once.
#[derive(Default)]
struct Once(Vec<String>);

impl Once {
    fn take(&mut self, name: &str) -> Result<(), Problem> {
        if self.0.iter().any(|known| known == name) {
            return Err(bad(format!("parameter {name:?} is given twice")));
        }
        self.0.push(name.to_owned());
        Ok(())
    }
}

/// A position, from the parameter or header `name`. As in EventSource, an empty value means no position.
fn start(name: &str, text: &str) -> Result<StartAt, Problem> {
    match text {
        "" => Ok(StartAt::Live),
        "earliest" => Ok(StartAt::Earliest),
        SNAPSHOT => Ok(StartAt::Rows),
        _ => text.parse().map(StartAt::After).map_err(|error| bad(format!("bad {name}: {error}"))),
    }
}

/// The beginning of a text of the client's, for an error: escaped, the whole could be several times as long.
fn quoted(text: &str) -> String {
    const MOST: usize = 64;
    let start: String = text.chars().take(MOST).collect();
    if start.len() < text.len() { format!("{start:?}…") } else { format!("{start:?}") }
}

fn bad(detail: String) -> Problem {
    Problem::BadRequest(detail)
}

/// Names and values of a query, not yet decoded.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    let spaced: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| bad("the query is not UTF-8".into()))?;
    Ok(Cow::Owned(decoded.into_owned()))
}

/// The token in a query, for EventSource, which can't set headers. A value that can't be decoded counts as an empty
/// token.
pub fn token(query: &str) -> Option<Cow<'_, str>> {
    let (_, value) = pairs(query).find(|(name, _)| decode(name).is_ok_and(|name| name == "token"))?;
    Some(decode(value).unwrap_or_default())
}

/// Refuses every parameter except one token.
pub fn only_token(query: &str) -> Result<(), Problem> {
    let mut once = Once::default();
    pairs(query).try_for_each(|(name, _)| match decode(name)? {
        name if name == "token" => once.take(&name),
        name => Err(bad(format!("unknown parameter {}", quoted(&name)))),
    })
}

/// Whether the client accepts an event stream. Without an `Accept` header it accepts anything.
pub fn accepts_stream(headers: &HeaderMap) -> bool {
    // The most specific range decides.
    let ranges = ["text/event-stream", "text/*", "*/*"].into_iter().find_map(|kind| accepts(headers, kind));
    ranges.unwrap_or(!headers.contains_key(ACCEPT))
}

/// Whether the client asks for JSON and not for an event stream.
pub fn asks_for_json(headers: &HeaderMap) -> bool {
    accepts(headers, "application/json") == Some(true) && !names_stream(headers)
}

/// Whether the client names the type of event streams in `Accept`, as an EventSource does.
pub fn names_stream(headers: &HeaderMap) -> bool {
    accepts(headers, "text/event-stream") == Some(true)
}

/// Whether the client accepts this range of media types; `None` if it does not name it.
fn accepts(headers: &HeaderMap, kind: &str) -> Option<bool> {
    let ranges = headers.get_all(ACCEPT).iter().flat_map(|value| value.to_str().unwrap_or("").split(','));
    let qualities = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
        let quality =
            (parts.next()? == kind).then(|| parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()));
        quality.map(|quality| quality != Some(0.0))
    });
    qualities.reduce(|one, other| one || other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    fn parse(query: &str, last_event_id: Option<&str>) -> Result<StreamRequest, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(id) = last_event_id {
            headers.insert(LAST_EVENT_ID, HeaderValue::from_str(id).unwrap());
        }
        super::parse(query, &headers, None, 3)
    }

    fn after(text: &str) -> StartAt {
        StartAt::After(text.parse().unwrap())
    }

    #[test]
    fn topics_are_decoded_and_each_counts_once() {
        let wanted = parse("topic=a+b&topic=%C3%BC&topic=a%20b&", None).unwrap();
        assert_eq!(wanted.topics.iter().map(|t| &**t).collect::<Vec<_>>(), ["a b", "ü"]);
        assert_eq!(wanted.start, StartAt::Live);
    }

    #[test]
    fn the_header_wins_over_last_event_id_and_that_over_since() {
        assert_eq!(parse("topic=a&since=1-1&last_event_id=2-2", Some("3-3")).unwrap().start, after("3-3"));
        assert_eq!(parse("topic=a&since=1-1&last_event_id=2-2", Some("")).unwrap().start, after("2-2"));
        assert_eq!(parse("topic=a&since=1-1&last_event_id=", None).unwrap().start, after("1-1"));
        assert_eq!(parse("topic=a&since=5%3A9%3A10%3A20%3A10,15", None).unwrap().start, after("5:9:10:20:10,15"));
        assert_eq!(parse("topic=a&since=earliest", None).unwrap().start, StartAt::Earliest);
        assert_eq!(parse("topic=a&lastEventId=2-2&since=1-1", None).unwrap().start, after("2-2"));
        // A library appends its parameter to the page's URL.
        for library in ["lastEventId", "lastEventID"] {
            let query = format!("topic=a&last_event_id=1-1&{library}=2-2");
            assert_eq!(parse(&query, None).unwrap().start, after("2-2"));
            assert_eq!(parse(&query, Some("3-3")).unwrap().start, after("3-3"));
            assert_eq!(parse(&format!("topic=a&last_event_id=1-1&{library}="), None).unwrap().start, after("1-1"));
        }
    }

    #[test]
    fn a_stream_that_starts_with_the_rows_resumes_from_its_last_event_id() {
        let wanted = |query: &str, id| parse(query, id).map(|wanted| (wanted.start, wanted.wants_rows)).ok();
        assert_eq!(wanted("topic=a&since=snapshot", None), Some((StartAt::Rows, true)));
        assert_eq!(wanted("topic=a&since=snapshot", Some("3-3")), Some((after("3-3"), true)));
        assert_eq!(wanted("topic=a&since=snapshot&lastEventId=2-2", None), Some((after("2-2"), true)));
        assert_eq!(wanted("topic=a&since=1-1", None), Some((after("1-1"), false)));
        // Cut off before all rows were there, whatever the page began with.
        assert_eq!(wanted("topic=a&since=snapshot&last_event_id=1-1", Some("snapshot")), Some((StartAt::Rows, true)));
        assert_eq!(wanted("topic=a&since=1-1&lastEventId=snapshot", None), Some((StartAt::Rows, true)));
    }

    #[test]
    fn an_invalid_query_is_refused() {
        for query in [
            "",
            "topic=",
            "topic",
            "topic=a%0Ab",
            "topic=%FF",
            "topic=a&x=1",
            "topic=a&since=now",
            "topic=a&since=1&since=2",
            "topic=a&since=&since=",
            "topic=a&lastEventId=1&lastEventId=2",
            "topic=a&token=x&token=x",
            "topic=a&token=x&tok%65n=y",
            "topic=a&lasteventid=1",
            "topic=a&topic=b&topic=c&topic=d",
        ] {
            assert!(matches!(parse(query, None), Err(Problem::BadRequest(_))), "{query:?}");
        }
        assert!(parse("topic=a", Some("x")).is_err());
        for query in ["topic=a", "token=x&token=x", "token=x&tok%65n=y", "lastEventId=1"] {
            assert!(only_token(query).is_err(), "{query:?}");
        }
        assert!(only_token("tok%65n=x").is_ok());
        assert_eq!(token("tok%65n=x").as_deref(), Some("x"));
    }

    #[test]
    fn accept_is_honoured() {
        let accepts =
            |value: &'static str| accepts_stream(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]));
        assert!(accepts_stream(&HeaderMap::new()));
        for good in [
            "text/event-stream",
            "*/*",
            "text/html, text/*;q=0.5",
            "Text/Event-Stream; q=1",
            "*/*;q=0, text/*;q=0, text/event-stream",
            "text/event-stream;charset=utf-8;q=0.1",
        ] {
            assert!(accepts(good), "{good}");
        }
        for bad in [
            "text/html",
            "application/json, text/event-stream;q=0",
            "",
            "*/*;q=0.0",
            "text/event-stream;q=0, */*",
            "text/*;q=0.000, */*;q=1",
            "*/*, text/event-stream; Q=0",
        ] {
            assert!(!accepts(bad), "{bad}");
        }
    }

    #[test]
    fn an_error_quotes_only_the_beginning_of_a_text() {
        for query in [format!("{}=1", "\\".repeat(60_000)), format!("topic={}", "%7F".repeat(20_000))] {
            assert!(parse(&query, None).unwrap_err().to_string().len() < 600);
            assert!(only_token(&query).unwrap_err().to_string().len() < 600);
        }
        assert_eq!(parse("x=1", None).unwrap_err().to_string(), "unknown parameter \"x\"");
    }

    #[test]
    fn parsing_stops_at_the_first_topic_beyond_the_limit() {
        // The text after it is not parsed.
        let problem = parse("topic=a&topic=b&topic=a&topic=c&topic=d&topic=%FF&x=1", None).unwrap_err();
        assert_eq!(problem.to_string(), "too many topics: at most 3 are allowed");
        assert_eq!(parse(&"topic=a&".repeat(1000), None).unwrap().topics.len(), 1);
    }

    proptest! {
        #[test]
        fn no_query_breaks_the_parser(query in "(topic|since|last_event_id|[a-z&=%+]|\\PC|%[0-9A-F]{2}|=|&){0,12}") {
            if let Ok(wanted) = parse(&query, None) {
                prop_assert!((1..=3).contains(&wanted.topics.len()));
                prop_assert!(wanted.topics.iter().all(|topic| Topic::new(topic).is_ok()));
            }
        }

        #[test]
        fn every_topic_survives_a_query(name in "\\PC{1,40}") {
            let encoded = percent_encoding::utf8_percent_encode(&name, percent_encoding::NON_ALPHANUMERIC);
            let wanted = parse(&format!("topic={encoded}"), None).unwrap();
            prop_assert_eq!(&*wanted.topics[0], name.as_str());
        }

        #[test]
        fn no_last_event_id_breaks_the_parser(id in "[ -~]{0,40}") {
            let _ = parse("topic=a", Some(&id));
        }
    }
}
