use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const V0: &str = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPAQr";
const V1: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";

/// Bytes of a version 1 CID with an identity digest of `len` times the byte.
fn identity_bytes(byte: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x01, 0x55, 0x00];
    varint::write(&mut bytes, len as u64);
    bytes.resize(bytes.len() + len, byte);
    bytes
}

fn cids() -> impl Strategy<Value = Cid> {
    let v0 = any::<[u8; 32]>().prop_map(|digest| from_sha256(Version::V0, DAG_PB, &digest));
    let v1 = (
        0..=varint::VALUE_MAX,
        0..=varint::VALUE_MAX,
        0u32..63,
        0u32..63,
    )
        .prop_map(|(codec, code, less, fewer)| (codec >> less, code >> fewer))
        .prop_flat_map(|(codec, code)| {
            proptest::collection::vec(any::<u8>(), 0..=DIGEST_LEN_MAX)
                .prop_map(move |digest| Cid::new_v1(codec, Multihash::wrap(code, &digest).unwrap()))
        });
    prop_oneof![v0, v1]
}

#[test]
fn known_texts() {
    for text in [
        V0,
        V1,
        "bafkqaaa",
        "bafkqaf3imvwgy3zaneqgc3janfxgy2lomvscay3jmqfa",
    ] {
        assert_eq!(parse_text(text).unwrap().to_string(), text);
    }
    assert_eq!(empty_identity().to_string(), "bafkqaaa");
    assert_eq!(identity_data(&empty_identity()), Some(&[][..]));
    let inline = parse_text("bafkqaf3imvwgy3zaneqgc3janfxgy2lomvscay3jmqfa").unwrap();
    assert_eq!(
        identity_data(&inline),
        Some(&b"hello i am inlined cid\n"[..])
    );
    assert_eq!(identity_data(&parse_text(V0).unwrap()), None);
}

#[test]
fn every_base_reads_back() {
    let cid = parse_text(V1).unwrap();
    for base in [
        Base::Base2,
        Base::Base8,
        Base::Base10,
        Base::Base16Lower,
        Base::Base16Upper,
        Base::Base32Lower,
        Base::Base32Upper,
        Base::Base36Lower,
        Base::Base36Upper,
        Base::Base58Btc,
        Base::Base64,
        Base::Base64Url,
    ] {
        assert_eq!(
            parse_text(&cid.to_string_of_base(base).unwrap()).unwrap(),
            cid,
            "{base:?}"
        );
    }
}

/// The two CIDs of IPIP-512: 128 bytes are accepted, 129 are not.
#[test]
fn identity_digests_end_at_128_bytes() {
    let longest = identity_bytes(b'B', 128);
    let cid = parse_bytes(&longest).unwrap();
    assert_eq!(identity_data(&cid), Some(&[b'B'; 128][..]));
    assert!(cid.to_string().starts_with("bafkqbaabijbeeq"));
    assert_eq!(parse_text(&cid.to_string()).unwrap(), cid);

    let too_long = identity_bytes(b'A', 129);
    assert_eq!(
        parse_bytes(&too_long),
        Err(CidError::DigestTooLong { len: 129 })
    );
    let text = multibase::encode(Base::Base32Lower, &too_long);
    assert!(text.starts_with("bafkqbaibifaucq"));
    assert_eq!(parse_text(&text), Err(CidError::DigestTooLong { len: 129 }));
    // Refused at the length already, before the digest is there.
    assert_eq!(
        read_prefix(&too_long[..5]),
        Err(CidError::DigestTooLong { len: 129 })
    );
}

#[test]
fn malformed_cids_are_refused() {
    let sha = |head: &[u8]| [head, &[7; 32]].concat();
    let table: &[(Vec<u8>, CidError)] = &[
        (vec![], CidError::Truncated),
        (vec![0x12], CidError::Truncated),
        (vec![0x12, 0x20], CidError::Truncated),
        (vec![0x12, 0x1f, 0], CidError::Version { version: 0x12 }),
        (
            vec![0x00, 0x70, 0x12, 0x20],
            CidError::Version { version: 0 },
        ),
        (
            sha(&[0x00, 0x70, 0x12, 0x20]),
            CidError::Version { version: 0 },
        ),
        (
            sha(&[0x02, 0x70, 0x12, 0x20]),
            CidError::Version { version: 2 },
        ),
        (
            sha(&[0x81, 0x00, 0x70, 0x12, 0x20]),
            CidError::Varint(VarintError::NotMinimal),
        ),
        (
            sha(&[0x01, 0xf0, 0x00, 0x12, 0x20]),
            CidError::Varint(VarintError::NotMinimal),
        ),
        (
            sha(&[0x01, 0x70, 0x92, 0x00, 0x20]),
            CidError::Varint(VarintError::NotMinimal),
        ),
        (
            sha(&[0x01, 0x70, 0x12, 0xa0, 0x00]),
            CidError::Varint(VarintError::NotMinimal),
        ),
        (
            sha(&[0x01, 0x70, 0x12, 0x1f]),
            CidError::Trailing { len: 1 },
        ),
        (sha(&[0x01, 0x70, 0x12, 0x21]), CidError::Truncated),
        (
            [sha(&[0x12, 0x20]), vec![0]].concat(),
            CidError::Trailing { len: 1 },
        ),
        (vec![0x01; CID_LEN_MAX + 1], CidError::TooLong),
        (vec![0xff; 20], CidError::Varint(VarintError::TooLong)),
        (
            [vec![0x01, 0x70, 0x12], vec![0xff; 8], vec![0x7f]].concat(),
            CidError::DigestTooLong {
                len: varint::VALUE_MAX,
            },
        ),
    ];
    for (bytes, want) in table {
        assert_eq!(parse_bytes(bytes).as_ref(), Err(want), "{bytes:02x?}");
    }
}

#[test]
fn version_0_has_one_text_form() {
    let cid = parse_text(V0).unwrap();
    let prefixed = multibase::encode(Base::Base32Lower, cid.to_bytes());
    assert_eq!(parse_text(&prefixed), Err(CidError::PrefixedV0));
    assert_eq!(parse_text(&format!("z{V0}")), Err(CidError::PrefixedV0));
    assert!(
        parse_text(&V0.replace('Y', "0")).is_err(),
        "0 is no digit of base58"
    );
    assert!(parse_text(&format!("{V0}1")).is_err());
    assert!(
        parse_text(&format!("/ipfs/{V0}")).is_err(),
        "a path is no cid"
    );
}

#[test]
fn long_text_fails_before_it_is_decoded() {
    for prefix in ["Qm", "z", "k", "b", "9"] {
        let text = prefix.to_owned() + &"2".repeat(1 << 20);
        let start = Instant::now();
        assert_eq!(parse_text(&text), Err(CidError::TooLong));
        assert!(
            start.elapsed() < Duration::from_millis(1),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn odd_texts_do_not_panic() {
    for text in [
        "", "b", "Q", "Qm", "é", "ßß", "b\0", "🚀ab", "\u{0}", "baaa", "z", "1", "  ",
    ] {
        assert!(parse_text(text).is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn a_cid_reads_back(cid in cids(), tail in proptest::collection::vec(any::<u8>(), 0..9)) {
        let mut bytes = cid.to_bytes();
        prop_assert!(bytes.len() <= CID_LEN_MAX);
        prop_assert_eq!(parse_bytes(&bytes), Ok(cid));
        prop_assert_eq!(parse_text(&cid.to_string()), Ok(cid));
        for cut in 0..bytes.len() {
            prop_assert_eq!(read_prefix(&bytes[..cut]), Ok(None));
        }
        let len = bytes.len();
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(read_prefix(&bytes), Ok(Some((cid, len))));
    }

    /// No other bytes give the same CID, so a CID read from a file can be written back as it was.
    #[test]
    fn what_is_read_writes_the_same_bytes(cid in cids(), bit in 0usize..2400) {
        let mut bytes = cid.to_bytes();
        let bits = bytes.len() * 8;
        bytes[bit % bits / 8] ^= 1 << (bit % 8);
        if let Ok(Some((other, len))) = read_prefix(&bytes) {
            prop_assert_eq!(&other.to_bytes(), &bytes[..len]);
            prop_assert_ne!(other, cid);
        }
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,80}") {
        if let Ok(cid) = parse_text(&text) {
            prop_assert_eq!(parse_text(&cid.to_string()), Ok(cid));
        }
    }
}
