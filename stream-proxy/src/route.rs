//! `--route '/api/boards/{id}/events=boards_{id}'`: a path of its own for the stream of a topic.

use std::str::FromStr;

use percent_encoding::percent_decode_str;
use tidings_wire::Topic;
use tidings_wire::template::Template;

/// A path template, and the template of the topic that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    segments: Vec<PathPart>,
    topic: Template,
}

/// One part of a path template, between two slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PathPart {
    /// Matches this text only.
    Text(String),
    /// Matches any part that is not empty.
    Hole(String),
}

/// Why a text is not a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: expected PATH=TOPIC, as in /api/boards/{{id}}/events=boards_{{id}}; a {{name}} must be a whole part of the path"
)]
pub struct BadRoute(String);

/// Why a path that matches a route gives no topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPath(String);

impl FromStr for Route {
    type Err = BadRoute;

    fn from_str(text: &str) -> Result<Self, BadRoute> {
        let bad = |why: &str| BadRoute(why.into());
        let (path, topic) = text.split_once('=').ok_or(bad("no topic"))?;
        let path = path.strip_prefix('/').ok_or(bad("the path must begin with a slash"))?;
        let segments = path.split('/').map(PathPart::parse).collect::<Option<Vec<_>>>().ok_or(bad("bad path"))?;
        let topic = Template::parse(topic).map_err(|error| BadRoute(error.to_string()))?;
        let named = |hole: &str| segments.iter().any(|s| matches!(s, PathPart::Hole(name) if name == hole));
        if let Some(hole) = topic.holes().find(|hole| !named(hole)) {
            return Err(BadRoute(format!("the path has no {{{hole}}}")));
        }
        Ok(Self { segments, topic })
    }
}

impl PathPart {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) if !name.is_empty() && !name.contains(['{', '}']) => Some(Self::Hole(name.into())),
            None if !text.is_empty() && !text.contains(['{', '}']) => Some(Self::Text(text.into())),
            _ => None,
        }
    }
}

impl Route {
    /// The topic of a request's path; `None` if the path does not match this route.
    pub fn topic(&self, path: &str) -> Option<Result<Topic, BadPath>> {
        let mut given = path.strip_prefix('/')?.split('/');
        let mut values = Vec::new();
        for segment in &self.segments {
            match (segment, given.next()?) {
                (PathPart::Text(text), given) if text == given => {}
                (PathPart::Hole(name), given) if !given.is_empty() => values.push((name, given)),
                _ => return None,
            }
        }
        given.next().is_none().then(|| self.fill(&values))
    }

    fn fill(&self, values: &[(&String, &str)]) -> Result<Topic, BadPath> {
        let decode = |(name, value): &(&String, &str)| {
            let value = percent_decode_str(value).decode_utf8().map_err(|_| BadPath("the path is not UTF-8".into()))?;
            Ok(((*name).clone(), value.into_owned()))
        };
        let values: Vec<(String, String)> = values.iter().map(decode).collect::<Result<_, BadPath>>()?;
        let value = |hole: &str| values.iter().find(|(name, _)| name == hole).map_or("", |(_, value)| value.as_str());
        let text = self.topic.fill(value).map_err(|error| BadPath(format!("bad topic: {error}")))?;
        Topic::new(&text).map_err(|error| BadPath(format!("bad topic {text:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(text: &str) -> Route {
        text.parse().unwrap()
    }

    #[test]
    fn a_path_becomes_a_topic() {
        let boards = route("/api/boards/{id}/events=boards_{id}");
        let topic = |path| boards.topic(path).map(|topic| topic.unwrap().to_string());
        assert_eq!(topic("/api/boards/5/events").as_deref(), Some("boards_5"));
        assert_eq!(topic("/api/boards/a%20%C3%BC%2F/events").as_deref(), Some("boards_a ü/"));
        for other in
            ["/api/boards//events", "/api/boards/5", "/api/boards/5/events/", "/api/boards/5/6/events", "/", ""]
        {
            assert_eq!(topic(other), None, "{other}");
        }
        assert_eq!(route("/a/{x}/{y}={y}={x}").topic("/a/1/2").unwrap().unwrap().as_str(), "2=1");
        assert_eq!(route("/news=news").topic("/news").unwrap().unwrap().as_str(), "news");
    }

    #[test]
    fn a_path_cannot_make_a_bad_topic() {
        let boards = route("/b/{id}=boards_{id}");
        for path in ["/b/%0A", "/b/%FF", &format!("/b/{}", "x".repeat(300))] {
            assert!(matches!(boards.topic(path), Some(Err(_))), "{path}");
        }
        // Nor a topic that other values could make too.
        let chat = route("/chat/{tenant}/{room}=chat_{tenant}_{room}");
        assert!(matches!(chat.topic("/chat/acme_corp/board"), Some(Err(_))));
        assert_eq!(chat.topic("/chat/acme/corp_board").unwrap().unwrap().as_str(), "chat_acme_corp_board");
    }

    #[test]
    fn an_invalid_route_is_refused() {
        for text in
            ["", "/a", "a=b", "/a=", "/a/{x}={y}", "/a/{=b", "/a//b=c", "/a/x{y}=c{y}", "/a/{}=b", "/{x}/{y}={x}{y}"]
        {
            assert!(text.parse::<Route>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_path_breaks_a_route(path in "(/|[a-z%]|%[0-9A-F]{2}|\\PC){0,20}") {
            if let Some(Ok(topic)) = route("/{a}/x/{b}={a}-{b}").topic(&path) {
                prop_assert!(Topic::new(topic.as_str()).is_ok());
            }
        }
    }
}
