use proptest::prelude::*;

use super::*;
use crate::car::write;
use crate::cid::{DAG_CBOR, RAW, from_sha256};
use crate::verify::{sha256, verify};
use crate::{Multihash, cid};

fn raw(data: &[u8]) -> Cid {
    from_sha256(::cid::Version::V1, RAW, &sha256(data))
}

/// A CAR of these blocks and the byte after the header and after each section.
fn car(roots: &[Cid], blocks: &[(Cid, Vec<u8>)]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = write::header(roots);
    let mut ends = vec![bytes.len()];
    for (cid, data) in blocks {
        write::frame_head(&mut bytes, cid, data.len());
        bytes.extend_from_slice(data);
        assert_eq!(
            bytes.len(),
            ends.last().unwrap() + write::frame_len(cid, data.len())
        );
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn sample() -> (Vec<u8>, Vec<usize>) {
    let blocks: Vec<_> = [&b"alpha"[..], b"", &[7; 200]]
        .iter()
        .map(|data| (raw(data), data.to_vec()))
        .collect();
    car(&[raw(b"alpha")], &blocks)
}

/// Reads all of `bytes`, giving the parser `piece_len` more bytes each time it asks.
fn read_all(
    mut parser: Parser,
    bytes: &[u8],
    piece_len: usize,
) -> Result<(CarHeader, Vec<Section>), CarError> {
    let mut header = None;
    let mut sections = Vec::new();
    let mut known = 0; // As much of the file as was "read".
    loop {
        let from = (parser.offset() as usize).min(bytes.len());
        known = known.max(from);
        match parser.next(&bytes[from..known], known == bytes.len())? {
            Step::Need(len) => {
                let from = parser.offset() as usize; // Padding moves it.
                assert!(len > known - from, "asks for what it has");
                known =
                    (from + len.min(bytes.len()).max(known - from + piece_len)).min(bytes.len());
            }
            Step::Header(found) => header = Some(found),
            Step::Section(section) => sections.push(section),
            Step::End => {
                parser.check_end(bytes.len() as u64)?;
                return Ok((header.expect("the header comes first"), sections));
            }
        }
    }
}

fn read(bytes: &[u8]) -> Result<(CarHeader, Vec<Section>), CarError> {
    read_all(Parser::new(CarLimits::default(), 0), bytes, 16)
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint::write(&mut bytes, body.len() as u64);
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn sections_come_with_their_places() {
    let (bytes, ends) = sample();
    let (header, sections) = read(&bytes).unwrap();
    assert_eq!(
        header,
        CarHeader {
            roots: vec![raw(b"alpha")],
            version: 1,
            len: ends[0] as u64
        }
    );
    assert_eq!(sections.len(), 3);
    for (index, section) in sections.iter().enumerate() {
        assert_eq!(section.offset, ends[index] as u64);
        assert_eq!(section.end(), ends[index + 1] as u64);
        let data = &bytes[section.data_offset as usize..section.end() as usize];
        verify(&section.cid, data).unwrap();
    }
}

/// CARv1 has no end mark, so the only cuts that cannot be told are those exactly between two
/// sections.
#[test]
fn every_cut_inside_a_section_is_reported() {
    let (bytes, ends) = sample();
    for cut in 0..=bytes.len() {
        let starts = [&[0], &ends[..]].concat();
        let start = *starts.iter().rfind(|&&start| start < cut).unwrap_or(&0) as u64;
        for piece_len in [1, 7, 1000] {
            let got = read_all(
                Parser::new(CarLimits::default(), 0),
                &bytes[..cut],
                piece_len,
            );
            match ends.iter().position(|&end| end == cut) {
                Some(n_sections) => assert_eq!(got.unwrap().1.len(), n_sections, "cut at {cut}"),
                None => assert_eq!(got, Err(CarError::Truncated { offset: start }), "at {cut}"),
            }
        }
    }
}

/// The same for a caller that skips data without reading, in both ways it may notice.
#[test]
fn a_cut_in_skipped_data_is_reported() {
    let (bytes, ends) = sample();
    for cut in ends[0] + 1..bytes.len() {
        let cut_off = |mut parser: Parser| -> Result<u64, CarError> {
            loop {
                let from = (parser.offset() as usize).min(cut);
                // Never says `eof` while there are bytes.
                match parser.next(&bytes[from..cut], from == cut)? {
                    Step::Need(_) => {
                        return Err(CarError::Truncated {
                            offset: from as u64,
                        });
                    }
                    Step::End => return parser.check_end(cut as u64).map(|()| parser.offset()),
                    _ => {}
                }
            }
        };
        let plain = Parser::new(CarLimits::default(), 0);
        let mut with_end = plain.clone();
        with_end.set_end(cut as u64);
        let is_whole = ends.contains(&cut);
        assert_eq!(cut_off(plain.clone()).is_ok(), is_whole, "cut at {cut}");
        assert_eq!(cut_off(with_end), cut_off(plain), "cut at {cut}");
    }
}

/// Whatever bit is wrong, either the parser or the hash of a block says so, or the bit is in the
/// header, which nothing protects.
#[test]
fn every_flipped_bit_is_noticed() {
    let (bytes, ends) = sample();
    let (header, _) = read(&bytes).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok((found, sections)) = read(&bytes) else {
            continue;
        };
        let is_bad = sections.iter().any(|section| {
            let data = &bytes[section.data_offset as usize..section.end() as usize];
            verify(&section.cid, data).is_err()
        });
        // A codec may change: the bytes are still those of the multihash.
        let is_codec = sections.iter().any(|section| section.cid.codec() != RAW);
        let is_header = bit / 8 < ends[0];
        assert!(
            is_bad || is_codec || (is_header && found != header),
            "bit {bit}"
        );
    }
}

#[test]
fn a_wrong_block_names_its_section() {
    let (bytes, _) = sample();
    let (_, sections) = read(&bytes).unwrap();
    let offset = sections[0].offset;
    let cid = Box::new(raw(b"alpha"));
    assert_eq!(sections[0].verify(b"alpha"), Ok(()));
    assert_eq!(
        sections[0].verify(b"alphb"),
        Err(CarError::HashMismatch { offset, cid })
    );
    let weak = Cid::new_v1(RAW, Multihash::wrap(0x12, &[0; 19]).unwrap());
    let got = Section {
        cid: weak,
        ..sections[0]
    }
    .verify(b"alpha");
    assert!(matches!(got, Err(CarError::HashNotAllowed { offset: at, .. }) if at == offset));
}

#[test]
fn lengths_are_checked_before_they_are_used() {
    let header = write::header(&[raw(b"")]);
    let at = header.len() as u64;
    let len_max = SECTION_LEN_MAX;
    let too_long = |len| {
        Err(CarError::SectionTooLong {
            offset: at,
            len,
            len_max,
        })
    };
    let mut overlong = vec![0x80; 9];
    overlong.push(1);
    let source = |source| Err(CarError::VarintInvalid { offset: at, source });
    let number = |len: u64| {
        let mut bytes = Vec::new();
        varint::write(&mut bytes, len);
        bytes
    };
    let table: Vec<(Vec<u8>, Result<Step, CarError>)> = vec![
        (vec![0], Err(CarError::ZeroSection { offset: at })),
        (number(len_max - 1), Ok(Step::Need(5))),
        (number(len_max), Ok(Step::Need(5))),
        (number(len_max + 1), too_long(len_max + 1)),
        (number(1 << 32), too_long(1 << 32)),
        (number(1 << 62), too_long(1 << 62)),
        (number(varint::VALUE_MAX), too_long(varint::VALUE_MAX)),
        (overlong, source(varint::VarintError::TooLong)),
        (vec![0x80, 0x00], source(varint::VarintError::NotMinimal)),
    ];
    for (bytes, want) in table {
        let mut parser = Parser::new(CarLimits::default(), 0);
        assert!(matches!(parser.next(&header, false), Ok(Step::Header(_))));
        assert_eq!(parser.next(&bytes, false), want, "{bytes:02x?}");
        assert_eq!(parser.next(&bytes, false), want, "asked again");
        assert_eq!(parser.offset(), at);
    }
    let table = [
        (
            vec![0],
            Err(CarError::HeaderInvalid {
                offset: 9,
                reason: "it is empty",
            }),
        ),
        (
            number(HEADER_LEN_MAX),
            Ok(Step::Need(HEADER_LEN_MAX as usize + 3)),
        ),
        (
            number(HEADER_LEN_MAX + 1),
            Err(CarError::HeaderTooLong {
                offset: 9,
                len: HEADER_LEN_MAX + 1,
                len_max: HEADER_LEN_MAX,
            }),
        ),
        (
            number(varint::VALUE_MAX),
            Err(CarError::HeaderTooLong {
                offset: 9,
                len: varint::VALUE_MAX,
                len_max: HEADER_LEN_MAX,
            }),
        ),
    ];
    for (bytes, want) in table {
        assert_eq!(
            Parser::new(CarLimits::default(), 9).next(&bytes, false),
            want
        );
    }
}

#[test]
fn malformed_headers_are_refused() {
    let link = |cid: &Cid| {
        let mut bytes = vec![0xd8, 42, 0x58, cid.to_bytes().len() as u8 + 1, 0];
        bytes.extend_from_slice(&cid.to_bytes());
        bytes
    };
    let root = link(&raw(b"x"));
    let good = [b"\xa2\x65roots\x81", &root[..], b"\x67version\x01"].concat();
    let swapped = [b"\xa2\x67version\x01\x65roots\x81", &root[..]].concat();
    let extra = [
        b"\xa3\x61a\x81\x01\x65roots\x81",
        &root[..],
        b"\x67version\x01",
    ]
    .concat();
    for body in [&good, &swapped, &extra] {
        let (header, sections) = read(&with_length(body)).unwrap();
        assert_eq!((header.roots, sections.len()), (vec![raw(b"x")], 0));
    }
    let no_roots = read(&with_length(b"\xa2\x65roots\x80\x67version\x01")).unwrap();
    assert_eq!(no_roots.0.roots, []);

    let bad: &[&[u8]] = &[
        b"\x01",
        b"\xa0",
        b"\xa1\x67version\x01",
        b"\xa1\x65roots\x80",
        b"\xa2\x65roots\xf6\x67version\x01",
        b"\xa2\x65roots\x80\x67version\x61\x31",
        b"\xa2\x65roots\x81\x01\x67version\x01",
        b"\xa2\x65roots\x81\xd8\x2a\x41\x00\x67version\x01",
        b"\xa2\x65roots\x81\xd8\x2a\x42\x01\x00\x67version\x01",
        b"\xa3\x65roots\x80\x65roots\x80\x67version\x01",
        b"\xa2\x65roots\x80\x67version\x01\x00",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa2\x65roots\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa2\x65roots\x9f\xff\x67version\x01",
        b"\xa1\x7b\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    for body in bad {
        let got = read(&with_length(body));
        assert!(
            matches!(
                got,
                Err(CarError::HeaderInvalid { .. } | CarError::HeaderCbor { .. })
            ),
            "{body:02x?}: {got:?}"
        );
    }
    assert_eq!(
        read(&crate::car::v2::PRAGMA),
        Err(CarError::VersionUnknown {
            offset: 0,
            version: 2
        })
    );
}

#[test]
fn roots_are_counted() {
    let roots = vec![raw(b"x"); ROOTS_MAX + 1];
    let limits = CarLimits::default();
    assert_eq!(
        read(&write::header(&roots[1..])).unwrap().0.roots.len(),
        ROOTS_MAX
    );
    assert_eq!(
        read(&write::header(&roots)),
        Err(CarError::TooManyRoots {
            offset: 0,
            roots_max: limits.roots_max
        })
    );
}

#[test]
fn zeros_at_the_end_are_padding_only_if_asked_for() {
    let (mut bytes, ends) = sample();
    let end = *ends.last().unwrap() as u64;
    bytes.resize(bytes.len() + 100, 0);
    let limits = CarLimits {
        allow_zero_padding: true,
        ..CarLimits::default()
    };
    assert_eq!(read(&bytes), Err(CarError::ZeroSection { offset: end }));
    for piece_len in [1, 1000] {
        let (_, sections) = read_all(Parser::new(limits, 0), &bytes, piece_len).unwrap();
        assert_eq!(sections.len(), 3);
        let mut dirty = bytes.clone();
        dirty[end as usize + 50] = 1;
        assert_eq!(
            read_all(Parser::new(limits, 0), &dirty, piece_len),
            Err(CarError::ZeroSection { offset: end + 50 })
        );
    }
}

#[test]
fn malformed_cids_name_their_section() {
    for body in [
        &b"\x00"[..],
        b"\x02\x55",
        b"\x12\x20abc",
        b"\x01\x55\x12\x20",
        b"\x01\x55\x00\xff\x01",
    ] {
        let mut bytes = write::header(&[]);
        let offset = bytes.len() as u64;
        bytes.extend_from_slice(&with_length(body));
        let got = read(&bytes);
        assert!(
            matches!(got, Err(CarError::CidInvalid { offset: at, .. }) if at == offset),
            "{body:02x?}: {got:?}"
        );
    }
    // A section that ends inside its CID does not borrow bytes from the next one.
    let mut bytes = write::header(&[]);
    bytes.push(20);
    bytes.extend_from_slice(&raw(b"x").to_bytes());
    assert!(matches!(read(&bytes), Err(CarError::CidInvalid { .. })));
}

/// A CARv1 inside of another file, as in a CARv2: what follows it is not looked at.
#[test]
fn the_end_of_a_payload_is_kept() {
    let (payload, ends) = sample();
    let file = [&[1; 51][..], &payload, &[0xff; 60]].concat();
    let mut parser = Parser::new(CarLimits::default(), 51);
    parser.set_end(51 + payload.len() as u64);
    let (_, sections) = read_all(parser, &file, 64).unwrap();
    assert_eq!(sections.len(), 3);
    assert_eq!(sections[0].offset, 51 + ends[0] as u64);

    let mut parser = Parser::resume(CarLimits::default(), sections[1].offset);
    parser.set_end(51 + payload.len() as u64);
    let from = sections[1].offset as usize;
    assert_eq!(
        parser.next(&file[from..], false),
        Ok(Step::Section(sections[1]))
    );
}

/// Memory does not grow with the number of sections: nothing of them is kept.
#[test]
fn millions_of_tiny_sections_pass() {
    let mut section = Vec::new();
    write::frame_head(&mut section, &cid::empty_identity(), 0);
    let bytes = section.repeat(100_000);
    let mut parser = Parser::resume(CarLimits::default(), 0);
    let mut n_sections = 0;
    while let Step::Section(_) = parser
        .next(&bytes[parser.offset() as usize..], true)
        .unwrap()
    {
        n_sections += 1;
    }
    assert_eq!(n_sections, 100_000);
    assert_eq!(parser.offset(), bytes.len() as u64);
}

proptest! {
    #[test]
    fn written_cars_are_read_back(
        blocks in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..300), 0u8..4),
            0..12,
        ),
        n_roots in 0usize..5,
        piece_len in 1usize..500,
    ) {
        let blocks: Vec<(Cid, Vec<u8>)> = blocks
            .into_iter()
            .map(|(data, kind)| {
                let cid = match kind {
                    0 => raw(&data),
                    1 => from_sha256(::cid::Version::V0, 0, &sha256(&data)),
                    2 => from_sha256(::cid::Version::V1, DAG_CBOR, &sha256(&data)),
                    _ => {
                        let inline = &data[..data.len().min(128)];
                        Cid::new_v1(RAW, Multihash::wrap(0, inline).unwrap())
                    }
                };
                (cid, data)
            })
            .collect();
        let roots: Vec<Cid> = blocks.iter().take(n_roots).map(|(cid, _)| *cid).collect();
        let (bytes, ends) = car(&roots, &blocks);
        let parser = Parser::new(CarLimits::default(), 0);
        let (header, sections) = read_all(parser, &bytes, piece_len).unwrap();
        prop_assert_eq!(header.roots, roots);
        prop_assert_eq!(header.len, ends[0] as u64);
        prop_assert_eq!(sections.len(), blocks.len());
        for (section, (cid, data)) in sections.iter().zip(&blocks) {
            prop_assert_eq!(&section.cid, cid);
            prop_assert_eq!(section.data_len as usize, data.len());
            let span = section.data_offset as usize..section.end() as usize;
            prop_assert_eq!(&bytes[span], &data[..]);
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let header = write::header(&[raw(b"")]);
        let at_once = read_all(Parser::new(CarLimits::default(), 0), &bytes, 1000);
        let slowly = read_all(Parser::new(CarLimits::default(), 0), &bytes, 1);
        prop_assert_eq!(at_once.is_ok(), slowly.is_ok());
        let _ = read(&[&header[..], &bytes].concat());
    }
}
