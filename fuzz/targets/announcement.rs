//! What goes from the relay to the proxies, in both directions: ticks of both versions of the header as notifications,
//! and long positions. The first byte chooses.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings_wire::batch::MAX_PART;
use tidings_wire::position::{END, MAX_COUNT, Seen};
use tidings_wire::topic::check_name;
use tidings_wire::{Announcement, Event, Part, Position, Snapshot, outline};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 4 {
        0 | 1 => announce(data, choice % 4 == 1),
        2 => position(data),
        _ => {
            // An outline is stored in a short form, and read back.
            let Ok(text) = std::str::from_utf8(data) else { return };
            let has_codes = text.bytes().any(|byte| (1..=8).contains(&byte));
            if !has_codes && text.len() <= outline::MAX_OUTLINE {
                assert_eq!(outline::lengthen(&outline::shorten(text)).as_deref(), Some(text));
            }
            let _ = outline::lengthen(text);
        }
    }
});

/// What is announced is what is heard: the same events in order, or a hint.
fn announce(data: &[u8], is_early: bool) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut announcement = Announcement::new(9, 5);
    let mut events = Vec::new();
    for line in text.split('\x01') {
        let (topic, payload) = line.split_once('\x02').unwrap_or(("t", line));
        if check_name(topic).is_ok() {
            events.push(Event { topic, event: "changed", payload: payload.into() });
        }
    }
    events.iter().for_each(|event| announcement.push(event));
    if is_early {
        announcement.make_early();
    }
    let texts = announcement.finish();
    let parts: Vec<Part<'_>> = texts.iter().map(|text| Part::parse(text).expect("what was announced")).collect();
    assert!(texts.iter().all(|text| text.len() <= MAX_PART));
    if parts[0].is_hint() {
        return assert!(parts.len() == 1 && parts[0].is_durable);
    }
    assert!(parts.iter().zip(1..).all(|(part, n)| {
        (part.tick, part.previous, part.part, part.parts, part.is_durable) == (9, 5, n, texts.len() as u32, !is_early)
    }));
    let heard: Vec<_> = parts.iter().flat_map(|part| &part.events).collect();
    assert_eq!(heard.len(), events.len());
    for ((heard, event), n) in heard.into_iter().zip(&events).zip(1..) {
        assert_eq!((heard.0, &heard.1), (n, event));
    }
}

/// A position of many running transactions is read as it was written.
fn position(data: &[u8]) {
    let mut numbers = data.chunks_exact(4).map(|bytes| u64::from(u32::from_le_bytes(bytes.try_into().expect("four"))));
    let (Some(tick), Some(n), Some(stamp), Some(xmin)) =
        (numbers.next(), numbers.next(), numbers.next(), numbers.next())
    else {
        return;
    };
    let xmin = xmin.max(1);
    let mut next = xmin;
    let running: Vec<u64> = numbers
        .map(|step| {
            next += 1 + step % 7;
            next
        })
        .collect();
    let snapshot = Snapshot { xmin, xmax: next + 1, running };
    // No tick has so many events that a number of one could be taken for a count.
    let n = n as u32;
    let n = if END - n <= MAX_COUNT { END } else { n };
    let count = (stamp % 2 == 1).then_some((stamp as u32 / 2).clamp(1, MAX_COUNT));
    let seen = Seen { stamp, snapshot: snapshot.clone(), count };
    let position = Position { tick, n, seen: Some(Box::new(seen)) };
    let text = position.to_string();
    match text.parse::<Position>() {
        Ok(read) => assert_eq!(read, position),
        // Too long, or the first transaction of an epoch.
        Err(_) => assert!(text.len() > 30_000 || snapshot.xmax.is_multiple_of(1 << 32)),
    }
}
