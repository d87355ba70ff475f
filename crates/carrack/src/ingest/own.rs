//! Which files are carrack's own, by whatever path they are met.
//!
//! In       the data directory; what is met on the way through somebody's files.
//! Out      whether that is the data directory, or lies directly in it: a bind mount or a hard link
//!          is another path to the same file.
//! Not here what becomes of them: they are never added (`ingest::add`), for the key of this node is
//!          among them.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::store::catalog::Validator;

/// What a file or folder is, whatever it is called: device and inode.
pub type FileId = (u64, u64);

/// The data directory, and all that lies directly in it.
#[derive(Debug, Clone, Default)]
pub struct Own {
    ids: HashSet<FileId>,
}

impl Own {
    /// Those of a data directory.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let mut ids = HashSet::new();
        let below = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let metas = below.map(|entry| entry.metadata());
        for meta in metas.chain([std::fs::metadata(dir)]).flatten() {
            ids.insert((meta.dev(), meta.ino()));
        }
        Self { ids }
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn has(&self, id: FileId) -> bool {
        self.ids.contains(&id)
    }

    /// Whether a file is one of them.
    #[must_use]
    pub fn has_file(&self, validator: &Validator) -> bool {
        match validator {
            Validator::File(stamp) => self.has((stamp.dev, stamp.ino)),
            Validator::Object(_) => false,
        }
    }

    /// Whether `path` leads to one of them, or to what lies below one.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        let is_own = |path: &Path| {
            let meta = std::fs::metadata(path);
            meta.is_ok_and(|meta| self.has((meta.dev(), meta.ino())))
        };
        path.ancestors().any(is_own)
    }
}
