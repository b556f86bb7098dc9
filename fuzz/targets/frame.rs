//! What a stream consists of: events of any name and payload as chunks, which must come apart as they went in, and from
//! which nothing can break out.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings_proxy::stream::frame::Frame;
use tidings_wire::Position;
use tidings_wire::topic::check_event;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Events are separated by a character that no text in Postgres contains; the first line of each is its name.
    let mut body = Vec::new();
    let mut expected = Vec::new();
    for (event, n) in text.split('\0').zip(1..) {
        let (name, payload) = event.split_once('\n').unwrap_or(("changed", event));
        let name = if check_event(name).is_ok() { name } else { "message" };
        let frame = Frame::event(Position::at(7, n), name, payload);
        assert_eq!(frame.len(), frame.bytes(true).len());
        body.extend_from_slice(frame.bytes(true));
        expected.push((format!("7-{n}"), name.to_owned(), payload.replace("\r\n", "\n").replace('\r', "\n")));
    }
    body.extend_from_slice(Frame::end().bytes(true));
    let content = unchunk(&body);
    let text = std::str::from_utf8(&content).expect("UTF-8");
    assert_eq!(events(text), expected);
});

/// The content of a chunked body, which must be well-formed.
fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let line = body.windows(2).position(|pair| pair == b"\r\n").expect("the end of a chunk's head");
        let digits = std::str::from_utf8(&body[..line]).expect("digits");
        assert!(!digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let length = usize::from_str_radix(digits, 16).expect("a length");
        let (chunk, rest) = body[line + 2..].split_at(length);
        body = rest.strip_prefix(b"\r\n").expect("the end of a chunk");
        if length == 0 {
            assert!(body.is_empty());
            return content;
        }
        content.extend_from_slice(chunk);
    }
}

/// Id, name and data of each event, as the standard reads them.
fn events(text: &str) -> Vec<(String, String, String)> {
    let (mut id, mut name, mut data) = (String::new(), String::new(), Vec::new());
    let mut events = Vec::new();
    let lines = text.replace("\r\n", "\n").replace('\r', "\n");
    for line in lines.split_terminator('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => {
                if !data.is_empty() {
                    events.push((id.clone(), std::mem::take(&mut name), std::mem::take(&mut data).join("\n")));
                }
            }
            "id" => id = value.to_owned(),
            "event" => name = value.to_owned(),
            "data" => data.push(value.to_owned()),
            _ => panic!("a line that no frame has: {line:?}"),
        }
    }
    events
}
