//! Which files are carrack's own, by whatever path they are met.
//!
//! In       the data directory; what is met on the way through somebody's files.
//! Out      whether that is the data directory, or lies directly in it: a bind mount or a hard link
//!          is another path to the same file. Whether it is the key of any node, also of another
//!          store.
//! Limits   only files of the key's name, and what is begun of one, are looked into.
//! Not here what becomes of them: they are never added (`ingest::add`), for the key of this node is
//!          among them.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::durable;
use crate::key_file::{self, FILE_NAME};
use crate::source::nofollow;
use crate::store::Store;
use crate::store::catalog::Validator;

/// What a file or folder is, whatever it is called: device and inode.
pub type FileId = (u64, u64);

/// The file that this is of.
#[must_use]
pub fn id_of(meta: &Metadata) -> FileId {
    (meta.dev(), meta.ino())
}

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
            ids.insert(id_of(&meta));
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
            meta.is_ok_and(|meta| self.has(id_of(&meta)))
        };
        path.ancestors().any(is_own)
    }
}

/// Whether a file holds the private key of a node, this one or another: it has the name of one, or
/// of one that was begun, and its form, or lies in a store.
#[must_use]
pub fn is_key(path: &Path) -> bool {
    let Some(name) = path.file_name() else {
        return false;
    };
    let is_begun = durable::is_temporary_of(name, Path::new(FILE_NAME));
    if name != FILE_NAME && !is_begun {
        return false;
    }
    let has_form = || -> io::Result<bool> {
        let mut bytes = Vec::new();
        let file = File::from(nofollow::open(path)?);
        file.take(key_file::FILE_LEN as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(key_file::has_form(&bytes, is_begun))
    };
    // One that cannot be read cannot be added, either.
    has_form().unwrap_or(false) || path.parent().is_some_and(Store::is_at)
}

#[cfg(test)]
mod tests {
    use super::is_key;

    #[test]
    fn a_key_is_known_by_name_and_form_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(dir.path()).unwrap();
        let key = [&[0x08, 0x01, 0x12, 0x40][..], &[7; 64]].concat();
        let is_one = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).unwrap();
            is_key(&dir.join(name))
        };
        let begun = "identity.key.7-0.tmp";
        assert!(is_one("identity.key", &key) && is_one(begun, &key));
        // Whoever makes it is not done yet.
        assert!(is_one(begun, &key[..20]) && is_one(begun, b""));
        assert!(!is_one("identity.key", b"") && !is_one("identity.key", &key[..67]));
        assert!(!is_one("identity.key", &[&key[..], b"x"].concat()));
        for name in [
            "my.key",
            "identity.key.bak",
            "identity.key.tmp",
            "identity.key.x-1.tmp",
        ] {
            assert!(!is_one(name, &key), "{name}");
        }
        assert!(!is_key(&dir.join("none/identity.key")));
        std::fs::write(dir.join("format"), "carrack store 9\n").unwrap();
        assert!(is_one("identity.key", b"of a later form"));
        std::fs::write(dir.join("format"), "of a person's").unwrap();
        assert!(!is_one("identity.key", b"of a later form"));
    }
}
