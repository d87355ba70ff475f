use proptest::prelude::*;

use super::*;

fn reference() -> Vec<(u64, Vec<u8>, u64)> {
    vec![
        (0x12, vec![3; 32], 100),
        (0x12, vec![1; 32], 200),
        (0x12, vec![1; 32], 50),
        (0x13, vec![2; 64], 300),
        (0x12, vec![9; 20], 400),
        (0x00, vec![7; 5], 500),
        (0x12, vec![], 600),
    ]
}

fn records(from: &[(u64, Vec<u8>, u64)]) -> Vec<Record<'_>> {
    from.iter()
        .map(|(code, digest, offset)| Record {
            hash_code: Some(*code),
            digest,
            offset: *offset,
        })
        .collect()
}

#[test]
fn the_layout_is_that_of_the_spec() {
    let from = [(0x12, vec![0xaa; 2], 5), (0x12, vec![0x11; 2], 6)];
    let run = b"\x0a\0\0\0\x14\0\0\0\0\0\0\0\x11\x11\x06\0\0\0\0\0\0\0\xaa\xaa\x05\0\0\0\0\0\0\0";
    assert_eq!(
        write(IndexKind::Sorted, &mut records(&from)),
        [b"\x80\x08\x01\0\0\0", &run[..]].concat()
    );
    assert_eq!(
        write(IndexKind::MultihashSorted, &mut records(&from)),
        [b"\x81\x08\x01\0\0\0\x12\0\0\0\0\0\0\0\x01\0\0\0", &run[..]].concat()
    );
}

#[test]
fn records_are_found_and_identity_is_left_out() {
    let from = reference();
    for kind in [IndexKind::Sorted, IndexKind::MultihashSorted] {
        let bytes = write(kind, &mut records(&from));
        let index = Index::parse(&bytes).unwrap();
        assert_eq!(
            (index.kind(), index.len(), index.byte_len()),
            (kind, 5, bytes.len())
        );
        let get = |code, digest: &[u8]| {
            index
                .get(&Multihash::wrap(code, digest).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(get(0x12, &[1; 32]), [50, 200]);
        assert_eq!(get(0x12, &[3; 32]), [100]);
        assert_eq!(get(0x13, &[2; 64]), [300]);
        assert_eq!(get(0x12, &[9; 20]), [400]);
        assert_eq!(get(0x12, &[2; 32]), [0; 0]);
        assert_eq!(get(0x00, &[7; 5]), [0; 0]);
        let other_code = get(0x16, &[3; 32]);
        assert_eq!(other_code.is_empty(), kind == IndexKind::MultihashSorted);
    }
}

#[test]
fn every_cut_is_reported() {
    for kind in [IndexKind::Sorted, IndexKind::MultihashSorted] {
        let bytes = write(kind, &mut records(&reference()));
        for cut in 0..bytes.len() {
            let got = Index::parse(&bytes[..cut]);
            assert!(
                matches!(got, Err(CarError::Index { .. })),
                "{kind:?} cut at {cut}"
            );
        }
        let longer = [&bytes[..], b"after"].concat();
        assert_eq!(Index::parse(&longer).unwrap().byte_len(), bytes.len());
    }
}

#[test]
fn lying_counts_are_refused() {
    let table: &[&[u8]] = &[
        b"\x82\x08\0\0\0\0",
        b"\x80\x08\xff\xff\xff\xff",
        b"\x80\x08\xff\xff\xff\x7f",
        b"\x80\x08\x01\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0",
        b"\x80\x08\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\x80\x08\x01\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0",
        b"\x80\x08\x01\0\0\0\x28\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\x08\x01\0\0\0\x28\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x80\x08\x01\0\0\0\x28\0\0\0\x28\0\0\0\0\0\0\0",
        b"\x80\x08\x01\0\0\0\x0a\0\0\0\x05\0\0\0\0\0\0\0abcde",
        b"\x81\x08\xff\xff\xff\x7f",
        b"\x81\x08\x01\0\0\0\x12\0\0\0\0\0\0\0\xff\xff\xff\x7f",
    ];
    for bytes in table {
        assert!(
            matches!(Index::parse(bytes), Err(CarError::Index { .. })),
            "{bytes:02x?}"
        );
    }
    // Buckets of no records cost the writer little; there is an end to them.
    let mut bytes = b"\x80\x08\0\0\x01\0".to_vec();
    bytes.extend_from_slice(&b"\x28\0\0\0\0\0\0\0\0\0\0\0".repeat(1 << 16));
    assert!(matches!(Index::parse(&bytes), Err(CarError::Index { .. })));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        from in proptest::collection::vec(
            (0x11u64..0x14, (20usize..23, any::<[u8; 2]>()), any::<u64>()),
            0..60,
        ),
    ) {
        let from: Vec<_> = from
            .into_iter()
            .map(|(code, (len, digest), offset)| {
                let mut bytes = vec![0; len];
                bytes[..2].copy_from_slice(&digest.map(|byte| byte & 3));
                (code, bytes, offset)
            })
            .collect();
        for kind in [IndexKind::Sorted, IndexKind::MultihashSorted] {
            let bytes = write(kind, &mut records(&from));
            let index = Index::parse(&bytes).unwrap();
            prop_assert_eq!(index.len(), from.len());
            for (code, digest, offset) in &from {
                let multihash = Multihash::wrap(*code, digest).unwrap();
                prop_assert!(index.get(&multihash).any(|found| found == *offset));
            }
            let mut again: Vec<_> = index.iter().collect();
            prop_assert_eq!(write(kind, &mut again), bytes);
        }
    }

    #[test]
    fn any_bytes_are_answered(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        kind in 0u8..2,
    ) {
        let bytes = [&[0x80 + kind, 0x08, 1, 0, 0, 0], &bytes[..]].concat();
        if let Ok(index) = Index::parse(&bytes) {
            prop_assert_eq!(index.iter().count(), index.len());
            let _ = index.get(&Multihash::wrap(0x12, &[1; 32]).unwrap()).count();
        }
    }
}
