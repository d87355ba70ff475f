//! The bodies of the fuzz targets under property tests: random bytes and damaged good ones. Finds
//! less than a fuzzer, on every run of the tests.

use bytes::Bytes;
use carrack_bitswap::wire::{Dialect, Entry, Outgoing, WantKind};
use carrack_formats::cid::{self, RAW};
use carrack_formats::verify;
use carrack_testkit::damage::{damaged, damages};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::fuzz_bodies;

/// A frame of everything there is.
fn good_frame(dialect: Dialect) -> Vec<u8> {
    let cids = [&b"a"[..], b"b"]
        .map(|data| cid::from_sha256(::cid::Version::V1, RAW, &verify::sha256(data)));
    let mut out = Outgoing::new(dialect);
    for (cid, priority) in cids.iter().zip([i32::MAX, -1]) {
        let entry = Entry {
            cid: *cid,
            priority,
            cancel: priority < 0,
            want: WantKind::Block,
            send_dont_have: true,
        };
        assert!(out.push_entry(&entry));
        assert!(out.push_block(cid, Bytes::from_static(b"block")));
        let has = dialect.has_presences();
        assert_eq!(out.push_presence(cid, priority > 0), has);
    }
    out.set_pending_bytes(300);
    out.finish().concat()
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_good_frame_passes() {
    for dialect in Dialect::OFFERED {
        let good = good_frame(dialect);
        for cut in 0..=good.len() {
            fuzz_bodies::bitswap_frame(&good[..cut]);
        }
        for bit in 0..8 * good.len() {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fuzz_bodies::bitswap_frame(&flipped);
        }
    }
}

/// Blocks of up to four mebibytes, until nothing fits any more.
#[test]
fn a_message_of_more_than_fits_passes() {
    for dialect in 0..4 {
        let orders = [[0xf1, 7, 0xff], [0xb1, 8, 0xff]].concat();
        fuzz_bodies::bitswap_outgoing(&[&[dialect, 0xff][..], &orders.repeat(8)].concat());
    }
}

proptest! {
    #[test]
    fn random_bytes_pass(bytes in vec(any::<u8>(), 0..400)) {
        fuzz_bodies::bitswap_frame(&bytes);
        fuzz_bodies::bitswap_outgoing(&bytes);
    }

    #[test]
    fn damaged_frames_pass(
        dialect in prop::sample::select(&Dialect::OFFERED),
        damages in damages(),
    ) {
        fuzz_bodies::bitswap_frame(&damaged(good_frame(dialect), &damages));
    }
}
