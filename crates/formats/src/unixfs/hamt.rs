//! Sharded directories: a hash trie whose nodes are dag-pb blocks.
//!
//! In       entries to build from, or one shard block to look a name up in.
//! Out      shard blocks; the next step of a look-up.
//! Limits   a shard has 8 to [`FANOUT_MAX`] slots; a look-up ends after 64 bits of hash.
//! Not here whether a directory is sharded at all (`unixfs::dir`); loading the next shard.
//!
//! The key of a name is murmur3-x64-64, its bits taken from the most significant one; each level
//! takes log2(fanout) of them, the slot. A link's name is its slot in upper-case hexadecimal, as
//! wide as the largest slot needs, followed by the entry's name; with nothing behind it the link
//! leads to the shard below. The bitfield has a bit for each slot in use, slot 0 the least
//! significant bit of the last byte; leading zero bytes may be missing.
//!
//! Spec: <https://specs.ipfs.tech/unixfs/#dag-pb-hamtdirectory>

use std::fmt::Write as _;

use crate::Cid;
use crate::dag::pb::{PbLink, PbNode, put_data, put_link};
use crate::unixfs::build::Built;
use crate::unixfs::dir::{DirError, Entry, emit};
use crate::unixfs::node::{Kind, UnixFs, shard};
use crate::unixfs::profile::Profile;

/// Code of murmur3-x64-64, the only hash in use.
pub const MURMUR3_X64_64: u64 = 0x22;

/// Slots of the shards written here.
pub const FANOUT: usize = 256;

/// Most slots of a shard read here.
pub const FANOUT_MAX: u64 = 1024;

/// Bits of a name's hash.
const HASH_BITS: u32 = 64;

/// Why a block is not a sound shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HamtError {
    /// The node is something else.
    #[error("node is a {0:?}, not a directory shard")]
    NotShard(Kind),
    /// Not a power of two from 8 to [`FANOUT_MAX`].
    #[error("shard has a fanout of {0:?}")]
    FanoutInvalid(Option<u64>),
    /// Not murmur3-x64-64.
    #[error("shard hashes names with {0:?}, which is not known")]
    HashUnknown(Option<u64>),
    /// Longer than the fanout, or another number of bits than there are links.
    #[error("bitfield of the shard does not fit its {n_links} links")]
    BitfieldInvalid {
        /// Links of the block.
        n_links: usize,
    },
    /// A link whose name does not begin with its slot.
    #[error("link {index} of the shard is not named after its slot")]
    PrefixInvalid {
        /// Number of the link.
        index: usize,
    },
    /// More levels than the hash has bits for.
    #[error("shards are nested deeper than the hash of a name reaches")]
    TooDeep,
}

/// One shard, borrowed from its block.
#[derive(Debug, Clone)]
pub struct Shard<'a> {
    node: PbNode<'a>,
    bitfield: &'a [u8],
    fanout_log2: u32,
}

/// What a shard says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// This is the entry; `name` is the link's, slot included.
    Entry(PbLink<'a>),
    /// Look in this shard, one level down.
    Child(PbLink<'a>),
    /// There is no such entry.
    Missing,
}

impl<'a> Shard<'a> {
    /// Checks that `node`, whose data is `unixfs`, is a shard of sound form. The links' names
    /// are looked at when they are used.
    ///
    /// # Errors
    /// [`HamtError`].
    pub fn parse(node: &PbNode<'a>, unixfs: &UnixFs<'a>) -> Result<Self, HamtError> {
        if unixfs.kind != Kind::HamtShard {
            return Err(HamtError::NotShard(unixfs.kind));
        }
        if unixfs.hash_type != Some(MURMUR3_X64_64) {
            return Err(HamtError::HashUnknown(unixfs.hash_type));
        }
        let fanout = match unixfs.fanout {
            Some(fanout @ 8..=FANOUT_MAX) if fanout.is_power_of_two() => fanout,
            other => return Err(HamtError::FanoutInvalid(other)),
        };
        let bitfield = unixfs.data.unwrap_or_default();
        let n_links = node.n_links();
        let n_bits: u32 = bitfield.iter().map(|byte| byte.count_ones()).sum();
        if bitfield.len() as u64 * 8 > fanout || n_bits as usize != n_links {
            return Err(HamtError::BitfieldInvalid { n_links });
        }
        Ok(Self {
            node: node.clone(),
            bitfield,
            fanout_log2: fanout.trailing_zeros(),
        })
    }

    /// Bits of hash that this level takes.
    #[must_use]
    pub fn fanout_log2(&self) -> u32 {
        self.fanout_log2
    }

    /// Bytes of a link's name that are its slot.
    #[must_use]
    pub fn prefix_len(&self) -> usize {
        self.fanout_log2.div_ceil(4) as usize
    }

    /// Looks for `name`, whose `hash` has been used up to `bits` by the shards above. The
    /// caller adds [`fanout_log2`](Self::fanout_log2) to `bits` before asking the child.
    ///
    /// # Errors
    /// `TooDeep`, `PrefixInvalid`.
    pub fn lookup(&self, name: &[u8], hash: u64, bits: u32) -> Result<Lookup<'a>, HamtError> {
        let slot = slot(hash, bits, self.fanout_log2).ok_or(HamtError::TooDeep)?;
        let Some(index) = self.link_index(slot) else {
            return Ok(Lookup::Missing);
        };
        let link = self
            .node
            .links()
            .nth(index)
            .ok_or(HamtError::PrefixInvalid { index })?;
        let mut prefix = String::with_capacity(4);
        let _ = write!(prefix, "{slot:0width$X}", width = self.prefix_len());
        let Some(rest) = link.name.strip_prefix(prefix.as_bytes()) else {
            return Err(HamtError::PrefixInvalid { index });
        };
        Ok(match rest {
            [] => Lookup::Child(link),
            rest if rest == name => Lookup::Entry(link),
            _ => Lookup::Missing,
        })
    }

    /// The number of the link of `slot`: the bits set below it.
    fn link_index(&self, slot: u32) -> Option<usize> {
        let mut index = 0;
        let mut first_slot = 0;
        for byte in self.bitfield.iter().rev() {
            if slot < first_slot + 8 {
                let bit = 1_u8 << (slot - first_slot);
                let below = (byte & (bit - 1)).count_ones();
                return (byte & bit != 0).then_some(index + below as usize);
            }
            index += byte.count_ones() as usize;
            first_slot += 8;
        }
        None
    }
}

/// `n` bits of `hash` behind the first `bits`.
fn slot(hash: u64, bits: u32, n: u32) -> Option<u32> {
    let shift = HASH_BITS.checked_sub(bits.checked_add(n)?)?;
    let mask = (1_u64 << n) - 1;
    u32::try_from((hash >> shift) & mask).ok()
}

/// The key of a name.
#[must_use]
pub fn hash_name(name: &[u8]) -> u64 {
    murmur3_x64_64(name)
}

/// Builds the shards of `entries`, whose names differ.
pub(crate) fn build(
    entries: &[Entry],
    profile: &Profile,
    sink: &mut impl FnMut(Cid, Vec<u8>),
) -> Result<Built, DirError> {
    let mut keyed: Vec<(u64, &Entry)> = entries
        .iter()
        .map(|entry| (hash_name(&entry.name), entry))
        .collect();
    keyed.sort_unstable_by_key(|(hash, _)| *hash);
    build_shard(&keyed, 0, profile, sink)
}

/// The shard of `entries`, sorted by hash, which agree in the first `level` bytes of it.
/// Recursion ends after the eight bytes of a hash, whatever the names.
fn build_shard(
    entries: &[(u64, &Entry)],
    level: u32,
    profile: &Profile,
    sink: &mut impl FnMut(Cid, Vec<u8>),
) -> Result<Built, DirError> {
    let slot_of = |(hash, _): &(u64, &Entry)| slot(*hash, 8 * level, 8);
    let mut bitfield = [0_u8; FANOUT / 8];
    let mut block = Vec::new();
    let mut below = 0_u64;
    for group in entries.chunk_by(|a, b| slot_of(a) == slot_of(b)) {
        let Some(first) = group.first() else { continue };
        let Some(slot) = slot_of(first) else {
            return Err(DirError::Collision(first.1.name.clone()));
        };
        if let Some(byte) = bitfield.iter_mut().rev().nth(slot as usize / 8) {
            *byte |= 1 << (slot % 8);
        }
        let mut name = format!("{slot:02X}").into_bytes();
        let (cid, tsize) = if let [(_, entry)] = group {
            name.extend_from_slice(&entry.name);
            (entry.cid, entry.tsize)
        } else {
            let child = build_shard(group, level + 1, profile, sink)?;
            (child.cid, child.dag_len)
        };
        put_link(&mut block, &cid.to_bytes(), &name, tsize);
        below = below.saturating_add(tsize);
    }
    let zeros = bitfield.iter().take_while(|byte| **byte == 0).count();
    let used = bitfield.get(zeros..).unwrap_or_default();
    put_data(&mut block, &shard(used, MURMUR3_X64_64, FANOUT as u64));
    emit(block, below, profile, sink)
}

/// The first half of murmur3-x64-128, seed 0.
fn murmur3_x64_64(data: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix_k1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix_k2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let (blocks, tail) = data.as_chunks::<16>();
    for block in blocks {
        let both = u128::from_le_bytes(*block);
        h1 ^= mix_k1(both as u64);
        h1 = h1
            .rotate_left(27)
            .wrapping_add(h2)
            .wrapping_mul(5)
            .wrapping_add(0x52dc_e729);
        h2 ^= mix_k2((both >> 64) as u64);
        h2 = h2
            .rotate_left(31)
            .wrapping_add(h1)
            .wrapping_mul(5)
            .wrapping_add(0x3849_5ab5);
    }
    let mut last = 0_u128;
    for (index, byte) in tail.iter().enumerate() {
        last |= u128::from(*byte) << (8 * index);
    }
    // Zero bytes mix to zero, so a short tail needs no case of its own.
    h2 ^= mix_k2((last >> 64) as u64);
    h1 ^= mix_k1(last as u64);
    h1 ^= data.len() as u64;
    h2 ^= data.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    fmix(h1).wrapping_add(fmix(h2))
}

fn fmix(mut k: u64) -> u64 {
    k = (k ^ (k >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    k = (k ^ (k >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

#[cfg(test)]
mod tests;
