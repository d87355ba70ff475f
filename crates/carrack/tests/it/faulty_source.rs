//! Reads that go on over a source that misbehaves, without a network.
//!
//! In       a folder behind `FaultySource`.
//! Out      tests of `carrack::source::retry`, by which adds and imports read.
//! Not here faults of protocols (`peers::sources`).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use carrack::source::folder::LocalSource;
use carrack::source::retry::Patient;
use carrack::source::{Source, SourceErrorKind};
use carrack_testkit::{FaultySource, SourceConduct, SourceFault};
use tempfile::TempDir;

/// What a read of the whole file gives, and how often the source was asked.
fn read(faults: &[(SourceFault, f64)], attempts: u32) -> (Result<bool, SourceErrorKind>, u64) {
    let dir = TempDir::new().unwrap();
    let content: Vec<u8> = (0..5_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    fs::write(dir.path().join("object"), &content).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder: Arc<dyn Source> = Arc::new(LocalSource::new(dir.path()).unwrap());
        let stamp = folder.stat(b"object").await.unwrap();
        let source = Arc::new(FaultySource::new(folder));
        // The first of two is spared by a share of a half: this one.
        drop(source.read(b"object", &stamp, 0..1).await.unwrap());
        source.set(SourceConduct {
            faults: faults.to_vec(),
            ..SourceConduct::default()
        });
        let patient = Patient {
            source: source.as_ref(),
            limiter: &Arc::default(),
            attempts,
            n_throttled: &AtomicU64::new(0),
        };
        let mut bytes = Vec::new();
        let reading =
            patient.each_piece(b"object", &stamp, 0..stamp.size, |piece: bytes::Bytes| {
                bytes.extend_from_slice(&piece);
            });
        let outcome = reading.await.map_err(|error| error.kind);
        let counts = source.counts();
        assert_eq!((counts.under_way, counts.under_way_max), (0, 1));
        (outcome.map(|()| bytes == content), counts.reads - 1)
    })
}

#[test]
fn a_read_outlives_what_passes_and_ends_with_what_does_not() {
    use SourceErrorKind::{Changed, Throttled, Unreachable};
    assert_eq!(read(&[], 1), (Ok(true), 1));
    for fault in [
        SourceFault::Breaks,
        SourceFault::EndsEarly,
        SourceFault::Fails(Throttled),
        SourceFault::Fails(Unreachable),
    ] {
        // Each second read is struck, so one repetition is enough.
        let (outcome, reads) = read(&[(fault, 0.5)], 2);
        assert_eq!(outcome, Ok(true), "{fault:?}, {reads} reads");
        assert_eq!(reads, 2, "{fault:?}");
    }
    let always = |kind| [(SourceFault::Fails(kind), 1.0)];
    assert_eq!(read(&always(Unreachable), 3), (Err(Unreachable), 3));
    assert_eq!(read(&always(Changed), 3), (Err(Changed), 1));
    // Wrong bytes are the business of those who hash.
    assert_eq!(read(&[(SourceFault::Lies, 1.0)], 1), (Ok(false), 1));
}
