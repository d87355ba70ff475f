//! What hostile input may cost in memory (security: lengths and counts that nothing stands
//! behind, nesting, millions of sections). Counted by the allocator, for one thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use carrack_formats::car::index::Index;
use carrack_formats::car::{CarLimits, Parser, Step, write};
use carrack_formats::dag::{cbor, json};
use carrack_formats::{cid, varint};

thread_local! {
    static HELD_LEN: Cell<isize> = const { Cell::new(0) };
    static PEAK_LEN: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(len: isize) {
    // While a thread ends its counters are gone, and nobody looks at them.
    let _ = HELD_LEN.try_with(|held| {
        held.set(held.get() + len);
        let _ = PEAK_LEN.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: all work is the system allocator's; counting allocates nothing.
#[expect(unsafe_code, reason = "counting what is allocated has no safe form")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; the pointer came from `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Most bytes that were held at once while `run` ran, above what was held before.
fn peak_len<T>(run: impl FnOnce() -> T) -> isize {
    let before = HELD_LEN.get();
    PEAK_LEN.set(before);
    let result = run();
    let peak = PEAK_LEN.get() - before;
    drop(result);
    peak
}

#[test]
fn lengths_of_cars_allocate_nothing() {
    let header = write::header(&[cid::empty_identity()]);
    for len in [1 << 20, 1 << 32, 1 << 62, varint::VALUE_MAX] {
        let mut bytes = Vec::new();
        varint::write(&mut bytes, len);
        let as_header = || Parser::new(CarLimits::default(), 0).next(&bytes, false);
        assert_eq!(peak_len(as_header), 0, "{len}");
        let as_section = || Parser::resume(CarLimits::default(), 0).next(&bytes, false);
        assert_eq!(peak_len(as_section), 0, "{len}");
    }
    // A header of one MiB that claims as many roots as it has bytes.
    let mut body = b"\xa2\x65roots\x9a\x00\x0f\xff\x00".to_vec();
    body.resize(1 << 20, 0x00);
    let mut bytes = Vec::new();
    varint::write(&mut bytes, body.len() as u64);
    bytes.extend_from_slice(&body);
    let peak = peak_len(|| Parser::new(CarLimits::default(), 0).next(&bytes, true));
    assert!(peak < 1024, "{peak}");
    assert!(peak_len(|| Parser::new(CarLimits::default(), 0).next(&header, true)) < 1024);
}

#[test]
fn sections_are_not_remembered() {
    let mut section = Vec::new();
    write::frame_head(&mut section, &cid::empty_identity(), 0);
    let bytes = section.repeat(200_000);
    let peak = peak_len(|| {
        let mut parser = Parser::resume(CarLimits::default(), 0);
        while let Ok(Step::Section(_)) = parser.next(&bytes[parser.offset() as usize..], true) {}
        assert_eq!(parser.offset(), bytes.len() as u64);
    });
    assert_eq!(peak, 0);
}

#[test]
fn counts_and_nesting_in_blocks_allocate_little() {
    let huge = [0xff; 8];
    for major in [0x9b, 0xbb, 0x5b, 0x7b] {
        let block = Bytes::from([&[0x81; 9], &[major][..], &huge].concat().repeat(9));
        let peak = peak_len(|| cbor::links(&block));
        assert!(peak < 4096, "{major:x} {peak}");
    }
    // Each list claims all that is left of two MiB.
    let mut block = Vec::new();
    while block.len() < 2 << 20 {
        let left = ((2 << 20) - block.len()) as u32;
        block.extend_from_slice(&[0x9a]);
        block.extend(left.saturating_sub(5).to_le_bytes().iter().rev());
    }
    for block in [
        Bytes::from(block),
        vec![0x81; 2 << 20].into(),
        vec![0xc1; 2 << 20].into(),
    ] {
        let peak = peak_len(|| cbor::links(&block));
        assert!(peak < 32 * 1024, "{peak}");
        let peak = peak_len(|| cbor::resolve(&block, &["0", "1"]));
        assert!(peak < 32 * 1024, "{peak}");
    }
    for piece in ["[", "{\"a\":", "{\"/\":"] {
        let block = Bytes::from(piece.repeat((2 << 20) / piece.len()));
        let peak = peak_len(|| json::links(&block));
        assert!(peak < 8 * 1024, "{piece} {peak}");
    }
}

/// Eight bytes a link, and half as much again or twice while the list grows.
#[test]
fn a_block_of_links_costs_what_its_links_do() {
    let one = [0xd8, 42, 0x45, 0, 1, 0x55, 0, 0];
    let n_links = (2 << 20) / one.len() - 1;
    let mut block = vec![0x9a, 0, 0, 0, 0];
    block[1..].copy_from_slice(&(n_links as u32).to_le_bytes());
    block[1..].reverse();
    block.extend_from_slice(&one.repeat(n_links));
    let block = Bytes::from(block);
    assert_eq!(cbor::links(&block).unwrap().len(), n_links);
    let peak = peak_len(|| cbor::links(&block));
    assert!(peak as usize <= 8 * 3 * n_links + 1024, "{peak}");
}

#[test]
fn indexes_are_not_copied() {
    let huge = b"\x80\x08\xff\xff\xff\x7f\x28\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f";
    assert_eq!(peak_len(|| Index::parse(huge)), 0);
    let mut bytes = b"\x80\x08\x01\0\0\0\x28\0\0\0\0\0\x10\0\0\0\0\0".to_vec();
    bytes[10..18].copy_from_slice(&(40u64 << 16).to_le_bytes());
    bytes.resize(bytes.len() + (40 << 16), 7);
    assert_eq!(Index::parse(&bytes).unwrap().len(), 1 << 16);
    assert!(peak_len(|| Index::parse(&bytes)) < 1024);
}
