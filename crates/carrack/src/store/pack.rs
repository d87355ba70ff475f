//! Packs: CARv1 files that carrack writes for blocks that lie nowhere else.
//!
//! In       blocks in the order in which a reader will want them.
//! Out      the offset of each block's data; a length that is durable.
//! Limits   one writer a pack; about [`BUFFER_LEN`] in memory.
//! Not here the catalog row that makes a pack's first `size` bytes part of the store: bytes behind
//!          them are the tail of a write that was not committed, and nothing refers to them.
//!
//! Layout: `docs/formats/pack.md`. Spec: <https://ipld.io/specs/transport/car/carv1/>

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carrack_formats::car::write;
use carrack_formats::{Cid, cid};

use super::gate::WriteGate;
use super::index::id_of;
use crate::durable;
use crate::error::{Context, Error, ErrorKind, Result};

/// Bytes that are gathered before a write.
const BUFFER_LEN: usize = 256 * 1024;

/// Names a pack file. Never reused once a catalog has listed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u64);

/// File name of a pack.
#[must_use]
pub fn pack_name(id: PackId) -> String {
    format!("{:016x}.car", id.0)
}

/// The pack that a file's name is of, and whether it is its last name. Names that carrack does not
/// give are none.
pub(super) fn pack_id_of(name: &[u8]) -> Option<(PackId, bool)> {
    let (last, is_last) = match name.strip_suffix(durable::TEMPORARY) {
        Some(last) => (last, false),
        None => (name, true),
    };
    let last = std::str::from_utf8(last).ok()?;
    let id = id_of(last.strip_suffix(".car")?)?;
    Some((PackId(id), is_last))
}

/// The header of every pack has one root, `bafkqaaa` (the empty identity block), which says that
/// the blocks have no root of their own.
pub(super) fn header() -> Vec<u8> {
    write::header(&[cid::empty_identity()])
}

/// Appends blocks to a new pack, which has a temporary name until a commit lists it. Dropping it
/// before leaves a file that the next opening of the store removes.
#[derive(Debug)]
pub struct PackWriter {
    /// While no commit has listed it.
    path: PathBuf,
    name: String,
    file: File,
    gate: Arc<WriteGate>,
    buffer: Vec<u8>,
    /// Bytes of the pack, buffered ones included.
    len: u64,
    header_len: u64,
    /// The directory entry is durable.
    is_named: bool,
}

impl PackWriter {
    /// Creates pack `id` in `dir`. There must be none yet.
    ///
    /// # Errors
    /// `Unavailable` if the file cannot be created.
    pub fn create(dir: &Path, id: PackId, gate: Arc<WriteGate>) -> Result<Self> {
        gate.check()?;
        let name = pack_name(id);
        let path = durable::temporary(&dir.join(&name));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(durable::MODE_PRIVATE)
            .open(&path)
            .context(ErrorKind::Unavailable, || {
                format!("creating {}", path.display())
            })?;
        let buffer = header();
        Ok(Self {
            path,
            name,
            file,
            gate,
            len: buffer.len() as u64,
            header_len: buffer.len() as u64,
            buffer,
            is_named: false,
        })
    }

    /// File name in the store's pack directory: the path of its container row.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes the file, which no commit has listed.
    pub fn discard(self) {
        // One that stays is removed by the next opening of the store.
        let _ = std::fs::remove_file(&self.path);
    }

    /// Bytes so far, durable or not.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Only the header so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == self.header_len
    }

    /// Appends a block and returns the offset of its data. The bytes are durable after
    /// [`Self::sync`].
    ///
    /// # Errors
    /// `Unavailable` if the disk does not take it; the pack must not be used any more then.
    pub fn append(&mut self, cid: &Cid, data: &[u8]) -> Result<u64> {
        let start = self.buffer.len();
        write::frame_head(&mut self.buffer, cid, data.len());
        let offset = self.len + (self.buffer.len() - start) as u64;
        self.buffer.extend_from_slice(data);
        self.len = offset + data.len() as u64;
        if self.buffer.len() >= BUFFER_LEN {
            self.flush()?;
        }
        Ok(offset)
    }

    /// Makes everything so far durable and returns the length: the `size` of the container row.
    ///
    /// # Errors
    /// `Unavailable`; after a failed fsync the whole store is read-only.
    pub fn sync(&mut self) -> Result<u64> {
        self.flush()?;
        self.gate.sync_file(&self.file, &self.path)?;
        if !self.is_named {
            let dir = self
                .path
                .parent()
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a pack lies in no directory"))?;
            self.gate.sync_dir(dir)?;
            self.is_named = true;
        }
        Ok(self.len)
    }

    /// Hands buffered bytes to the kernel, so that readers of the file see them.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn flush(&mut self) -> Result<()> {
        self.file
            .write_all(&self.buffer)
            .context(ErrorKind::Unavailable, || {
                format!("writing {}", self.path.display())
            })?;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{PackId, PackWriter, header};
    use crate::store::gate::WriteGate;
    use carrack_formats::{Cid, Multihash};
    use std::sync::Arc;

    #[test]
    fn offsets_point_at_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Arc::new(WriteGate::default());
        let mut pack = PackWriter::create(dir.path(), PackId(7), Arc::clone(&gate)).unwrap();
        assert!(pack.is_empty());
        let cid = Cid::new_v1(0x55, Multihash::wrap(0x12, &[3; 32]).unwrap());
        let blocks = [
            b"alpha".to_vec(),
            vec![7; 300_000],
            Vec::new(),
            b"omega".to_vec(),
        ];
        let offsets: Vec<u64> = blocks
            .iter()
            .map(|block| pack.append(&cid, block).unwrap())
            .collect();
        let len = pack.sync().unwrap();
        assert_eq!(pack.sync().unwrap(), len);
        let bytes = std::fs::read(dir.path().join("0000000000000007.car.tmp")).unwrap();
        assert_eq!(bytes.len() as u64, len);
        assert!(bytes.starts_with(&header()));
        for (block, offset) in blocks.iter().zip(offsets) {
            let offset = offset as usize;
            assert_eq!(&bytes[offset..offset + block.len()], block);
            assert_eq!(&bytes[offset - 32..offset], &[3; 32]);
        }
        assert!(
            PackWriter::create(dir.path(), PackId(7), gate).is_err(),
            "never overwritten"
        );
    }

    #[test]
    fn a_closed_gate_stops_packs() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Arc::new(WriteGate::default());
        let mut pack = PackWriter::create(dir.path(), PackId(1), Arc::clone(&gate)).unwrap();
        gate.close("fsync of x failed");
        assert!(pack.sync().is_err());
        assert!(PackWriter::create(dir.path(), PackId(2), gate).is_err());
    }

    #[test]
    fn a_pack_has_the_bytes_of_version_1() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Arc::new(WriteGate::default());
        let mut pack = PackWriter::create(dir.path(), PackId(1), gate).unwrap();
        let digest = [0x5a; 32];
        for (codec, data) in [(0x55, b"hello".as_slice()), (0x70, &[0; 200])] {
            let cid = Cid::new_v1(codec, Multihash::wrap(0x12, &digest).unwrap());
            pack.append(&cid, data).unwrap();
        }
        pack.sync().unwrap();
        let path = crate::durable::temporary(&dir.path().join(pack.name()));
        let bytes = std::fs::read(path).unwrap();
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        assert_eq!(bytes, std::fs::read(fixtures.join("pack-v1.car")).unwrap());
    }
}
