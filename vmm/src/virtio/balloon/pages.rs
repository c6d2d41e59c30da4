//! From the page numbers of an inflate request to ranges of guest memory.

use std::ops::Range;

use crate::virtio::segments::Segments;

/// Of the balloon's pages, whatever pages the guest uses itself (§5.5.6).
pub const PAGE_SIZE: u64 = 4096;

/// The most pages that one request gives back. Linux names 256; what is beyond stays with the guest, which does no harm.
const PAGES_MAX: usize = 1024;

/// The page numbers that the driver wrote, 32 bits each.
pub fn page_numbers(run: Segments<'_, '_>) -> Vec<u32> {
    let mut bytes = vec![0; 4 * PAGES_MAX];
    let length = run.copy_to(&mut bytes);
    bytes[..length].as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect()
}

/// The same pages as ranges of bytes: in order, each page once, neighbours together.
pub fn ranges(mut pages: Vec<u32>) -> Vec<Range<u64>> {
    pages.sort_unstable();
    pages.dedup();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        let start = u64::from(page) * PAGE_SIZE;
        match ranges.last_mut().filter(|last| last.end == start) {
            Some(last) => last.end += PAGE_SIZE,
            None => ranges.push(start..start + PAGE_SIZE),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever order and however often: the same pages, each once, and no two ranges that could be one.
        #[test]
        fn ranges_are_the_pages(pages in prop::collection::vec(prop_oneof![0..40_u32, any::<u32>(), Just(u32::MAX)], 0..60)) {
            let ranges = ranges(pages.clone());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let mut expected: Vec<u64> = pages.iter().map(|page| u64::from(*page) * PAGE_SIZE).collect();
            expected.sort_unstable();
            expected.dedup();
            let mut covered = ranges.iter().flat_map(|range| range.clone().step_by(4096));
            prop_assert!(expected.iter().all(|page| covered.next() == Some(*page)));
            prop_assert_eq!(covered.next(), None);
        }
    }
}
