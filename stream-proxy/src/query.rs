//! What a request asks for: its query, its `Last-Event-ID` and its `Accept`, parsed once.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderName};
use percent_encoding::percent_decode_str;
use tidings_wire::{Position, Topic};

use crate::problem::Problem;

/// The header with which an EventSource resumes.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Where a stream starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes from now on.
    Live,
    /// With the first event that is retained.
    Earliest,
    /// Behind this position.
    After(Position),
}

/// A request for a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The topics, each once.
    pub topics: Vec<Arc<str>>,
    /// Where to start.
    pub start: Start,
}

impl Wanted {
    /// Takes a query and headers apart. `given` is a topic that the path names.
    pub fn parse(query: &str, headers: &HeaderMap, given: Option<Topic>, max_topics: usize) -> Result<Self, Problem> {
        let mut topics: Vec<Arc<str>> = Vec::new();
        let mut add = |topic: &Topic| {
            if !topics.iter().any(|known| **known == *topic.as_str()) {
                topics.push(topic.as_str().into());
            }
        };
        given.iter().for_each(&mut add);
        let (mut since, mut last_event_id) = (None, None);
        for (name, value) in pairs(query) {
            let name = decode(name)?;
            let once = |slot: &mut Option<Start>, value: &str| match slot.replace(start(&name, &decode(value)?)?) {
                Some(_) => Err(bad(format!("parameter {name:?} is given twice"))),
                None => Ok(()),
            };
            match &*name {
                "topic" => {
                    let text = decode(value)?;
                    add(&Topic::new(&text).map_err(|error| bad(format!("bad topic {text:?}: {error}")))?);
                }
                "since" => once(&mut since, value)?,
                "last_event_id" => once(&mut last_event_id, value)?,
                // See `token`.
                "token" => {}
                _ => return Err(bad(format!("unknown parameter {name:?}"))),
            }
        }
        if topics.is_empty() {
            return Err(bad("no topic: add ?topic=NAME to the URL".into()));
        }
        if topics.len() > max_topics {
            return Err(bad(format!("too many topics: {} are given and {max_topics} are allowed", topics.len())));
        }
        let header = match headers.get(LAST_EVENT_ID) {
            Some(value) => {
                let text = value.to_str().map_err(|_| bad("bad Last-Event-ID: not a position".into()))?;
                Some(start("Last-Event-ID", text)?)
            }
            None => None,
        };
        let chosen = [header, last_event_id, since].into_iter().flatten().find(|start| *start != Start::Live);
        Ok(Self { topics, start: chosen.unwrap_or(Start::Live) })
    }
}

/// A position by the name of where it stands; empty is none, as EventSource has it.
fn start(name: &str, text: &str) -> Result<Start, Problem> {
    match text {
        "" => Ok(Start::Live),
        "earliest" => Ok(Start::Earliest),
        _ => text.parse().map(Start::After).map_err(|error| bad(format!("bad {name}: {error}"))),
    }
}

fn bad(detail: String) -> Problem {
    Problem::BadRequest(detail)
}

/// Names and values of a query, still encoded.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    let spaced: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| bad("the query is not UTF-8".into()))?;
    Ok(Cow::Owned(decoded.into_owned()))
}

/// The token that a query gives: an EventSource can't set headers. One that can't be decoded is an empty one.
pub fn token(query: &str) -> Option<Cow<'_, str>> {
    let (_, value) = pairs(query).find(|(name, _)| *name == "token")?;
    Some(decode(value).unwrap_or_default())
}

/// Refuses every parameter but the token.
pub fn only_token(query: &str) -> Result<(), Problem> {
    match pairs(query).find(|(name, _)| *name != "token") {
        Some((name, _)) => Err(bad(format!("unknown parameter {name:?}"))),
        None => Ok(()),
    }
}

/// Whether the client takes an event stream; one that says nothing takes anything.
pub fn accepts_stream(headers: &HeaderMap) -> bool {
    !headers.contains_key(ACCEPT) || accepts_one_of(headers, &["text/event-stream", "text/*", "*/*"])
}

/// Whether the client asks for an event stream by name, as an EventSource does.
pub fn names_stream(headers: &HeaderMap) -> bool {
    accepts_one_of(headers, &["text/event-stream"])
}

fn accepts_one_of(headers: &HeaderMap, kinds: &[&str]) -> bool {
    headers.get_all(ACCEPT).iter().flat_map(|value| value.to_str().unwrap_or("").split(',')).any(|range| {
        let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
        let kind = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=").map(|q| q.parse::<f32>()));
        kinds.contains(&kind.as_str()) && quality != Some(Ok(0.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    fn parse(query: &str, last_event_id: Option<&str>) -> Result<Wanted, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(id) = last_event_id {
            headers.insert(LAST_EVENT_ID, HeaderValue::from_str(id).unwrap());
        }
        Wanted::parse(query, &headers, None, 3)
    }

    fn after(text: &str) -> Start {
        Start::After(text.parse().unwrap())
    }

    #[test]
    fn topics_are_decoded_and_each_counts_once() {
        let wanted = parse("topic=a+b&topic=%C3%BC&topic=a%20b&", None).unwrap();
        assert_eq!(wanted.topics.iter().map(|t| &**t).collect::<Vec<_>>(), ["a b", "ü"]);
        assert_eq!(wanted.start, Start::Live);
    }

    #[test]
    fn the_header_wins_over_last_event_id_and_that_over_since() {
        assert_eq!(parse("topic=a&since=1-1&last_event_id=2-2", Some("3-3")).unwrap().start, after("3-3"));
        assert_eq!(parse("topic=a&since=1-1&last_event_id=2-2", Some("")).unwrap().start, after("2-2"));
        assert_eq!(parse("topic=a&since=1-1&last_event_id=", None).unwrap().start, after("1-1"));
        assert_eq!(parse("topic=a&since=5%3A9%3A10%3A20%3A10,15", None).unwrap().start, after("5:9:10:20:10,15"));
        assert_eq!(parse("topic=a&since=earliest", None).unwrap().start, Start::Earliest);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for query in [
            "",
            "topic=",
            "topic",
            "topic=a%0Ab",
            "topic=%FF",
            "topic=a&x=1",
            "topic=a&since=now",
            "topic=a&since=1&since=2",
            "topic=a&topic=b&topic=c&topic=d",
        ] {
            assert!(matches!(parse(query, None), Err(Problem::BadRequest(_))), "{query:?}");
        }
        assert!(parse("topic=a", Some("x")).is_err());
    }

    #[test]
    fn accept_is_honoured() {
        let accepts =
            |value: &'static str| accepts_stream(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]));
        assert!(accepts_stream(&HeaderMap::new()));
        for good in ["text/event-stream", "*/*", "text/html, text/*;q=0.5", "Text/Event-Stream; q=1"] {
            assert!(accepts(good), "{good}");
        }
        for bad in ["text/html", "application/json, text/event-stream;q=0", "", "*/*;q=0.0"] {
            assert!(!accepts(bad), "{bad}");
        }
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
