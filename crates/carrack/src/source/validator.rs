//! What tells one version of a file or object from another.
//!
//! In       what a file system, a bucket or a web server says of it.
//! Out      a [`Validator`] that is remembered with the container and required of every read.
//! Not here where it is kept (`store::catalog`), how a read is made conditional (`source::http`).

use std::sync::Arc;

/// A point in time as a file system or server tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileTime {
    /// Seconds since 1970; negative before.
    pub secs: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

/// What tells one version of a file on this machine from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FileStamp {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: FileTime,
    /// Last change of the content or the inode.
    pub ctime: FileTime,
}

/// What tells one version of an object in a bucket or on a web server from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ObjectStamp {
    /// Length in bytes.
    pub size: u64,
    /// The entity tag with its quotes, if it is a strong one (RFC 9110, 8.8.3).
    pub etag: Option<Box<str>>,
    /// The version's name in a bucket that keeps versions.
    pub version: Option<Box<str>>,
    /// Last change, as exact as the server tells it: to the second in HTTP headers.
    pub modified: Option<FileTime>,
}

/// What tells one version of a container from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Validator {
    /// Of a file on this machine.
    File(FileStamp),
    /// Of an object elsewhere.
    Object(Arc<ObjectStamp>),
}

impl Default for Validator {
    /// Of something that does not change: a pack, a symlink's text.
    fn default() -> Self {
        Self::File(FileStamp::default())
    }
}

impl From<FileStamp> for Validator {
    fn from(stamp: FileStamp) -> Self {
        Self::File(stamp)
    }
}

impl From<ObjectStamp> for Validator {
    fn from(stamp: ObjectStamp) -> Self {
        Self::Object(Arc::new(stamp))
    }
}

impl Validator {
    /// Length in bytes of the version.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::File(stamp) => stamp.size,
            Self::Object(stamp) => stamp.size,
        }
    }

    /// The stamp of an object; `None` for a file of this machine.
    #[must_use]
    pub fn object(&self) -> Option<&Arc<ObjectStamp>> {
        match self {
            Self::File(_) => None,
            Self::Object(stamp) => Some(stamp),
        }
    }
}

impl ObjectStamp {
    /// Whether `other`, which may tell less (a listing has no version, a header no nanoseconds),
    /// can be the same version: everything that both tell agrees, and that is more than the length.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> Option<bool> {
            Some(a? == b?)
        }
        if self.size != other.size {
            return false;
        }
        let versions = same(self.version.as_ref(), other.version.as_ref());
        let etags = same(self.etag.as_ref(), other.etag.as_ref());
        if let Some(versions) = versions {
            return versions && etags != Some(false);
        }
        if let Some(etags) = etags {
            return etags; // A copy of the same bytes may have another time.
        }
        let seconds = |stamp: &Self| stamp.modified.map(|time| time.secs);
        match (seconds(self), seconds(other)) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FileTime, ObjectStamp};

    fn stamp(size: u64, etag: &str, version: &str, secs: i64) -> ObjectStamp {
        let text = |text: &str| (!text.is_empty()).then(|| text.into());
        ObjectStamp {
            size,
            etag: text(etag),
            version: text(version),
            modified: (secs != 0).then_some(FileTime { secs, nanos: 0 }),
        }
    }

    #[test]
    fn versions_agree_in_what_both_tell() {
        let full = stamp(5, "\"a\"", "v1", 7);
        for (other, agrees) in [
            (full.clone(), true),
            (stamp(6, "\"a\"", "v1", 7), false),
            (stamp(5, "\"b\"", "", 7), false),
            (stamp(5, "\"a\"", "", 9), true),
            (stamp(5, "\"a\"", "v2", 7), false),
            (stamp(5, "", "v1", 0), true),
            (stamp(5, "", "", 7), true),
            (stamp(5, "", "", 8), false),
            (stamp(5, "", "", 0), true),
        ] {
            assert_eq!(full.agrees_with(&other), agrees, "{other:?}");
            assert_eq!(other.agrees_with(&full), agrees, "{other:?}");
        }
    }
}
