//! The rows of the catalog and their bytes. The byte tables are in `docs/formats/catalog.md`.
//!
//! In       what ingest and the read path know about containers, paths and roots.
//! Out      keys that sort the way scans need them, and versioned values.
//! Limits   paths are bytes without NUL, as the kernel has them.
//! Not here transactions (`catalog`), member lists (`members`).

use std::ops::Range;

use carrack_formats::{Cid, cid};

use super::codec::{Reader, VALUE_VERSION, Writer, damaged};
use crate::error::Result;
use crate::source::validator::{FileStamp, FileTime, ObjectStamp, Validator};
use crate::store::index::{SegmentId, SegmentMeta};
use crate::store::location::ContainerId;

/// First byte of a stale mark with ranges.
const STALE_RANGES_VERSION: u8 = 2;

/// The source of everything that lies in this machine's file systems.
pub const SOURCE_LOCAL: u32 = 1;
/// The source of packs: the store itself.
pub const SOURCE_STORE: u32 = 0;
/// The first id of configured sources.
pub const SOURCE_FIRST: u32 = 2;

/// Names a root. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(pub u64);

/// What a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerKind {
    /// A file whose ranges are leaves.
    File,
    /// A CAR file that stays where it is.
    Car,
    /// A CAR that carrack wrote.
    Pack,
}

/// One row of `containers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRecord {
    /// What it is.
    pub kind: ContainerKind,
    /// [`SOURCE_LOCAL`], [`SOURCE_STORE`] for packs, or a configured source.
    pub source: u32,
    /// Absolute path, or the path below a configured source; for a pack its file name in the
    /// store's `packs` directory.
    pub path: Vec<u8>,
    /// Bytes that are committed. A pack may be longer: its tail is no part of it.
    pub size: u64,
    /// The version that was indexed. All zero for packs, which do not change.
    pub validator: Validator,
}

/// Key of `paths` and `dirs`. Rows of one tree are neighbours, in the order of a walk that takes
/// the entries of each directory by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathKey {
    /// The source of the path.
    pub source: u32,
    /// Fingerprint of the import profile: the same file has other CIDs under another profile.
    pub profile: u32,
    /// The path, `/` between names.
    pub path: Vec<u8>,
}

/// One row of `paths`: what the last add found at a file or symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRecord {
    /// The container of its leaves; `None` for symlinks and others without any.
    pub container: Option<ContainerId>,
    /// The pack that holds its interior nodes; `None` if it has none.
    pub pack: Option<ContainerId>,
    /// The version that was read.
    pub validator: Validator,
    /// Its CID.
    pub cid: Cid,
    /// Bytes of content.
    pub file_len: u64,
    /// Bytes of all blocks, as links count them (`Tsize`).
    pub dag_len: u64,
    /// Blocks of its DAG.
    pub n_blocks: u64,
}

/// One row of `dirs`: what the last add built for a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirRecord {
    /// Hash over its entries (names, CIDs, lengths): the same entries give the same directory.
    pub fingerprint: [u8; 32],
    /// The pack that holds its blocks.
    pub pack: Option<ContainerId>,
    /// Its CID.
    pub cid: Cid,
    /// Bytes of content below it.
    pub file_len: u64,
    /// Bytes of all blocks below it and its own, as links count them (`Tsize`).
    pub dag_len: u64,
    /// Blocks of the directory itself: one, or its shards.
    pub n_blocks: u64,
    /// Entries.
    pub n_entries: u64,
}

/// How a root came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RootKind {
    /// Built from files.
    Add,
    /// Named by a CAR.
    Import,
}

/// One row of `roots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRecord {
    /// Its name in the catalog.
    pub id: RootId,
    /// What it promises to serve.
    pub cid: Cid,
    /// Absolute path, or URL, of the file, folder or CAR that it came from.
    pub path: Vec<u8>,
    /// What a person calls it.
    pub name: Vec<u8>,
    /// Fingerprint of the import profile; 0 for imports.
    pub profile: u32,
    /// How it came here.
    pub kind: RootKind,
    /// When, in seconds since 1970.
    pub created_unix: u64,
    /// Bytes of content (add) or of blocks (import).
    pub bytes: u64,
    /// Blocks.
    pub n_blocks: u64,
    /// Files; 0 for imports.
    pub n_files: u64,
    /// The source that it was made from.
    pub source: u32,
    /// Of an import: every block below it was found in its own containers.
    pub is_whole: bool,
}

/// One row of `sources`: a configured place. Holds no secrets, only where they are to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRecord {
    /// What a person calls it.
    pub name: String,
    /// `s3://`, `gs://`, `az://`, `http://` or `https://`, or the absolute path of a folder. All
    /// containers of the source lie below it. Without credentials.
    pub url: String,
    /// The server that answers for a bucket; empty for the provider's own.
    pub endpoint: String,
    /// The region of a bucket; empty for the provider's default.
    pub region: String,
    /// Where the credentials are: `env`, `profile:NAME`, `file:PATH`, `web-identity`, `none`.
    pub credentials: String,
    /// When it was configured, in seconds since 1970.
    pub created_unix: u64,
    /// Of a web server: origins that its requests may be sent on to, besides its own.
    pub redirects: Vec<String>,
    /// Of a web server: its names may lead to private addresses.
    pub private: bool,
}

/// Why a container is out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StaleReason {
    /// The file is another version than the one that was indexed.
    Changed,
    /// There is no such file.
    Missing,
    /// The file is there and cannot be read.
    Unreadable,
    /// It ends before the bytes that the index names.
    Short,
    /// Its length is right, and bytes in some ranges do not hash to their CIDs.
    Mismatch,
    /// Its length is right, and the bytes in so many places do not that it was rewritten.
    Widespread,
}

/// One row of `stale`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleMark {
    /// What was wrong.
    pub reason: StaleReason,
    /// The version that was found; `None` if there was none to look at.
    pub observed: Option<Validator>,
    /// When it was first noticed, in seconds since 1970.
    pub since_unix: u64,
    /// First byte of the read that noticed it.
    pub offset: u64,
    /// Bytes of that read.
    pub len: u32,
    /// The ranges that were found wrong, in order, with room between them. Without any the whole
    /// container is out of service.
    pub ranges: Vec<Range<u64>>,
}

impl PathKey {
    /// Bytes that sort rows in walk order: numbers first, `/` below every other byte.
    #[must_use]
    #[expect(clippy::big_endian_bytes, reason = "keys sort as bytes")]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(8 + self.path.len());
        key.extend_from_slice(&self.source.to_be_bytes());
        key.extend_from_slice(&self.profile.to_be_bytes());
        key.extend(
            self.path
                .iter()
                .map(|&byte| if byte == b'/' { 0 } else { byte }),
        );
        key
    }

    #[expect(clippy::big_endian_bytes, reason = "keys sort as bytes")]
    pub(super) fn from_bytes(key: &[u8]) -> Result<Self> {
        let (source, rest) = key.split_first_chunk().ok_or_else(damaged)?;
        let (profile, path) = rest.split_first_chunk().ok_or_else(damaged)?;
        Ok(Self {
            source: u32::from_be_bytes(*source),
            profile: u32::from_be_bytes(*profile),
            path: path
                .iter()
                .map(|&byte| if byte == 0 { b'/' } else { byte })
                .collect(),
        })
    }

    /// The half-open range of keys of this path and everything below it.
    #[expect(clippy::big_endian_bytes, reason = "keys sort as bytes")]
    pub(super) fn tree_range(&self) -> (Vec<u8>, Vec<u8>) {
        let mut start = self.to_bytes();
        while start.len() > 8 && start.last() == Some(&0) {
            start.pop();
        }
        let mut end = start.clone();
        if start.len() == 8 {
            // The whole source under this profile: up to the next (source, profile).
            let both = u64::from(self.source) << 32 | u64::from(self.profile);
            end = both
                .checked_add(1)
                .map_or(vec![0xff; 9], |next| next.to_be_bytes().to_vec());
        } else {
            end.push(1); // Behind the separator, 0, and at most equal to any other next byte.
        }
        (start, end)
    }
}

/// The half-open range of all keys of `paths` or `dirs` that belong to a source.
#[expect(clippy::big_endian_bytes, reason = "keys sort as bytes")]
pub(super) fn source_range(source: u32) -> (Vec<u8>, Vec<u8>) {
    let end = source.checked_add(1);
    let end = end.map_or(vec![0xff; 9], |next| next.to_be_bytes().to_vec());
    (source.to_be_bytes().to_vec(), end)
}

/// In place of a device number: the stamp of an object follows. No device has this number.
const OBJECT_TAG: u64 = u64::MAX;

/// The bytes of a validator as all tables have them.
#[must_use]
pub fn validator_bytes(validator: &Validator) -> Vec<u8> {
    let mut out = Writer::default();
    encode_validator(validator, &mut out);
    out.bytes
}

fn encode_validator(validator: &Validator, out: &mut Writer) {
    let stamp = match validator {
        Validator::File(stamp) => stamp,
        Validator::Object(stamp) => return encode_object(stamp, out),
    };
    out.u64(stamp.dev);
    out.u64(stamp.ino);
    out.u64(stamp.size);
    for time in [stamp.mtime, stamp.ctime] {
        out.i64(time.secs);
        out.u32(time.nanos);
    }
}

fn encode_object(stamp: &ObjectStamp, out: &mut Writer) {
    out.u64(OBJECT_TAG);
    out.u64(stamp.size);
    out.u8(u8::from(stamp.modified.is_some()));
    if let Some(time) = stamp.modified {
        out.i64(time.secs);
        out.u32(time.nanos);
    }
    for text in [&stamp.etag, &stamp.version] {
        out.bytes(text.as_deref().unwrap_or_default().as_bytes());
    }
}

fn decode_validator(from: &mut Reader<'_>) -> Result<Validator> {
    let dev = from.u64()?;
    if dev == OBJECT_TAG {
        return decode_object(from).map(Validator::from);
    }
    Ok(Validator::File(FileStamp {
        dev,
        ino: from.u64()?,
        size: from.u64()?,
        mtime: decode_time(from)?,
        ctime: decode_time(from)?,
    }))
}

fn decode_object(from: &mut Reader<'_>) -> Result<ObjectStamp> {
    let size = from.u64()?;
    let modified = match from.u8()? {
        0 => None,
        1 => Some(decode_time(from)?),
        _ => return Err(damaged()),
    };
    let mut text = || -> Result<Option<Box<str>>> {
        let text = std::str::from_utf8(from.bytes()?).map_err(|_| damaged())?;
        Ok((!text.is_empty()).then(|| text.into()))
    };
    Ok(ObjectStamp {
        size,
        modified,
        etag: text()?,
        version: text()?,
    })
}

fn decode_time(from: &mut Reader<'_>) -> Result<FileTime> {
    Ok(FileTime {
        secs: from.i64()?,
        nanos: from.u32()?,
    })
}

/// Container ids as values: 0 is none, so ids start at 1.
fn encode_container(out: &mut Writer, container: Option<ContainerId>) {
    out.u64(container.map_or(0, |container| container.0));
}

fn decode_container(from: &mut Reader<'_>) -> Result<Option<ContainerId>> {
    Ok(match from.u64()? {
        0 => None,
        id => Some(ContainerId(id)),
    })
}

fn decode_cid(from: &mut Reader<'_>) -> Result<Cid> {
    cid::parse_bytes(from.bytes()?).map_err(|_| damaged())
}

impl ContainerRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::versioned(80 + self.path.len());
        out.u8(match self.kind {
            ContainerKind::File => 0,
            ContainerKind::Car => 1,
            ContainerKind::Pack => 2,
        });
        out.u32(self.source);
        out.u64(self.size);
        encode_validator(&self.validator, &mut out);
        out.bytes(&self.path);
        out.bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::versioned(bytes)?;
        let kind = match from.u8()? {
            0 => ContainerKind::File,
            1 => ContainerKind::Car,
            2 => ContainerKind::Pack,
            _ => return Err(damaged()),
        };
        let source = from.u32()?;
        let size = from.u64()?;
        let validator = decode_validator(&mut from)?;
        let path = from.bytes()?.to_vec();
        from.end()?;
        Ok(Self {
            kind,
            source,
            path,
            size,
            validator,
        })
    }
}

/// The containers that a `paths` or `dirs` row depends on: both begin with the same two fields.
pub(super) fn row_containers(bytes: &[u8]) -> Result<[Option<ContainerId>; 2]> {
    let mut from = Reader::versioned(bytes)?;
    Ok([decode_container(&mut from)?, decode_container(&mut from)?])
}

impl PathRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let cid = self.cid.to_bytes();
        let mut out = Writer::versioned(100 + cid.len());
        encode_container(&mut out, self.container);
        encode_container(&mut out, self.pack);
        encode_validator(&self.validator, &mut out);
        out.u64(self.file_len);
        out.u64(self.dag_len);
        out.u64(self.n_blocks);
        out.bytes(&cid);
        out.bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::versioned(bytes)?;
        let record = Self {
            container: decode_container(&mut from)?,
            pack: decode_container(&mut from)?,
            validator: decode_validator(&mut from)?,
            file_len: from.u64()?,
            dag_len: from.u64()?,
            n_blocks: from.u64()?,
            cid: decode_cid(&mut from)?,
        };
        from.end()?;
        Ok(record)
    }
}

impl DirRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let cid = self.cid.to_bytes();
        let mut out = Writer::versioned(100 + cid.len());
        encode_container(&mut out, None);
        encode_container(&mut out, self.pack);
        out.bytes.extend_from_slice(&self.fingerprint);
        out.u64(self.file_len);
        out.u64(self.dag_len);
        out.u64(self.n_blocks);
        out.u64(self.n_entries);
        out.bytes(&cid);
        out.bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::versioned(bytes)?;
        let _no_container = decode_container(&mut from)?;
        let record = Self {
            pack: decode_container(&mut from)?,
            fingerprint: from.array()?,
            file_len: from.u64()?,
            dag_len: from.u64()?,
            n_blocks: from.u64()?,
            n_entries: from.u64()?,
            cid: decode_cid(&mut from)?,
        };
        from.end()?;
        Ok(record)
    }
}

impl RootRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::versioned(128 + self.path.len() + self.name.len());
        out.u8(match self.kind {
            RootKind::Add => 0,
            RootKind::Import => 1,
        });
        out.u32(self.profile);
        out.u64(self.created_unix);
        out.u64(self.bytes);
        out.u64(self.n_blocks);
        out.u64(self.n_files);
        out.bytes(&self.cid.to_bytes());
        out.bytes(&self.path);
        out.bytes(&self.name);
        if self.source != SOURCE_LOCAL || self.is_whole {
            out.u32(self.source);
        }
        if self.is_whole {
            out.u8(1);
        }
        out.bytes
    }

    pub(super) fn from_bytes(id: RootId, bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::versioned(bytes)?;
        let kind = match from.u8()? {
            0 => RootKind::Add,
            1 => RootKind::Import,
            _ => return Err(damaged()),
        };
        let mut record = Self {
            id,
            kind,
            source: SOURCE_LOCAL,
            profile: from.u32()?,
            created_unix: from.u64()?,
            bytes: from.u64()?,
            n_blocks: from.u64()?,
            n_files: from.u64()?,
            cid: decode_cid(&mut from)?,
            path: from.bytes()?.to_vec(),
            name: from.bytes()?.to_vec(),
            is_whole: false,
        };
        // A root of this machine ends here, unless it is known to be whole.
        if !from.is_empty() {
            record.source = from.u32()?;
            record.is_whole = !from.is_empty();
            if record.is_whole && from.u8()? != 1 {
                return Err(damaged());
            }
            if record.source == SOURCE_LOCAL && !record.is_whole {
                return Err(damaged());
            }
        }
        from.end()?;
        Ok(record)
    }
}

impl SourceRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::versioned(64 + self.name.len() + self.url.len());
        out.u64(self.created_unix);
        for text in [
            &self.name,
            &self.url,
            &self.endpoint,
            &self.region,
            &self.credentials,
        ] {
            out.bytes(text.as_bytes());
        }
        if self.private || !self.redirects.is_empty() {
            out.u8(u8::from(self.private));
            for origin in &self.redirects {
                out.bytes(origin.as_bytes());
            }
        }
        out.bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::versioned(bytes)?;
        let text = |from: &mut Reader<'_>| -> Result<String> {
            let text = std::str::from_utf8(from.bytes()?).map_err(|_| damaged())?;
            Ok(text.to_owned())
        };
        let created_unix = from.u64()?;
        let mut record = Self {
            name: text(&mut from)?,
            url: text(&mut from)?,
            endpoint: text(&mut from)?,
            region: text(&mut from)?,
            credentials: text(&mut from)?,
            created_unix,
            redirects: Vec::new(),
            private: false,
        };
        // A source that allows nothing besides itself ends here.
        if !from.is_empty() {
            record.private = match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(damaged()),
            };
            while !from.is_empty() {
                record.redirects.push(text(&mut from)?);
            }
        }
        from.end()?;
        Ok(record)
    }
}

impl StaleMark {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let is_first_form = self.has_first_form();
        let version = if is_first_form {
            VALUE_VERSION
        } else {
            STALE_RANGES_VERSION
        };
        let mut out = Writer::of_version(version, 80 + 16 * self.ranges.len());
        out.u8(match self.reason {
            StaleReason::Changed => 0,
            StaleReason::Missing => 1,
            StaleReason::Unreadable => 2,
            StaleReason::Short => 3,
            StaleReason::Mismatch => 4,
            StaleReason::Widespread => 5,
        });
        out.u64(self.since_unix);
        out.u64(self.offset);
        out.u32(self.len);
        out.u8(u8::from(self.observed.is_some()));
        if let Some(observed) = &self.observed {
            encode_validator(observed, &mut out);
        }
        if !is_first_form {
            out.u32(self.ranges.len() as u32); // A few dozen.
            for range in &self.ranges {
                out.u64(range.start);
                out.u64(range.end);
            }
        }
        out.bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader::new(bytes);
        let version = from.u8()?;
        let reason = match (version, from.u8()?) {
            (VALUE_VERSION, 0) => StaleReason::Changed,
            (VALUE_VERSION, 1) => StaleReason::Missing,
            (VALUE_VERSION, 2) => StaleReason::Unreadable,
            (VALUE_VERSION, 3) => StaleReason::Short,
            (VALUE_VERSION | STALE_RANGES_VERSION, 4) => StaleReason::Mismatch,
            (STALE_RANGES_VERSION, 5) => StaleReason::Widespread,
            _ => return Err(damaged()),
        };
        let since_unix = from.u64()?;
        let offset = from.u64()?;
        let len = from.u32()?;
        let observed = match from.u8()? {
            0 => None,
            1 => Some(decode_validator(&mut from)?),
            _ => return Err(damaged()),
        };
        let mut mark = Self {
            reason,
            observed,
            since_unix,
            offset,
            len,
            ranges: Vec::new(),
        };
        if version == STALE_RANGES_VERSION {
            let mut end = None;
            for _ in 0..from.u32()? {
                let range = from.u64()?..from.u64()?;
                if range.is_empty() || end.is_some_and(|end| range.start <= end) {
                    return Err(damaged());
                }
                end = Some(range.end);
                mark.ranges.push(range);
            }
        } else if reason == StaleReason::Mismatch {
            mark.ranges.push(mark.first_range());
        }
        from.end()?;
        let has_no_range = reason == StaleReason::Mismatch && mark.ranges.is_empty();
        if has_no_range || (version == STALE_RANGES_VERSION && mark.has_first_form()) {
            return Err(damaged());
        }
        Ok(mark)
    }

    /// Whether the read that noticed it tells all: the form of before there were ranges.
    fn has_first_form(&self) -> bool {
        match self.reason {
            StaleReason::Mismatch => self.ranges == [self.first_range()],
            StaleReason::Widespread => false,
            _ => true,
        }
    }

    fn first_range(&self) -> Range<u64> {
        let len = u64::from(self.len.max(1)); // An empty block has a place, too.
        let end = self.offset.saturating_add(len);
        self.offset.min(end.saturating_sub(1))..end
    }
}

pub(super) fn segment_to_bytes(meta: &SegmentMeta) -> Vec<u8> {
    let mut out = Writer::versioned(17);
    out.u64(meta.n_records);
    out.u64(meta.len);
    out.bytes
}

pub(super) fn segment_from_bytes(id: SegmentId, bytes: &[u8]) -> Result<SegmentMeta> {
    let mut from = Reader::versioned(bytes)?;
    let meta = SegmentMeta {
        id,
        n_records: from.u64()?,
        len: from.u64()?,
    };
    from.end()?;
    Ok(meta)
}
