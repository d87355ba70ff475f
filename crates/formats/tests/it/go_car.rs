//! A CARv2 that go-car v2.17.0 wrote: roots `[alpha]`, raw blocks `alpha`, `beta`, `gamma` under
//! SHA2-256 and `wide` under SHA2-512, a MultihashIndexSorted. We read it, and write the same.

use carrack_formats::car::index::{Index, IndexKind, Record, write as write_index};
use carrack_formats::car::{CarLimits, Parser, Section, Step, v2, write};
use carrack_formats::verify;

const FILE: &[u8] = include_bytes!("../fixtures/go-car-v2.car");

fn sections(header: &v2::Header) -> Vec<Section> {
    let mut parser = Parser::new(CarLimits::default(), header.data_offset);
    parser.set_end(header.data_end());
    let mut sections = Vec::new();
    loop {
        match parser
            .next(&FILE[parser.offset() as usize..], true)
            .unwrap()
        {
            Step::Header(header) => assert_eq!((header.roots.len(), header.version), (1, 1)),
            Step::Section(section) => sections.push(section),
            Step::End => return sections,
            Step::Need(len) => panic!("all bytes are there, asked for {len}"),
        }
    }
}

#[test]
fn the_file_of_go_car_is_read() {
    assert_eq!(v2::is_v2(FILE), Some(true));
    let header = v2::parse(FILE, FILE.len() as u64).unwrap();
    assert_eq!(header.data_offset, 51);
    let sections = sections(&header);
    let data_of = |section: &Section| &FILE[section.data_offset as usize..section.end() as usize];
    let data: Vec<_> = sections.iter().map(data_of).collect();
    assert_eq!(data, [&b"alpha"[..], b"beta", b"gamma", b"wide"]);
    let index_offset = header.index_offset.unwrap() as usize;
    let index = Index::parse(&FILE[index_offset..]).unwrap();
    assert_eq!((index.kind(), index.len()), (IndexKind::MultihashSorted, 4));
    assert_eq!(index_offset + index.byte_len(), FILE.len());
    for section in &sections {
        verify::verify(&section.cid, data_of(section)).unwrap();
        let offsets: Vec<u64> = index.get(section.cid.hash()).collect();
        assert_eq!(offsets, [section.offset - header.data_offset]);
    }
}

#[test]
fn what_we_write_is_the_file_of_go_car() {
    let header = v2::parse(FILE, FILE.len() as u64).unwrap();
    let sections = sections(&header);
    let mut payload = write::header(&[sections[0].cid]);
    let mut records = Vec::new();
    for section in &sections {
        records.push(Record {
            hash_code: Some(section.cid.hash().code()),
            digest: section.cid.hash().digest(),
            offset: payload.len() as u64,
        });
        write::frame_head(&mut payload, &section.cid, section.data_len as usize);
        payload.extend_from_slice(&FILE[section.data_offset as usize..section.end() as usize]);
    }
    let index = write_index(IndexKind::MultihashSorted, &mut records);
    let start = v2::write(payload.len() as u64, true);
    assert_eq!([&start[..], &payload, &index].concat(), FILE);
}

/// go-car's IndexSorted of the same blocks, with offsets 100, 200, 300, 400.
#[test]
fn an_index_without_hash_codes_is_that_of_go_car() {
    let header = v2::parse(FILE, FILE.len() as u64).unwrap();
    let sections = sections(&header);
    let mut records: Vec<_> = sections
        .iter()
        .zip(1..)
        .map(|(section, n)| Record {
            hash_code: Some(section.cid.hash().code()),
            digest: section.cid.hash().digest(),
            offset: 100 * n,
        })
        .collect();
    let written = write_index(IndexKind::Sorted, &mut records);
    assert_eq!(
        written,
        include_bytes!("../fixtures/go-car-index-sorted.bin")
    );
}
