use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use carrack_formats::Multihash;
use carrack_formats::cid::{DAG_PB, IDENTITY, RAW, from_sha256};

type Version = cid::Version;

fn raw(data: &[u8]) -> Cid {
    from_sha256(Version::V1, RAW, &verify::sha256(data))
}

fn v0(data: &[u8]) -> Cid {
    from_sha256(Version::V0, DAG_PB, &verify::sha256(data))
}

fn other(code: u64, digest: &[u8]) -> Cid {
    Cid::new_v1(RAW, Multihash::wrap(code, digest).unwrap())
}

fn want(cid: Cid) -> Entry {
    Entry {
        cid,
        priority: 1,
        cancel: false,
        want: WantKind::Block,
        send_dont_have: false,
    }
}

/// A field of bytes with a number under 16.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint::write(&mut out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out
}

fn decode(bytes: impl Into<Bytes>) -> Result<Message, WireError> {
    Message::decode(&bytes.into(), &DecodeLimits::default())
}

fn joined(out: Outgoing) -> Vec<u8> {
    let len = out.len();
    let frame = out.finish().concat();
    assert_eq!(frame.len(), len);
    frame
}

/// The message without its length, which is right.
fn body(frame: &[u8]) -> Bytes {
    let (len, prefix_len) = frame_len(frame).unwrap().unwrap();
    assert_eq!(frame.len(), prefix_len + len);
    Bytes::copy_from_slice(&frame[prefix_len..])
}

/// The bytes that boxo writes for two wants, a cancel and `full`, by hand from the schema.
#[test]
fn a_want_list_of_boxo_is_read_and_written_byte_for_byte() {
    let (a, b) = (raw(b"a"), v0(b"b"));
    let a_bytes = [&[0x01, 0x55, 0x12, 0x20][..], &verify::sha256(b"a")].concat();
    let b_bytes = [&[0x12, 0x20][..], &verify::sha256(b"b")].concat();
    let first = [
        &[0x0a, 36][..],
        &a_bytes,
        // 2^31 - 1: boxo counts down from there. WANT_HAVE, and DONT_HAVE is asked for.
        &[0x10, 0xff, 0xff, 0xff, 0xff, 0x07, 0x20, 1, 0x28, 1],
    ]
    .concat();
    let second = [&[0x0a, 34][..], &b_bytes, &[0x10, 1, 0x18, 1]].concat();
    let wantlist = [
        &[0x0a, first.len() as u8][..],
        &first,
        &[0x0a, second.len() as u8],
        &second,
        &[0x10, 1],
    ]
    .concat();
    let message = [&[0x0a, wantlist.len() as u8][..], &wantlist].concat();
    let frame = [&[message.len() as u8][..], &message].concat();

    let entries = [
        Entry {
            priority: i32::MAX,
            want: WantKind::Have,
            send_dont_have: true,
            ..want(a)
        },
        Entry {
            cancel: true,
            ..want(b)
        },
    ];
    let read = decode(message).unwrap();
    assert_eq!(read.entries, entries);
    assert!(read.full);

    let mut out = Outgoing::new(Dialect::V1_2);
    assert!(entries.iter().all(|entry| out.push_entry(entry)));
    out.set_full(true);
    assert_eq!(joined(out), frame);
}

/// A block, HAVE, DONT_HAVE and pending bytes, by hand from the schema.
#[test]
fn an_answer_has_the_bytes_of_the_schema() {
    let (a, b) = (raw(b"hello"), v0(b"b"));
    let prefix = [0x01, 0x55, 0x12, 0x20];
    let payload = [&[0x0a, 4][..], &prefix, &[0x12, 5], b"hello"].concat();
    let have = [
        &[0x0a, 36, 0x01, 0x55, 0x12, 0x20][..],
        &verify::sha256(b"hello"),
    ]
    .concat();
    let dont_have = [
        &[0x0a, 34, 0x12, 0x20][..],
        &verify::sha256(b"b"),
        &[0x10, 1],
    ]
    .concat();
    let message = [
        &[0x0a, 0][..], // The want-list, empty.
        &[0x1a, payload.len() as u8],
        &payload,
        &[0x22, have.len() as u8],
        &have,
        &[0x22, dont_have.len() as u8],
        &dont_have,
        &[0x28, 0xac, 0x02], // 300.
    ]
    .concat();
    let frame = [&[message.len() as u8][..], &message].concat();

    let mut out = Outgoing::new(Dialect::V1_2);
    assert!(out.push_block(&a, Bytes::from_static(b"hello")));
    assert!(out.push_presence(&a, true));
    assert!(out.push_presence(&b, false));
    out.set_pending_bytes(300);
    assert_eq!(joined(out), [&frame[..]].concat());

    let read = decode(message).unwrap();
    assert_eq!(read.blocks.len(), 1);
    assert_eq!(read.blocks[0].verify(&a), Ok(()));
    assert_eq!(read.blocks[0].sha256().unwrap(), verify::sha256(b"hello"));
    let presence = |cid, have| Presence { cid, have };
    assert_eq!(read.presences, [presence(a, true), presence(b, false)]);
    assert_eq!(read.pending_bytes, 300);
}

/// The example of `docs/formats/bitswap.md`.
#[test]
fn the_example_of_the_byte_tables_is_what_is_written() {
    let cid = raw(b"hello");
    let mut out = Outgoing::new(Dialect::V1_2);
    assert!(out.push_block(&cid, Bytes::from_static(b"hello")));
    assert!(out.push_presence(&cid, true));
    out.set_pending_bytes(300);
    let expected = [
        &[0x3c, 0x0a, 0, 0x1a, 0x0d][..],
        &[0x0a, 0x04, 0x01, 0x55, 0x12, 0x20, 0x12, 0x05],
        b"hello",
        &[0x22, 0x26, 0x0a, 0x24, 0x01, 0x55, 0x12, 0x20],
        &verify::sha256(b"hello"),
        &[0x28, 0xac, 0x02],
    ];
    assert_eq!(joined(out), expected.concat());
}

/// In the two oldest dialects a block is bare bytes, and there is nothing of 1.2.0.
#[test]
fn each_dialect_uses_what_it_has() {
    let cid = v0(b"hello");
    for dialect in Dialect::OFFERED {
        assert_eq!(Dialect::of(dialect.name()), Some(dialect));
        let is_new = dialect == Dialect::V1_2;
        let mut out = Outgoing::new(dialect);
        assert!(out.push_block(&cid, Bytes::from_static(b"hello")));
        assert_eq!(out.push_presence(&cid, true), is_new);
        assert!(out.push_entry(&Entry {
            send_dont_have: true,
            ..want(cid)
        }));
        assert_eq!(
            out.push_entry(&Entry {
                want: WantKind::Have,
                ..want(cid)
            }),
            is_new
        );
        out.set_pending_bytes(7);
        let read = decode(body(&joined(out))).unwrap();
        assert_eq!(read.entries[0].send_dont_have, is_new);
        assert_eq!(read.entries.len() == 2, is_new);
        assert_eq!(read.presences.len() == 1, is_new);
        assert_eq!(read.pending_bytes == 7, is_new);
        assert_eq!(read.blocks[0].prefix.is_some(), dialect.has_prefixes());
        assert_eq!(read.blocks[0].verify(&cid), Ok(()));
    }
    assert_eq!(Dialect::of("/ipfs/bitswap/1.3.0"), None);
    let old = [&[0x0a, 0, 0x12, 5][..], b"hello"].concat();
    let mut out = Outgoing::new(Dialect::V1_0);
    assert!(out.push_block(&cid, Bytes::from_static(b"hello")));
    assert_eq!(joined(out), [&[9][..], &old].concat());
}

#[test]
fn a_message_of_nothing_still_has_a_want_list() {
    let out = Outgoing::new(Dialect::V1_2);
    assert!(out.is_empty());
    assert_eq!(joined(out), [2, 0x0a, 0]);
    assert_eq!(decode(Bytes::new()).unwrap(), Message::default());
}

/// The length is judged by its first bytes alone, before there is room for anything.
#[test]
fn a_length_that_lies_is_refused_at_once() {
    let too_long = |len| Err(WireError::MessageTooLong { len });
    let invalid = Err(WireError::PrefixInvalid);
    type Read = Result<Option<(usize, usize)>, WireError>;
    let table: &[(&[u8], Read)] = &[
        (&[], Ok(None)),
        (&[0], Ok(Some((0, 1)))),
        (&[0x7f, 0xff], Ok(Some((127, 1)))),
        (&[0x80], Ok(None)),
        (&[0x80, 0x80, 0x80], Ok(None)),
        (&[0x80, 0x80, 0x80, 0x02], Ok(Some((MESSAGE_LEN_MAX, 4)))),
        (
            &[0x81, 0x80, 0x80, 0x02],
            too_long(MESSAGE_LEN_MAX as u64 + 1),
        ),
        (&[0xff, 0xff, 0xff, 0x7f], too_long((1 << 28) - 1)),
        (&[0x80, 0x80, 0x80, 0x80], invalid),
        (
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40],
            invalid,
        ), // 2^62
        (&[0x80; 64], invalid),
        (&[0x80, 0x00], invalid),
    ];
    for (bytes, expected) in table {
        assert_eq!(frame_len(bytes), *expected, "{bytes:02x?}");
    }
}

/// Draft 1.3.0 has tokens, other presences, and more to come.
#[test]
fn fields_and_values_of_later_dialects_are_passed_over() {
    let cid = raw(b"a");
    let name = field(1, &cid.to_bytes());
    let entry = [&name[..], &field(7, b"token"), &[0x30, 9]].concat();
    let unknown_want = [&name[..], &[0x20, 2]].concat();
    let unknown_cancel = [&name[..], &[0x20, 2, 0x18, 1]].concat();
    let wantlist = [
        field(1, &entry),
        field(1, &unknown_want),
        field(1, &unknown_cancel),
        field(9, b"x"),
    ]
    .concat();
    let presence = [&name[..], &field(4, b"token")].concat();
    let too_big = [&name[..], &[0x10, 3]].concat();
    let block = [
        &field(1, &[1, 0x55, 0x12, 0x20])[..],
        &field(4, b"token"),
        &field(2, b"a"),
    ];
    let message = [
        &field(1, &wantlist)[..],
        &field(3, &block.concat()),
        &field(4, &presence),
        &field(4, &too_big),
        &field(6, b"token"),
        &[0x39, 1, 2, 3, 4, 5, 6, 7, 8, 0x3d, 1, 2, 3, 4], // Eight and four bytes.
        &[0xa0, 0xff, 0x03, 0x85, 0x80, 0x00],             // Field 8180, a padded number.
    ]
    .concat();
    let read = decode(message).unwrap();
    let cancel = Entry {
        priority: 0,
        cancel: true,
        ..want(cid)
    };
    let plain = Entry {
        cancel: false,
        ..cancel
    };
    assert_eq!(read.entries, [plain, cancel]);
    assert_eq!(read.n_entries_ignored, 1);
    assert_eq!(read.blocks[0].verify(&cid), Ok(()));
    assert_eq!(read.presences, [Presence { cid, have: true }]);
    assert_eq!(read.n_presences_ignored, 1);
    assert_eq!(read.n_fields_ignored, 9);
}

#[test]
fn fields_of_another_type_than_theirs_are_passed_over() {
    let cid = raw(b"a");
    let name = field(1, &cid.to_bytes());
    // The CID as a number, the priority as bytes.
    let entry = [&name[..], &[0x08, 5], &field(2, b"xyz")].concat();
    let wantlist = [&field(1, &entry)[..], &field(2, b"full"), &[0x08, 1]].concat();
    let message = [&field(1, &wantlist)[..], &[0x08, 1], &field(5, b"pending")].concat();
    let read = decode(message).unwrap();
    let expected = Entry {
        priority: 0,
        ..want(cid)
    };
    assert_eq!(read.entries, [expected]);
    assert!(!read.full);
    assert_eq!(read.pending_bytes, 0);
    assert_eq!(read.n_fields_ignored, 6);
}

/// As protobuf has it: the last value of a scalar, and all fields of a submessage in two pieces.
#[test]
fn what_stands_twice_counts_once_or_is_joined() {
    let (a, b) = (raw(b"a"), raw(b"b"));
    let entry = [
        &field(1, &a.to_bytes())[..],
        &[0x10, 3, 0x18, 1, 0x20, 1],
        &field(1, &b.to_bytes()),
        &[0x10, 9, 0x18, 0, 0x20, 0],
    ]
    .concat();
    let first = [&field(1, &entry)[..], &[0x10, 1]].concat();
    let second = field(1, &entry);
    let message = [
        &field(1, &first)[..],
        &[0x28, 5],
        &field(1, &second),
        &[0x28, 7],
    ]
    .concat();
    let read = decode(message).unwrap();
    let entry = Entry {
        priority: 9,
        ..want(b)
    };
    assert_eq!(read.entries, [entry, entry]);
    assert!(read.full, "the second want-list says nothing of it");
    assert_eq!(read.pending_bytes, 7);
}

#[test]
fn negative_and_huge_numbers_do_no_harm() {
    let cid = raw(b"a");
    let negative = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let entry = [&field(1, &cid.to_bytes())[..], &[0x10], &negative].concat();
    let message = [&field(1, &field(1, &entry))[..], &[0x28], &negative].concat();
    let read = decode(message.clone()).unwrap();
    assert_eq!(read.entries[0].priority, -1);
    assert_eq!(read.pending_bytes, -1);

    let mut out = Outgoing::new(Dialect::V1_2);
    assert!(out.push_entry(&read.entries[0]));
    out.set_pending_bytes(-1);
    assert_eq!(body(&joined(out)), message);

    for tail in [&[0x02][..], &[0x80, 0x80], &[0x7f]] {
        let message = [&[0x28][..], &[0xff; 9], tail].concat();
        assert_eq!(decode(message), Err(WireError::NumberInvalid { offset: 1 }));
    }
}

#[test]
fn what_is_no_protobuf_is_an_error_that_says_where() {
    let truncated = |offset| Err(WireError::Truncated { offset });
    let invalid = |offset| Err(WireError::FieldInvalid { offset });
    type Read = Result<Message, WireError>;
    let table: &[(&[u8], Read)] = &[
        (&[0x0a], truncated(1)),
        (&[0x0a, 1], truncated(2)),
        (&[0x0a, 3, 0x0a, 2, 0], truncated(4)),
        (&[0x28, 0x80], truncated(1)),
        (&[0x39, 1, 2], truncated(1)),
        (&[0x00, 0], invalid(0)),
        (&[0x28, 1, 0x2b], invalid(2)), // A group.
        (&[0x2c], invalid(0)),
        (&[0x2e], invalid(0)),
        (&[0xf8, 0xff, 0xff, 0xff, 0x7f, 0], invalid(0)), // A field over 2^29.
        // The length of a block of 2^63 - 1 bytes, and of 2^64 - 1.
        (
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1,
            ],
            truncated(10),
        ),
        (
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            truncated(11),
        ),
    ];
    for (bytes, expected) in table {
        assert_eq!(decode(bytes.to_vec()), *expected, "{bytes:02x?}");
    }
}

/// Nobody can be answered under those; the connection lives on.
#[test]
fn cids_that_cannot_be_answered_are_ignored_and_counted() {
    let long = Cid::new_v1(u64::MAX >> 1, Multihash::wrap(0x1e, &[7; 128]).unwrap());
    let mut digest_too_long = vec![1, 0x55, 0x1e];
    varint::write(&mut digest_too_long, 129);
    digest_too_long.extend([7; 129]);
    let names = [
        other(IDENTITY, b"inline").to_bytes(),
        other(IDENTITY, b"").to_bytes(),
        other(0xd5, &[1; 16]).to_bytes(),   // MD5.
        other(0x12, &[1; 8]).to_bytes(),    // Eight bytes of SHA2-256.
        other(0x12, &[1; 33]).to_bytes(),   // More than it has.
        other(0x3fff, &[1; 32]).to_bytes(), // Unknown.
        digest_too_long,
        [&raw(b"a").to_bytes()[..], &[0]].concat(), // A byte after it.
        raw(b"a").to_bytes()[..30].to_vec(),
        vec![0; 1000],
        vec![0xff; 1000],
        vec![],
    ];
    let good = [
        raw(b"a"),
        v0(b"a"),
        other(0x13, &[1; 64]),
        other(0x1e, &[1; 32]),
        other(0xb220, &[1; 32]),
        long,
    ];
    assert!(long.encoded_len() > 128 && long.encoded_len() <= CID_LEN_MAX);
    let good_names = good.iter().map(Cid::to_bytes);
    let names: Vec<_> = names.into_iter().chain(good_names).collect();
    let wantlist: Vec<u8> = names
        .iter()
        .flat_map(|name| field(1, &field(1, name)))
        .collect();
    let presences: Vec<u8> = names
        .iter()
        .flat_map(|name| field(4, &field(1, name)))
        .collect();
    let read = decode([field(1, &wantlist), presences].concat()).unwrap();
    let cids: Vec<_> = read.entries.iter().map(|entry| entry.cid).collect();
    assert_eq!(cids, good);
    assert_eq!(read.n_entries_ignored, names.len() - good.len());
    let cids: Vec<_> = read.presences.iter().map(|presence| presence.cid).collect();
    assert_eq!(cids, good);
    assert_eq!(read.n_presences_ignored, names.len() - good.len());
}

/// Twice and more what is kept, in one want-list and in many: the first are kept.
#[test]
fn entries_blocks_and_presences_over_the_limit_are_counted_and_passed_over() {
    let name = field(1, &raw(b"a").to_bytes());
    let limits = DecodeLimits {
        entries_max: 10,
        blocks_max: 3,
        presences_max: 2,
        ..DecodeLimits::default()
    };
    let one_list = field(1, &field(1, &name).repeat(7));
    let message = [
        one_list.repeat(3),
        field(2, b"a").repeat(2),
        field(3, &field(1, &[1, 0x55, 0x12, 0x20])).repeat(4),
        field(4, &name).repeat(5),
    ]
    .concat();
    let read = Message::decode(&message.into(), &limits).unwrap();
    assert_eq!((read.entries.len(), read.n_entries_ignored), (10, 11));
    assert_eq!((read.blocks.len(), read.n_blocks_ignored), (3, 3));
    assert_eq!((read.presences.len(), read.n_presences_ignored), (2, 3));
}

/// As large as a message may be, as many fields as it can hold, one after the other and nested.
#[test]
fn a_message_of_nothing_but_tiny_fields_is_refused_early() {
    let limit = DecodeLimits::default().fields_max;
    let refused = Err(WireError::TooManyFields { limit });
    let flat = [0x30, 0].repeat(MESSAGE_LEN_MAX / 2);
    assert_eq!(decode(flat), refused);
    let nested = field(1, &[0x30, 0].repeat(MESSAGE_LEN_MAX / 2 - 5));
    assert_eq!(decode(nested), refused);
    let lists = [0x0a, 0].repeat(MESSAGE_LEN_MAX / 2);
    assert_eq!(decode(lists), refused);
    let blocks = [0x12, 0].repeat(MESSAGE_LEN_MAX / 2);
    assert_eq!(decode(blocks), refused);
    let over = vec![0; MESSAGE_LEN_MAX + 1];
    let len = over.len() as u64;
    assert_eq!(decode(over), Err(WireError::MessageTooLong { len }));
}

/// A want-list as long as a message may be is no attack: boxo sends 2 MiB of it.
#[test]
fn a_message_full_of_wants_is_within_the_limit_of_fields() {
    let entry = field(1, &field(1, &raw(b"a").to_bytes()));
    let n = (MESSAGE_LEN_MAX - 5) / entry.len();
    let read = decode(field(1, &entry.repeat(n))).unwrap();
    let kept = DecodeLimits::default().entries_max;
    assert_eq!(
        (read.entries.len(), read.n_entries_ignored),
        (kept, n - kept)
    );
}

#[test]
fn blocks_are_slices_of_their_frame_and_of_allowed_length() {
    let prefix = field(1, &[1, 0x55, 0x12, 0x20]);
    let largest = vec![7; BLOCK_LEN_MAX];
    let too_long = vec![7; BLOCK_LEN_MAX + 1];
    let frame = |data: &[u8]| Bytes::from(field(3, &[&prefix[..], &field(2, data)].concat()));
    let good = frame(&largest);
    let read = decode(good.clone()).unwrap();
    let data = &read.blocks[0].data;
    assert_eq!(data, &largest);
    let (from, to) = (good.as_ptr() as usize, good.as_ptr() as usize + good.len());
    assert!((from..to).contains(&(data.as_ptr() as usize)), "copied");
    let read = decode(frame(&too_long)).unwrap();
    assert_eq!((read.blocks.len(), read.n_blocks_ignored), (0, 1));
    let read = decode(field(2, &too_long)).unwrap();
    assert_eq!((read.blocks.len(), read.n_blocks_ignored), (0, 1));
}

#[test]
fn prefixes_that_are_none_are_ignored_and_counted() {
    let bad: [&[u8]; 7] = [
        &[],
        &[1, 0x55, 0x12],
        &[1, 0x55, 0x12, 0x20, 0],
        &[2, 0x55, 0x12, 0x20],
        &[1, 0x55, 0x12, 0x81, 0x01], // A digest of 129 bytes.
        &[1, 0xd5, 0x00, 0x12, 0x20], // A number in a longer form.
        &[
            1, 0x55, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
    ];
    let blocks = bad.iter().flat_map(|prefix| field(3, &field(1, prefix)));
    let read = decode(blocks.collect::<Vec<u8>>()).unwrap();
    assert_eq!((read.blocks.len(), read.n_blocks_ignored), (0, bad.len()));
}

/// A block under a prefix that fits its CID but for one number is another's.
#[test]
fn a_block_is_accepted_under_its_own_prefix_only() {
    let cid = raw(b"a");
    let other_codec = from_sha256(Version::V1, DAG_PB, &verify::sha256(b"a"));
    let mut block = Received {
        prefix: Some(Prefix::of(&cid)),
        data: Bytes::from_static(b"a"),
    };
    assert_eq!(block.verify(&cid), Ok(()));
    assert_eq!(block.verify(&other_codec), Err(HashError::Mismatch));
    assert_eq!(block.verify(&v0(b"a")), Err(HashError::Mismatch));
    assert_eq!(block.verify(&raw(b"b")), Err(HashError::Mismatch));
    block.prefix = None;
    assert_eq!(block.verify(&other_codec), Ok(()));
    block.prefix = Some(Prefix::of(&other(0x13, &[1; 64])));
    assert_eq!(block.sha256(), None);
}

/// The largest block fits twice less its framing; what does not fit changes nothing.
#[test]
fn a_message_never_grows_over_its_limit() {
    let cid = raw(b"a");
    let block = Bytes::from(vec![7; BLOCK_LEN_MAX]);
    for dialect in Dialect::OFFERED {
        let mut out = Outgoing::new(dialect);
        assert!(out.push_block(&cid, block.clone()));
        let before = out.len();
        assert!(!out.push_block(&cid, block.clone()));
        assert_eq!((out.len(), out.n_blocks()), (before, 1));
        while out.push_block(&cid, block.slice(..100)) {}
        while out.push_entry(&want(cid)) {}
        while out.push_presence(&cid, false) {}
        out.set_full(true);
        out.set_pending_bytes(-1);
        let message = body(&joined(out));
        assert!(message.len() <= MESSAGE_LEN_MAX);
        assert!(message.len() > MESSAGE_LEN_MAX - 200);
    }
}

/// Long blocks keep their memory, short ones lie beside their framing: a writer has few parts.
#[test]
fn long_blocks_are_parts_of_their_own_and_not_copied() {
    let cid = raw(b"a");
    let (long, short) = (Bytes::from(vec![1; 100_000]), Bytes::from(vec![2; 100]));
    let mut out = Outgoing::new(Dialect::V1_2);
    for data in [&long, &short, &short, &long] {
        assert!(out.push_block(&cid, data.clone()));
    }
    let parts = out.clone().finish();
    assert_eq!(parts.len(), 4);
    assert_eq!(parts[1].as_ptr(), long.as_ptr());
    assert_eq!(parts[3].as_ptr(), long.as_ptr());
    assert!(out.push_presence(&cid, true));
    assert_eq!(out.finish().len(), 5);
}

fn any_cid() -> impl Strategy<Value = Cid> {
    let code = prop::sample::select(vec![0x12_u64, 0x12, 0x12, 0x13, 0x1e, 0xb220]);
    (code, any::<[u8; 32]>(), 0..3_u8, 0..1_u64 << 40).prop_map(
        |(code, digest, form, codec)| match (code, form) {
            (0x12, 0) => from_sha256(Version::V0, DAG_PB, &digest),
            (_, 1) => Cid::new_v1(codec, Multihash::wrap(code, &digest).unwrap()),
            _ => other(code, &digest),
        },
    )
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let flags = any::<(i32, bool, bool, bool)>();
    (any_cid(), flags).prop_map(|(cid, (priority, cancel, have, send_dont_have))| Entry {
        cid,
        priority,
        cancel,
        want: if have {
            WantKind::Have
        } else {
            WantKind::Block
        },
        send_dont_have,
    })
}

proptest! {
    /// What goes in comes out, in all dialects as far as they have it, and costs what it should.
    #[test]
    fn what_is_written_is_read(
        dialect in prop::sample::select(&Dialect::OFFERED),
        entries in vec(any_entry(), 0..20),
        blocks in vec((any_cid(), 0..20_000_usize), 0..8),
        presences in vec((any_cid(), any::<bool>()), 0..20),
        full: bool,
        pending_bytes: i32,
    ) {
        let mut out = Outgoing::new(dialect);
        let has = dialect.has_presences();
        let entries: Vec<_> = entries
            .into_iter()
            .filter(|entry| out.push_entry(entry))
            .map(|entry| Entry { send_dont_have: entry.send_dont_have && has, ..entry })
            .collect();
        for (cid, len) in &blocks {
            let before = out.len();
            prop_assert!(out.push_block(cid, vec![*len as u8; *len].into()));
            let cost = block_cost(cid, *len);
            // The length before the message may grow with it, by a byte or two.
            let grown = out.len() - before;
            prop_assert!(grown <= cost + 2 && (grown >= cost || !dialect.has_prefixes()));
        }
        let presences: Vec<_> = presences
            .into_iter()
            .filter(|(cid, have)| out.push_presence(cid, *have))
            .map(|(cid, have)| Presence { cid, have })
            .collect();
        out.set_full(full);
        out.set_pending_bytes(pending_bytes);
        let read = decode(body(&joined(out))).unwrap();
        prop_assert_eq!(read.full, full);
        prop_assert_eq!(read.entries, entries);
        prop_assert_eq!(read.presences, presences);
        prop_assert_eq!(read.pending_bytes, if has { pending_bytes } else { 0 });
        prop_assert_eq!(read.blocks.len(), blocks.len());
        for (block, (cid, len)) in read.blocks.iter().zip(&blocks) {
            let prefix = dialect.has_prefixes().then(|| Prefix::of(cid));
            prop_assert_eq!(block.prefix, prefix);
            prop_assert_eq!(&block.data, &vec![*len as u8; *len]);
        }
    }

    /// Every cut of a message inside a field is reported.
    #[test]
    fn a_cut_message_is_a_shorter_one_or_an_error(
        entries in vec(any_entry(), 1..4),
        cid in any_cid(),
    ) {
        let mut out = Outgoing::new(Dialect::V1_2);
        for entry in &entries {
            prop_assert!(out.push_entry(entry));
        }
        let wantlist_len = body(&joined(out.clone())).len();
        prop_assert!(out.push_block(&cid, Bytes::from_static(b"block")));
        let block_len = body(&joined(out.clone())).len();
        let message = body(&joined(out));
        for cut in 1..message.len() {
            let read = decode(message.slice(..cut));
            prop_assert_eq!(read.is_ok(), [wantlist_len, block_len].contains(&cut), "{}", cut);
        }
    }
}
