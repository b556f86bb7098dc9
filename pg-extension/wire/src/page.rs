//! A page of the log: whole segments with their places, in order, as one value that the extension sends to a proxy.
//!
//! Each part of it is a tick (u64), the number of events of the tick that come before the segment (u32), whether the
//! reader has a snapshot that matters for the ids of its events (u8, 0 or 1), the length of the segment (u32), and the
//! segment. All numbers are little-endian.

/// The bytes of a part without its segment.
const PART_HEADER: usize = 17;

/// A segment and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePart<'a> {
    /// Its tick.
    pub tick: u64,
    /// How many events of the tick come before it.
    pub before: u32,
    /// Whether the ids of its events end with the snapshot of the reader's position.
    pub with_snapshot: bool,
    /// The segment.
    pub segment: &'a [u8],
}

/// The bytes are not a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a page of the log that is cut short")]
pub struct PageError;

/// Appends a part to a page. The segment is shorter than 1 GiB, as every value in Postgres is.
pub fn append(page: &mut Vec<u8>, part: PagePart<'_>) {
    page.reserve(PART_HEADER + part.segment.len());
    page.extend_from_slice(&part.tick.to_le_bytes());
    page.extend_from_slice(&part.before.to_le_bytes());
    page.push(part.with_snapshot.into());
    page.extend_from_slice(&(part.segment.len() as u32).to_le_bytes());
    page.extend_from_slice(part.segment);
}

/// The parts of a page, in order. After an error there are no more.
pub fn parts(mut page: &[u8]) -> impl Iterator<Item = Result<PagePart<'_>, PageError>> {
    std::iter::from_fn(move || (!page.is_empty()).then(|| take(&mut page).ok_or(PageError).inspect_err(|_| page = &[])))
}

/// Takes a part from the front of the bytes.
fn take<'a>(page: &mut &'a [u8]) -> Option<PagePart<'a>> {
    let (tick, rest) = page.split_first_chunk()?;
    let (before, rest) = rest.split_first_chunk()?;
    let (with_snapshot, rest) = rest.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (segment, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *page = rest;
    Some(PagePart {
        tick: u64::from_le_bytes(*tick),
        before: u32::from_le_bytes(*before),
        with_snapshot: *with_snapshot != 0,
        segment,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_page_comes_out_as_it_went_in(
            parts in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..9)), 0..5),
        ) {
            let parts: Vec<_> = parts
                .iter()
                .map(|(tick, before, with_snapshot, segment)| {
                    PagePart { tick: *tick, before: *before, with_snapshot: *with_snapshot, segment }
                })
                .collect();
            let mut page = Vec::new();
            parts.iter().for_each(|part| append(&mut page, *part));
            prop_assert_eq!(super::parts(&page).collect::<Result<Vec<_>, _>>(), Ok(parts));
        }

        #[test]
        fn no_bytes_break_the_reader(page in prop::collection::vec(0..3u8, 0..60)) {
            let read: Vec<_> = parts(&page).collect();
            let errors = read.iter().filter(|part| part.is_err()).count();
            prop_assert!(errors == 0 || (errors == 1 && read.last().is_some_and(Result::is_err)));
        }
    }
}
