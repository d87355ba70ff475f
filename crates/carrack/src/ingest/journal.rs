//! The journal of one big file: digests of its first leaves, so that an interrupted add goes on.
//!
//! In       a file's path, validator and profile; leaf digests in order, as they become known.
//! Out      the digests of an earlier, interrupted add of the very same version of the file.
//! Limits   a journal is at most 32 bytes a leaf and 20 bytes a record; leaves of a hole are one
//!          record, however many there are. One record is in memory. A damaged or cut record ends
//!          what is believed.
//! Not here small files: they are remembered by the catalog (`ingest::sink` commits them often).
//!
//! Format: `docs/formats/journal.md`. The digests are claims, as an index entry is: what they name
//! is verified each time it is served.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::ingest::hash::{Digest, Leaves};
use crate::store::catalog::{Validator, validator_bytes};

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod sweep;

pub use self::sweep::sweep;

/// First bytes of a journal: name and version.
pub const MAGIC: &[u8; 8] = b"CRKJRN01";
/// Files shorter than this are hashed again rather than journalled, in bytes.
pub const FILE_LEN_MIN: u64 = 256 << 20;
/// Leaves collected before they are written as one record.
const RECORD_LEAVES: usize = 128;
/// Most leaves a record may claim, whatever wrote it.
const RECORD_LEAVES_MAX: u32 = 1 << 16;
/// Top bit of a record's number of leaves: it holds one digest, which is that of each of them.
const REPEATED: u32 = 1 << 31;
const CHECKSUM_LEN: usize = 8;
/// What journals' names end in, and the hexadecimal digits before it.
const EXTENSION: &str = ".journal";
const NAME_DIGITS: usize = 32;

/// A journal being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    next_leaf: u64,
    pending: Vec<Digest>,
}

/// Names what a journal is about: a version of a file, cut in one way.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The file's path.
    pub path: &'a [u8],
    /// Its version.
    pub validator: &'a Validator,
    /// How it is cut and framed.
    pub profile: u32,
}

impl Journal {
    /// Opens the journal of `subject` in `dir`; calls `known` with the leaves that it holds, in
    /// order. A journal of another version is written over.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(
        dir: &Path,
        subject: Subject<'_>,
        known: &mut dyn FnMut(Leaves),
    ) -> io::Result<Self> {
        let path = dir.join(file_name(subject.profile, subject.path));
        let header = header(subject);
        let (mut next_leaf, mut valid_len) = (0, 0);
        // What is not there, or cannot be read, holds nothing.
        let _ = read(&path, &header, &mut valid_len, &mut |leaves| {
            next_leaf += leaves.n();
            known(leaves);
        });
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(durable::MODE_PRIVATE)
            .open(&path)?;
        file.set_len(valid_len)?;
        let mut file = BufWriter::new(file);
        io::Seek::seek(&mut file, io::SeekFrom::Start(valid_len))?;
        if valid_len == 0 {
            file.write_all(&header)?;
        }
        Ok(Self {
            path,
            file,
            next_leaf,
            pending: Vec::new(),
        })
    }

    /// Adds the next leaf's digest. It is on its way to the disk once its record is full.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn push(&mut self, digest: Digest) -> io::Result<()> {
        self.pending.push(digest);
        if self.pending.len() >= RECORD_LEAVES {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Adds the next `n` leaves, which all have this digest.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn push_repeated(&mut self, digest: Digest, n: u64) -> io::Result<()> {
        self.flush()?;
        let mut left = n;
        while left > 0 {
            let n = u32::try_from(left).unwrap_or(u32::MAX).min(REPEATED - 1);
            self.record(n | REPEATED, &[digest])?;
            self.next_leaf += u64::from(n);
            left -= u64::from(n);
        }
        Ok(())
    }

    /// Writes the leaves pushed so far as a record.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let digests = std::mem::take(&mut self.pending);
        let n = u32::try_from(digests.len()).unwrap_or(RECORD_LEAVES_MAX);
        self.record(n, &digests)?;
        self.next_leaf += u64::from(n);
        Ok(())
    }

    fn record(&mut self, n: u32, digests: &[Digest]) -> io::Result<()> {
        let mut record = Vec::with_capacity(12 + digests.len() * 32 + CHECKSUM_LEN);
        record.extend_from_slice(&self.next_leaf.to_le_bytes());
        record.extend_from_slice(&n.to_le_bytes());
        record.extend_from_slice(digests.as_flattened());
        record.extend_from_slice(&checksum(&record));
        self.file.write_all(&record)?;
        self.file.flush()
    }

    /// Removes the journal: the catalog knows the file now, or the file changed.
    pub fn remove(self) {
        let path = self.path.clone();
        drop(self);
        // One left behind is swept by a later add.
        let _ = std::fs::remove_file(path);
    }
}

fn file_name(profile: u32, path: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&profile.to_le_bytes()).update(path);
    let hash = hasher.finalize().to_hex();
    let digits = hash.as_str().get(..NAME_DIGITS).unwrap_or_default();
    format!("{digits}{EXTENSION}")
}

fn header(subject: Subject<'_>) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&validator_bytes(subject.validator));
    header.extend_from_slice(&subject.profile.to_le_bytes());
    let path_len = u32::try_from(subject.path.len()).unwrap_or(u32::MAX);
    header.extend_from_slice(&path_len.to_le_bytes());
    header.extend_from_slice(subject.path);
    header.extend_from_slice(&checksum(&header));
    header
}

/// Calls `known` with the leaves of the journal at `path` if it starts with `header`;
/// `valid_len` is how many bytes are sound.
fn read(
    path: &Path,
    header: &[u8],
    valid_len: &mut u64,
    known: &mut dyn FnMut(Leaves),
) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let mut found = vec![0; header.len()];
    file.read_exact(&mut found)?;
    if found != header {
        return Ok(());
    }
    *valid_len = header.len() as u64;
    let mut n_leaves = 0;
    while let Ok(leaves) = read_record(&mut file, n_leaves) {
        let n_digests = leaves.digests().len();
        *valid_len += (12 + n_digests * 32 + CHECKSUM_LEN) as u64;
        n_leaves += leaves.n();
        known(leaves);
    }
    Ok(())
}

fn read_record(file: &mut impl Read, first_expected: u64) -> io::Result<Leaves> {
    let mut head = [0; 12];
    file.read_exact(&mut head)?;
    let (first, n) = head.split_at(8);
    let first = first.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
    let n = n.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
    let repeats = (n & REPEATED != 0).then_some(n & !REPEATED);
    let n_digests = repeats.map_or(n, |_| 1);
    if first != first_expected || repeats == Some(0) || n_digests == 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if n_digests > RECORD_LEAVES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; n_digests as usize * 32];
    file.read_exact(&mut body)?;
    let mut sum = [0; CHECKSUM_LEN];
    file.read_exact(&mut sum)?;
    if checksum(&[head.as_slice(), &body].concat()) != sum {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let digests = body.as_chunks::<32>().0;
    Ok(match (repeats, digests) {
        (Some(n), [digest]) => Leaves::Repeated(*digest, u64::from(n)),
        _ => Leaves::Each(digests.to_vec()),
    })
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = blake3::hash(bytes);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::{Journal, Subject};
    use crate::ingest::hash::{Digest, Leaves};
    use crate::store::catalog::{FileStamp, FileTime, Validator};

    fn validator(size: u64) -> Validator {
        let (mtime, ctime) = (
            FileTime { secs: 3, nanos: 4 },
            FileTime { secs: -5, nanos: 6 },
        );
        Validator::File(FileStamp {
            dev: 1,
            ino: 2,
            size,
            mtime,
            ctime,
        })
    }

    /// The journal, and the digest of each leaf that it knows.
    fn open(dir: &Path, subject: Subject<'_>) -> io::Result<(Journal, Vec<Digest>)> {
        let mut known = Vec::new();
        let journal = Journal::open(dir, subject, &mut |leaves| match leaves {
            Leaves::Each(digests) => known.extend(digests),
            Leaves::Repeated(digest, n) => known.extend((0..n).map(|_| digest)),
        })?;
        Ok((journal, known))
    }

    fn digest(n: u64) -> Digest {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    /// A crash may cut the file anywhere: what is left is a prefix of what was pushed, and the
    /// journal goes on from there.
    #[test]
    fn every_cut_leaves_a_prefix_of_whole_records() {
        let dir = tempfile::tempdir().unwrap();
        let version = validator(1 << 40);
        let subject = Subject {
            path: b"/data/big",
            validator: &version,
            profile: 7,
        };
        let (mut journal, known) = open(dir.path(), subject).unwrap();
        assert!(known.is_empty());
        for n in 0..300 {
            journal.push(digest(n)).unwrap();
        }
        journal.flush().unwrap();
        let path = journal.path.clone();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..=whole.len()).step_by(97).chain([whole.len()]) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (_, known) = open(dir.path(), subject).unwrap();
            assert!(
                [0, 128, 256, 300].contains(&known.len()),
                "cut at {cut}: {}",
                known.len()
            );
            assert!(
                known
                    .iter()
                    .enumerate()
                    .all(|(n, got)| *got == digest(n as u64))
            );
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(open(dir.path(), subject).unwrap().1.len(), 300);
    }

    #[test]
    fn a_flipped_bit_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let version = validator(1 << 40);
        let subject = Subject {
            path: b"/x",
            validator: &version,
            profile: 7,
        };
        let (mut journal, _) = open(dir.path(), subject).unwrap();
        (0..3).for_each(|n| journal.push(digest(n)).unwrap());
        journal.flush().unwrap();
        let path = journal.path.clone();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            assert!(open(dir.path(), subject).unwrap().1.is_empty(), "bit {bit}");
        }
    }

    /// A journal that version 1 wrote is read by every later one. `docs/formats/journal.md`
    #[test]
    fn the_fixture_of_version_1_is_written_and_read() {
        let fixture = include_bytes!("../../tests/fixtures/journal-v1.journal");
        let dir = tempfile::tempdir().unwrap();
        let version = validator(300 << 20);
        let subject = Subject {
            path: b"/data/big",
            validator: &version,
            profile: 7,
        };
        let (mut journal, _) = open(dir.path(), subject).unwrap();
        (0..5).for_each(|n| journal.push(digest(n)).unwrap());
        journal.flush().unwrap();
        let path = journal.path.clone();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), fixture);
        let (_, known) = open(dir.path(), subject).unwrap();
        assert_eq!(known, (0..5).map(digest).collect::<Vec<_>>());
    }

    #[test]
    fn another_version_of_the_file_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (validator(1 << 40), validator((1 << 40) + 1));
        let subject = Subject {
            path: b"/x",
            validator: &old,
            profile: 7,
        };
        let (mut journal, _) = open(dir.path(), subject).unwrap();
        journal.push(digest(0)).unwrap();
        journal.flush().unwrap();
        drop(journal);
        let subject = Subject {
            validator: &new,
            ..subject
        };
        assert!(open(dir.path(), subject).unwrap().1.is_empty());
    }

    #[test]
    fn leaves_that_repeat_are_one_record() {
        let dir = tempfile::tempdir().unwrap();
        let version = validator(1 << 40);
        let subject = Subject {
            path: b"/x",
            validator: &version,
            profile: 7,
        };
        let (mut journal, _) = open(dir.path(), subject).unwrap();
        journal.push(digest(1)).unwrap();
        journal.push_repeated(digest(2), 5).unwrap();
        journal.push(digest(3)).unwrap();
        journal.push_repeated(digest(2), (1 << 32) + 3).unwrap();
        let path = journal.path.clone();
        drop(journal);
        let len = std::fs::metadata(&path).unwrap().len();
        assert_eq!(len, 74 + 6 * 52);
        let mut runs = Vec::new();
        let journal = Journal::open(dir.path(), subject, &mut |leaves| runs.push(leaves.n()));
        assert_eq!(runs, [1, 5, 1, (1 << 31) - 1, (1 << 31) - 1, 5]);
        assert_eq!(journal.unwrap().next_leaf, (1 << 32) + 10);
    }
}
