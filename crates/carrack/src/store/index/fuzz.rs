//! Segment files: any header is an error or describes ranges inside of the file, and whatever the
//! sections hold, a look-up ends.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target fails"
)]

use std::ops::ControlFlow;

use super::format::{FILTER_BLOCK_LEN, Header, MAGIC, PAGE_LEN, SUM_LEN, VERSION, sum_of};
use super::segment::{Probe, Segment, records_len};

/// Whole segments with two tables, of each version.
const SAMPLES: [&[u8]; 2] = [
    include_bytes!("../../../tests/fixtures/segment-v1.seg"),
    include_bytes!("../../../tests/fixtures/segment-v2.seg"),
];

/// The bytes are tried as a file, as a header with the right checksum, and as damage to a good
/// segment, whose checksum is put right, too.
pub fn segment(bytes: &[u8]) {
    open(bytes);
    let mut headed = MAGIC.to_vec();
    headed.extend_from_slice(&VERSION.to_le_bytes());
    headed.extend_from_slice(&(PAGE_LEN as u32).to_le_bytes());
    headed.extend_from_slice(&bytes[..bytes.len().min(PAGE_LEN)]);
    headed.resize(3 * PAGE_LEN, 0);
    open(&sealed(headed));
    for sample in SAMPLES {
        let mut damaged = sample.to_vec();
        for change in bytes.as_chunks::<4>().0 {
            let [low, high, kind, value] = *change;
            let at = usize::from(u16::from_le_bytes([low, high]));
            // Half of the changes meet the header, where they matter most.
            let end = if kind & 1 == 0 { 400 } else { sample.len() };
            damaged[at % end] = value;
        }
        open(&damaged);
        open(&sealed(damaged));
    }
}

/// With the length and the checksum that belong to the rest.
fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    let file_len = file.len() as u64;
    file[40..48].copy_from_slice(&file_len.to_le_bytes());
    let header_len = u32::from_le_bytes(*file[12..16].first_chunk().unwrap()) as usize;
    if (SUM_LEN..=file.len()).contains(&header_len) {
        let body = header_len - SUM_LEN;
        let sum = sum_of(&blake3::hash(&file[..body]));
        file[body..header_len].copy_from_slice(&sum);
    }
    file
}

fn open(file: &[u8]) {
    if file.is_empty() {
        return; // Nothing cannot be mapped.
    }
    let Ok(segment) = Segment::of_bytes(file) else {
        return;
    };
    let header = Header::parse(file).unwrap();
    assert_eq!(header.file_len, file.len() as u64);
    for layout in &header.tables {
        let filter_len = layout.n_filter_blocks * FILTER_BLOCK_LEN as u64;
        assert!(layout.filter_offset + filter_len <= header.file_len);
        assert!(layout.fence_offset + layout.n_pages * 8 <= header.file_len);
        assert!(layout.records_offset + records_len(layout) <= header.file_len);
    }
    let _ = segment.check();
    for table in segment.tables() {
        let layout = table.layout;
        let records = &file[layout.records_offset as usize..];
        let first = &records[..layout.digest_len];
        let last =
            &records[records_len(&layout) as usize - layout.digest_len..][..layout.digest_len];
        for digest in [
            first,
            last,
            &[0; 128][..layout.digest_len],
            &[0xff; 128][..layout.digest_len],
        ] {
            let probe = Probe::new(digest);
            segment.may_contain(&table, probe);
            segment.is_sound_at(&table, probe);
            let mut n_found = 0_u64;
            let _ = segment.visit(&table, probe, &mut |_| {
                n_found += 1;
                ControlFlow::Continue(())
            });
            assert!(n_found <= layout.n_records);
        }
    }
}
