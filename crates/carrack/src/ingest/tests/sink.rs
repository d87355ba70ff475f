//! What a failed write leaves behind.

use super::{Fixture, bytes, raw};
use crate::ingest::sink::Sink;
use crate::ingest::tree::Sum;
use crate::source::local::validator_at;
use crate::store::catalog::ContainerKind;
use crate::store::location::Location;

/// Otherwise the next add would take the file for known, and nobody could find its blocks.
#[test]
fn rows_whose_index_run_was_lost_never_count() {
    let fixture = Fixture::new();
    let data = bytes(1, 100);
    let path = fixture.write("file", &data);
    let (cid, validator) = (raw(&data), validator_at(&path).unwrap());
    let mut sink = Sink::new(fixture.store()).unwrap();
    let container = sink.new_container();
    let location = Location {
        container,
        offset: 0,
        len: 100,
        wrapped: false,
    };
    sink.range(&cid, location).unwrap();
    sink.container(container, ContainerKind::File, &path, &validator);
    let sum = Sum {
        cid,
        file_len: 100,
        dag_len: 100,
        n_blocks: 1,
        n_files: 1,
    };
    sink.file(&path, 1, &validator, Some(container), None, sum);
    std::fs::rename(fixture.path("data/segments"), fixture.path("away")).unwrap();
    sink.checkpoint().unwrap_err();
    std::fs::rename(fixture.path("away"), fixture.path("data/segments")).unwrap();
    sink.checkpoint().unwrap_err();
    sink.finish().unwrap_err();
    let sink = Sink::new(fixture.store()).unwrap();
    assert!(sink.known_file(&path, 1).unwrap().is_none());
    assert_eq!(fixture.n_containers(), 0);
    drop(sink);
    fixture.add(&[&path]);
    assert!(fixture.has(&cid), "the next add finishes");
}

#[test]
fn a_pack_that_no_commit_lists_is_removed() {
    let fixture = Fixture::new();
    let data = bytes(2, 100);
    let mut sink = Sink::all_or_nothing(fixture.store()).unwrap();
    sink.node(&raw(&data), &data).unwrap();
    sink.checkpoint().unwrap();
    assert!(!fixture.has(&raw(&data)));
    drop(sink);
    assert_eq!((fixture.n_packs(), fixture.n_containers()), (0, 0));
    let mut sink = Sink::all_or_nothing(fixture.store()).unwrap();
    sink.node(&raw(&data), &data).unwrap();
    sink.checkpoint().unwrap();
    sink.finish().unwrap();
    assert!(fixture.has(&raw(&data)));
}
