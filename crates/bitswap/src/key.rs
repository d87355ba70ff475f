//! Multihashes and CIDs as short as what they name.
//!
//! In       a [`Multihash`], which has room for any digest and takes 144 bytes; a [`Cid`], which
//!          takes 168.
//! Out      keys of 40 and 56 bytes under SHA2-256, and what they were made of.
//! Not here how keys are hashed: each map has a seed of its own.

use std::hash::{Hash, Hasher};

use carrack_formats::cid::SHA2_256;
use carrack_formats::{Cid, Multihash};

/// A CID in 56 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CidKey {
    multihash: MultihashKey,
    codec: u64,
    is_v0: bool,
}

impl CidKey {
    pub(crate) fn of(cid: &Cid) -> Self {
        Self {
            multihash: MultihashKey::of(cid.hash()),
            codec: cid.codec(),
            is_v0: u64::from(cid.version()) == 0,
        }
    }

    pub(crate) fn cid(&self) -> Cid {
        let multihash = self.multihash.multihash();
        let v1 = || Cid::new_v1(self.codec, multihash);
        match self.is_v0 {
            true => Cid::new_v0(multihash).unwrap_or_else(|_| v1()), // It was one before.
            false => v1(),
        }
    }
}

/// A multihash in 40 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MultihashKey {
    Sha256([u8; 32]),
    Other { code: u64, digest: Box<[u8]> },
}

impl MultihashKey {
    pub(crate) fn of(multihash: &Multihash) -> Self {
        let (code, digest) = (multihash.code(), multihash.digest());
        match digest.try_into() {
            Ok(digest) if code == SHA2_256 => Self::Sha256(digest),
            _ => Self::Other {
                code,
                digest: digest.into(),
            },
        }
    }

    pub(crate) fn multihash(&self) -> Multihash {
        let (code, digest) = match self {
            Self::Sha256(digest) => (SHA2_256, &digest[..]),
            Self::Other { code, digest } => (*code, &digest[..]),
        };
        // It was one before: the digest fits.
        Multihash::wrap(code, digest).unwrap_or_default()
    }
}

impl Hash for MultihashKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Sha256(digest) => state.write(digest),
            Self::Other { code, digest } => {
                state.write_u64(*code);
                state.write(digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use carrack_formats::cid::{DAG_PB, RAW, SHA2_256};
    use carrack_formats::{Cid, Multihash};

    use super::{CidKey, MultihashKey};

    #[test]
    fn keys_are_short_and_give_back_what_they_were_made_of() {
        assert!(size_of::<MultihashKey>() <= 40 && size_of::<CidKey>() <= 56);
        let sha256 = Multihash::wrap(SHA2_256, &[7; 32]).unwrap();
        let cut = Multihash::wrap(SHA2_256, &[7; 20]).unwrap();
        let long = Multihash::wrap(0x13, &[7; 64]).unwrap();
        let v0 = Cid::new_v0(sha256).unwrap();
        let mut all = vec![v0];
        for multihash in [sha256, cut, long] {
            assert_eq!(MultihashKey::of(&multihash).multihash(), multihash);
            all.extend([RAW, DAG_PB].map(|codec| Cid::new_v1(codec, multihash)));
        }
        for (index, cid) in all.iter().enumerate() {
            assert_eq!(CidKey::of(cid).cid(), *cid);
            for (other_index, other) in all.iter().enumerate() {
                let same = CidKey::of(cid) == CidKey::of(other);
                assert_eq!(same, index == other_index, "{cid} {other}");
            }
        }
    }
}
