//! The sharded DAG index, `index/sharded/dag@0.1`: where the blocks of some CARs lie in them.
//!
//! In       the bytes of a CARv1 whose root is the index and whose other blocks are its shards.
//! Out      for each shard (a CAR, by its multihash) the slices in it: multihash, offset, length.
//! Limits   those of CARs; [`SHARDS_MAX`] shards; a slice takes as many bytes here as there.
//! Not here trust: the blocks of the index are verified, what they say is a claim. Writers do not
//!          agree whether a slice is a block or its section: whoever uses one hashes it.
//!
//! Spec: <https://github.com/storacha/specs/blob/main/w3-index.md>; where code writes
//! `[digest, [offset, length]]` and the text has flat triples, the code is followed.

use std::collections::HashMap;

use super::{CarError, CarLimits, Parser, Step};
use crate::dag::DagError;
use crate::dag::cbor::{Head, Reader};
use crate::{Cid, Multihash};

/// Most shards of one index.
pub const SHARDS_MAX: u64 = 10_000;

const NAME: &[u8] = b"index/sharded/dag@0.1";

/// One CAR of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The CAR's own multihash.
    pub multihash: Multihash,
    /// What lies in it, as its writer says. The CAR itself is left out.
    pub slices: Vec<Slice>,
}

/// A block in a CAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// What it hashes to.
    pub multihash: Multihash,
    /// Where it starts in the CAR.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

/// Reads an index.
///
/// # Errors
/// `Index` if it is none; those of CARs and of hashes that do not fit.
pub fn parse(bytes: &[u8]) -> Result<Vec<Shard>, CarError> {
    let mut parser = Parser::new(CarLimits::default(), 0);
    parser.set_end(bytes.len() as u64);
    let (mut roots, mut blocks) = (Vec::new(), HashMap::new());
    loop {
        let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
        match parser.next(bytes.get(at..).unwrap_or_default(), true)? {
            Step::Header(header) => roots = header.roots,
            Step::Section(section) => {
                let start = usize::try_from(section.data_offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(section.data_len as usize);
                let truncated = CarError::Truncated {
                    offset: section.offset,
                };
                let data = bytes.get(start..end).ok_or(truncated)?;
                section.verify(data)?;
                blocks.insert(section.cid, data);
            }
            Step::Need(_) => return Err(bad("it ends early")),
            Step::End => break,
        }
    }
    let root = roots.first().and_then(|root| blocks.get(root));
    let root = root.ok_or_else(|| bad("its root is not in it"))?;
    let mut shards = Vec::new();
    for link in links(root).map_err(|_| bad("its root is no index of shards"))? {
        let block = blocks
            .get(&link)
            .ok_or_else(|| bad("a shard is not in it"))?;
        shards.push(shard(block).map_err(|_| bad("a shard is malformed"))?);
    }
    Ok(shards)
}

const fn bad(reason: &'static str) -> CarError {
    CarError::Index { offset: 0, reason }
}

/// The links to shards of `{NAME: {content: link, shards: [link…]}}`.
fn links(block: &[u8]) -> Result<Vec<Cid>, DagError> {
    let mut reader = Reader::new(block);
    let wrong = |reader: &Reader<'_>| DagError::malformed(reader.at(), "no index of shards");
    let (Head::Map(1), Head::Text(name)) = (reader.head()?, reader.head()?) else {
        return Err(wrong(&reader));
    };
    let Head::Map(n_fields) = reader.head()? else {
        return Err(wrong(&reader));
    };
    if reader.slice(name) != NAME {
        return Err(wrong(&reader));
    }
    let mut links = Vec::new();
    for _ in 0..n_fields {
        let Head::Text(field) = reader.head()? else {
            return Err(wrong(&reader));
        };
        if reader.slice(field) != b"shards" {
            reader.value(|_| Ok(()))?;
            continue;
        }
        let Head::List(n_shards @ 0..=SHARDS_MAX) = reader.head()? else {
            return Err(wrong(&reader));
        };
        for _ in 0..n_shards {
            let start = reader.at();
            let Head::Tag(42) = reader.head()? else {
                return Err(wrong(&reader));
            };
            let span = reader.link(start)?;
            links.push(reader.cid(span)?);
        }
    }
    Ok(links)
}

/// `[multihash, [[multihash, [offset, length]], …]]`.
fn shard(block: &[u8]) -> Result<Shard, DagError> {
    let mut reader = Reader::new(block);
    expect_list(&mut reader, 2)?;
    let multihash = read_multihash(&mut reader)?;
    let Head::List(n_slices) = reader.head()? else {
        return Err(DagError::malformed(reader.at(), "no list of slices"));
    };
    let mut slices = Vec::new();
    for _ in 0..n_slices {
        expect_list(&mut reader, 2)?;
        let of = read_multihash(&mut reader)?;
        expect_list(&mut reader, 2)?;
        let (Head::Unsigned(offset), Head::Unsigned(len)) = (reader.head()?, reader.head()?) else {
            return Err(DagError::malformed(reader.at(), "no position"));
        };
        if of != multihash {
            let multihash = of;
            slices.push(Slice {
                multihash,
                offset,
                len,
            });
        }
    }
    Ok(Shard { multihash, slices })
}

fn expect_list(reader: &mut Reader<'_>, len: u64) -> Result<(), DagError> {
    match reader.head()? {
        Head::List(n) if n == len => Ok(()),
        _ => Err(DagError::malformed(reader.at(), "no list of this length")),
    }
}

fn read_multihash(reader: &mut Reader<'_>) -> Result<Multihash, DagError> {
    let start = reader.at();
    let Head::Bytes(span) = reader.head()? else {
        return Err(DagError::malformed(start, "no multihash"));
    };
    Multihash::from_bytes(reader.slice(span))
        .map_err(|_| DagError::malformed(start, "no multihash"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{NAME, Shard, Slice, parse};
    use crate::car::write;
    use crate::{Cid, Multihash, cid, verify};

    fn head(major: u8, n: u64, out: &mut Vec<u8>) {
        out.push(major << 5 | 27);
        out.extend((0..8).rev().map(|byte| (n >> (8 * byte)) as u8));
    }

    fn bytes(data: &[u8], out: &mut Vec<u8>) {
        head(2, data.len() as u64, out);
        out.extend_from_slice(data);
    }

    fn link(cid: &Cid, out: &mut Vec<u8>) {
        head(6, 42, out);
        bytes(&[&[0], &cid.to_bytes()[..]].concat(), out);
    }

    fn text(text: &[u8], out: &mut Vec<u8>) {
        head(3, text.len() as u64, out);
        out.extend_from_slice(text);
    }

    fn cbor(block: &[u8]) -> Cid {
        cid::from_sha256(::cid::Version::V1, 0x71, &verify::sha256(block))
    }

    fn multihash(n: u8) -> Multihash {
        Multihash::wrap(0x12, &[n; 32]).unwrap()
    }

    fn index(shards: &[Shard]) -> Vec<u8> {
        let mut blocks = Vec::new();
        for shard in shards {
            let mut block = Vec::new();
            head(4, 2, &mut block);
            bytes(&shard.multihash.to_bytes(), &mut block);
            head(4, shard.slices.len() as u64 + 1, &mut block);
            let whole = Slice {
                multihash: shard.multihash,
                offset: 0,
                len: 9,
            };
            for slice in shard.slices.iter().chain([&whole]) {
                head(4, 2, &mut block);
                bytes(&slice.multihash.to_bytes(), &mut block);
                head(4, 2, &mut block);
                head(0, slice.offset, &mut block);
                head(0, slice.len, &mut block);
            }
            blocks.push(block);
        }
        let mut root = Vec::new();
        head(5, 1, &mut root);
        text(NAME, &mut root);
        head(5, 2, &mut root);
        text(b"content", &mut root);
        link(&cbor(b"x"), &mut root);
        text(b"shards", &mut root);
        head(4, blocks.len() as u64, &mut root);
        blocks
            .iter()
            .for_each(|block| link(&cbor(block), &mut root));
        let mut car = write::header(&[cbor(&root)]);
        for block in blocks.iter().chain([&root]) {
            write::frame_head(&mut car, &cbor(block), block.len());
            car.extend_from_slice(block);
        }
        car
    }

    fn sample() -> Vec<Shard> {
        let slice = |n: u8| Slice {
            multihash: multihash(n),
            offset: u64::from(n) << 33,
            len: u64::from(n),
        };
        let shard = |n: u8| Shard {
            multihash: multihash(n),
            slices: (n + 1..n + 4).map(slice).collect(),
        };
        vec![shard(10), shard(20)]
    }

    #[test]
    fn what_is_written_is_read_and_no_cut_is_taken_for_whole() {
        let car = index(&sample());
        assert_eq!(parse(&car).unwrap(), sample());
        for cut in 0..car.len() {
            assert!(parse(&car[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_index_or_an_error(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            place in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let _ = parse(&noise);
            let _ = super::shard(&noise);
            let _ = super::links(&noise);
            let mut car = index(&sample());
            let place = place.index(car.len());
            car[place] ^= byte;
            let _ = parse(&car);
        }
    }
}
