//! The journal of one big file: digests of its first leaves, so that an interrupted add goes on.
//!
//! In       a file's path, validator and profile; leaf digests in order, as they become known.
//! Out      the digests of an earlier, interrupted add of the very same version of the file.
//! Limits   a journal is at most 32 bytes a leaf and 20 bytes a record; a damaged or cut record
//!          ends what is believed.
//! Not here small files: they are remembered by the catalog (`ingest::sink` commits them often).
//!
//! Format: `docs/formats/journal.md`. The digests are claims, as an index entry is: what they name
//! is verified each time it is served.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::ingest::hash::Digest;
use crate::store::catalog::{Validator, validator_bytes};

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;

/// First bytes of a journal: name and version.
pub const MAGIC: &[u8; 8] = b"CRKJRN01";
/// Files shorter than this are hashed again rather than journalled, in bytes.
pub const FILE_LEN_MIN: u64 = 256 << 20;
/// Leaves collected before they are written as one record.
const RECORD_LEAVES: usize = 128;
/// Most leaves a record may claim, whatever wrote it.
const RECORD_LEAVES_MAX: u32 = 1 << 16;
const CHECKSUM_LEN: usize = 8;

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
    /// Opens the journal of `subject` in `dir`; gives the leaf digests it already holds.
    /// A journal of another version is written over.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path, subject: Subject<'_>) -> io::Result<(Self, Vec<Digest>)> {
        let path = journal_path(dir, subject);
        let header = header(subject);
        let (known, valid_len) = read(&path, &header).unwrap_or_default();
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.set_len(valid_len)?;
        let mut file = BufWriter::new(file);
        io::Seek::seek(&mut file, io::SeekFrom::Start(valid_len))?;
        if valid_len == 0 {
            file.write_all(&header)?;
        }
        Ok((
            Self {
                path,
                file,
                next_leaf: known.len() as u64,
                pending: Vec::new(),
            },
            known,
        ))
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

    /// Writes the leaves pushed so far as a record.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let n = u32::try_from(self.pending.len()).unwrap_or(RECORD_LEAVES_MAX);
        let mut record = Vec::with_capacity(12 + self.pending.len() * 32 + CHECKSUM_LEN);
        record.extend_from_slice(&self.next_leaf.to_le_bytes());
        record.extend_from_slice(&n.to_le_bytes());
        self.pending
            .iter()
            .for_each(|digest| record.extend_from_slice(digest));
        record.extend_from_slice(&checksum(&record));
        self.file.write_all(&record)?;
        self.file.flush()?;
        self.next_leaf += u64::from(n);
        self.pending.clear();
        Ok(())
    }

    /// Removes the journal: the catalog knows the file now, or the file changed.
    pub fn remove(self) {
        let path = self.path.clone();
        drop(self);
        // One left behind costs some bytes and is written over by the next add of that file.
        let _ = std::fs::remove_file(path);
    }
}

fn journal_path(dir: &Path, subject: Subject<'_>) -> PathBuf {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&subject.profile.to_le_bytes())
        .update(subject.path);
    let name: String = hasher.finalize().to_hex().chars().take(32).collect();
    dir.join(format!("{name}.journal"))
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

/// The digests of the journal at `path` if it starts with `header`, and how many bytes are sound.
fn read(path: &Path, header: &[u8]) -> io::Result<(Vec<Digest>, u64)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut found = vec![0; header.len()];
    file.read_exact(&mut found)?;
    if found != header {
        return Ok((Vec::new(), 0));
    }
    let mut digests: Vec<Digest> = Vec::new();
    let mut valid_len = header.len() as u64;
    while let Ok(record) = read_record(&mut file, digests.len() as u64) {
        valid_len += (12 + record.len() * 32 + CHECKSUM_LEN) as u64;
        digests.extend(record);
    }
    Ok((digests, valid_len))
}

fn read_record(file: &mut impl Read, first_expected: u64) -> io::Result<Vec<Digest>> {
    let mut head = [0; 12];
    file.read_exact(&mut head)?;
    let (first, n) = head.split_at(8);
    let first = first.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
    let n = n.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
    if first != first_expected || n == 0 || n > RECORD_LEAVES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; n as usize * 32];
    file.read_exact(&mut body)?;
    let mut sum = [0; CHECKSUM_LEN];
    file.read_exact(&mut sum)?;
    if checksum(&[head.as_slice(), &body].concat()) != sum {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(body.as_chunks::<32>().0.to_vec())
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = blake3::hash(bytes);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Journal, Subject};
    use crate::ingest::hash::Digest;
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
        let (mut journal, known) = Journal::open(dir.path(), subject).unwrap();
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
            let (_, known) = Journal::open(dir.path(), subject).unwrap();
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
        assert_eq!(Journal::open(dir.path(), subject).unwrap().1.len(), 300);
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
        let (mut journal, _) = Journal::open(dir.path(), subject).unwrap();
        (0..3).for_each(|n| journal.push(digest(n)).unwrap());
        journal.flush().unwrap();
        let path = journal.path.clone();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            assert!(
                Journal::open(dir.path(), subject).unwrap().1.is_empty(),
                "bit {bit}"
            );
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
        let (mut journal, _) = Journal::open(dir.path(), subject).unwrap();
        (0..5).for_each(|n| journal.push(digest(n)).unwrap());
        journal.flush().unwrap();
        let path = journal.path.clone();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), fixture);
        let (_, known) = Journal::open(dir.path(), subject).unwrap();
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
        let (mut journal, _) = Journal::open(dir.path(), subject).unwrap();
        journal.push(digest(0)).unwrap();
        journal.flush().unwrap();
        drop(journal);
        let subject = Subject {
            validator: &new,
            ..subject
        };
        assert!(Journal::open(dir.path(), subject).unwrap().1.is_empty());
    }
}
