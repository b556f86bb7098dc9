//! What the database sends: parts of notifications, positions, segments, templates. The first byte chooses.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings_wire::limit::WIDEST;
use tidings_wire::outline::MAX_OUTLINE;
use tidings_wire::segment::MAX_PREVIOUS;
use tidings_wire::{Part, Position, Template, Topic, lender, segment};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    if choice % 4 == 0 {
        if let Ok(Some((lender, own))) = lender::split(data) {
            assert!(own.len() < data.len() && lender.prefix().len() <= data.len());
        }
        assert!(lender::first_entry(data).map_or(0, <[u8]>::len) <= data.len());
        for event in segment::events(data).map_while(Result::ok) {
            // An outline, each byte of which may be a NULL, and values that may have been there before.
            let most = 4 * MAX_OUTLINE + WIDEST * (data.len() + MAX_PREVIOUS);
            assert!(event.topic.len() + event.event.len() <= data.len() && event.payload.len() <= most);
        }
        return;
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match choice % 4 {
        1 => {
            if let Ok(part) = Part::parse(text) {
                assert!(part.events.iter().all(|(_, event)| Topic::new(event.topic).is_ok()));
                assert!(part.previous < part.tick);
            }
        }
        2 => {
            if let Ok(position) = text.parse::<Position>() {
                // What is written is what was read.
                assert_eq!(position.to_string().parse::<Position>().as_ref(), Ok(&position));
            }
        }
        _ => {
            let (template, topic) = text.split_once('\n').unwrap_or((text, ""));
            if let Ok(template) = Template::parse_any(template) {
                let _ = template.matches(topic);
            }
        }
    }
});
