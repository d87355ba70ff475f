use multihash_codetable::{Code, MultihashDigest};
use proptest::prelude::*;

use super::*;
use crate::cid::RAW;

fn multihash(code: u64, digest: &[u8]) -> Multihash {
    Multihash::wrap(code, digest).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Another implementation's table agrees with ours on every function it has.
#[test]
fn digests_of_the_code_table_are_accepted() {
    let data = b"the block";
    for code in [
        Code::Sha2_256,
        Code::Sha2_512,
        Code::Sha3_224,
        Code::Sha3_256,
        Code::Sha3_384,
        Code::Sha3_512,
        Code::Keccak224,
        Code::Keccak256,
        Code::Keccak384,
        Code::Keccak512,
        Code::Blake2b256,
        Code::Blake2b512,
        Code::Blake2s256,
        Code::Blake3_256,
    ] {
        let full = code.digest(data);
        for len in 0..=full.digest().len() {
            let cid = Cid::new_v1(RAW, multihash(full.code(), &full.digest()[..len]));
            let bad_length = HashError::BadLength {
                code: full.code(),
                len,
            };
            let want = if len < DIGEST_LEN_MIN {
                Err(bad_length)
            } else {
                Ok(())
            };
            assert_eq!(verify(&cid, data), want, "{code:?} {len}");
            if want.is_ok() {
                assert_eq!(
                    verify(&cid, b"the blocj"),
                    Err(HashError::Mismatch),
                    "{code:?} {len}"
                );
            }
        }
    }
}

/// Digests that `sha1sum` and Python's hashlib give for `abc`.
#[test]
fn functions_outside_of_the_code_table() {
    let sha1 = hex("a9993e364706816aba3e25717850c26c9cd0d89d");
    let double = sha256(&sha256(b"abc"));
    let shake = hex(concat!(
        "483366601360a8771c6863080cc4114d8db44530f8f1e1ee4f94ea37e78b5739",
        "d5a15bef186a5386c75744c0527e1faa9f8726e462a12a4feb06bd8801e751e4"
    ));
    for (code, digest) in [
        (SHA1, &sha1[..]),
        (DBL_SHA2_256, &double),
        (SHAKE_256, &shake),
    ] {
        let cid = Cid::new_v1(RAW, multihash(code, digest));
        assert_eq!(verify(&cid, b"abc"), Ok(()), "{code:x}");
        assert_eq!(verify(&cid, b"abd"), Err(HashError::Mismatch), "{code:x}");
    }
    assert!(is_legacy(SHA1) && is_legacy(DBL_SHA2_256) && !is_legacy(SHA2_256));
}

/// BLAKE2 has its output length in its parameters: a short one is not the front of a long one.
#[test]
fn blake2_of_each_length_is_its_own_function() {
    for len in 20..=64usize {
        let digest = blake2b_simd::Params::new().hash_length(len).hash(b"abc");
        let cid = Cid::new_v1(RAW, multihash(BLAKE2B + len as u64, digest.as_bytes()));
        assert_eq!(verify(&cid, b"abc"), Ok(()));
        let wrong = Cid::new_v1(RAW, multihash(BLAKE2B + 64, digest.as_bytes()));
        assert_eq!(verify(&wrong, b"abc").is_ok(), len == 64);
    }
    for len in 20..=32usize {
        let digest = blake2s_simd::Params::new().hash_length(len).hash(b"abc");
        let cid = Cid::new_v1(RAW, multihash(BLAKE2S + len as u64, digest.as_bytes()));
        assert_eq!(verify(&cid, b"abc"), Ok(()));
    }
}

/// Every code up to 0x10000 and around BLAKE2, with every length.
#[test]
fn only_listed_functions_and_lengths_are_allowed() {
    let listed = |code: u64| match code {
        0x00 => Some((0, 128)),
        0x11 => Some((20, 20)),
        0x12 | 0x16 | 0x1b | 0x56 => Some((20, 32)),
        0x13 | 0x14 | 0x1d => Some((20, 64)),
        0x15 | 0x1c => Some((20, 48)),
        0x17 | 0x1a => Some((20, 28)),
        0x19 | 0x1e => Some((20, 128)),
        0xb214..=0xb240 => Some((20, code as usize - 0xb200)),
        0xb254..=0xb260 => Some((20, code as usize - 0xb240)),
        _ => None,
    };
    for code in 0..=0x1_0000u64 {
        for len in [
            0, 1, 19, 20, 21, 28, 29, 32, 33, 48, 49, 63, 64, 65, 127, 128,
        ] {
            let got = check_allowed(&multihash(code, &vec![1; len]));
            let want = match listed(code) {
                None => Err(HashError::NotAllowed { code }),
                Some((min, max)) if len < min || len > max => {
                    Err(HashError::BadLength { code, len })
                }
                Some(_) => Ok(()),
            };
            assert_eq!(got, want, "{code:x} {len}");
            assert_eq!(
                got.is_ok(),
                Verifier::new(&multihash(code, &vec![1; len])).is_ok()
            );
        }
    }
}

#[test]
fn identity_is_compared_byte_for_byte() {
    let cid = Cid::new_v1(RAW, multihash(IDENTITY, b"inline"));
    assert_eq!(verify(&cid, b"inline"), Ok(()));
    for other in [&b"inlin"[..], b"inline!", b"inlinE", b""] {
        assert_eq!(verify(&cid, other), Err(HashError::Mismatch), "{other:?}");
    }
    assert_eq!(verify(&crate::cid::empty_identity(), b""), Ok(()));
}

proptest! {
    #[test]
    fn pieces_give_what_the_whole_gives(
        data in proptest::collection::vec(any::<u8>(), 0..600),
        cuts in proptest::collection::vec(0usize..600, 0..6),
        code_index in 0usize..4,
        flip in 0usize..4800,
    ) {
        let codes = [Code::Sha2_256, Code::Sha2_512, Code::Blake3_256, Code::Keccak256];
        let full = codes[code_index].digest(&data);
        let expected = multihash(full.code(), full.digest());
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(data.len())).collect();
        cuts.extend([0, data.len()]);
        cuts.sort_unstable();
        let check = |data: &[u8]| {
            let mut verifier = Verifier::new(&expected).unwrap();
            for pair in cuts.windows(2) {
                verifier.update(&data[pair[0]..pair[1]]);
            }
            verifier.finish()
        };
        prop_assert_eq!(check(&data), Ok(()));
        if !data.is_empty() {
            let mut other = data.clone();
            other[flip / 8 % data.len()] ^= 1 << (flip % 8);
            prop_assert_eq!(check(&other), Err(HashError::Mismatch));
            prop_assert_eq!(verify(&Cid::new_v1(RAW, expected), &other), Err(HashError::Mismatch));
        }
    }
}
