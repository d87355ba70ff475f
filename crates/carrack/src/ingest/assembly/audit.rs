//! What became of the files of an earlier add: new, changed, moved, vanished.
//!
//! In       the rows of an earlier add; each file of a new one as it gets its place.
//! Out      counts; a file that only moved is known without reading it; rows of files that are gone
//!          are removed.
//! Limits   8 bytes a file that is there or was left out; while moves are looked for, the paths of
//!          at most [`MOVES_MAX`] files.
//! Not here walking and reading (`ingest::add`, `ingest::remote`).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Assembly;
use crate::error::Result;
use crate::ingest::Changes;
use crate::ingest::sink::KnownFile;
use crate::source::validator::{FileStamp, ObjectStamp};
use crate::store::catalog::{ContainerKind, Validator};

/// Files whose moves can be found.
const MOVES_MAX: usize = 1_000_000;

/// A comparison with an earlier add.
#[derive(Default)]
pub(super) struct Audit {
    hasher: RandomState,
    present: HashSet<u64>,
    /// What was left out: of a folder nobody knows what is below.
    unclear: HashSet<u64>,
    /// Where content was, by what tells content apart. Made when the first new file is met.
    contents: Option<HashMap<u64, Box<[u8]>>>,
    moves: Vec<Move>,
    changes: Changes,
}

/// A file that has the content of another one, which may be gone.
struct Move {
    from: u64,
    to: PathBuf,
    known: KnownFile,
    now: Validator,
}

impl Assembly<'_> {
    /// From here on, what is added is compared with the rows that there are.
    pub(in crate::ingest) fn audit(&mut self) {
        self.audit = Some(Audit::default());
    }

    /// A file, or something that should be one, is still there.
    pub(super) fn is_there(&mut self, path: &Path) {
        if let Some(audit) = &mut self.audit {
            audit.present.insert(audit.hasher.hash_one(path));
        }
    }

    /// A file or folder that is there was left out.
    pub(super) fn is_unclear(&mut self, path: &Path) {
        if let Some(audit) = &mut self.audit {
            audit.unclear.insert(audit.hasher.hash_one(path));
        }
    }

    /// A file's new row is about to be written.
    pub(super) fn count_new(&mut self, path: &Path) -> Result<()> {
        if self.audit.is_none() {
            return Ok(());
        }
        let was_known = self.sink.has_row(path, self.profile)?;
        if let Some(audit) = &mut self.audit {
            match was_known {
                true => audit.changes.changed += 1,
                false => audit.changes.added += 1,
            }
        }
        Ok(())
    }

    /// A file without a row that has the content of one with a row, as far as that can be told
    /// without reading.
    pub(in crate::ingest) fn moved(
        &mut self,
        top: &Path,
        path: &Path,
        now: &Validator,
    ) -> Result<Option<KnownFile>> {
        let (profile, sink) = (self.profile, &self.sink);
        let Some(audit) = &mut self.audit else {
            return Ok(None);
        };
        let Some(content) = content(&audit.hasher, now) else {
            return Ok(None);
        };
        if sink.has_row(path, profile)? {
            return Ok(None);
        }
        if audit.contents.is_none() {
            let mut contents = HashMap::new();
            sink.rows_below(top, profile, &mut |path, record| {
                if let Some(content) = self::content(&audit.hasher, &record.validator)
                    && contents.len() < MOVES_MAX
                {
                    contents.insert(content, path.as_os_str().as_bytes().into());
                }
            })?;
            audit.contents = Some(contents);
        }
        let from = audit.contents.as_ref().and_then(|all| all.get(&content));
        let Some(from) = from.map(|from| Path::new(OsStr::from_bytes(from)).to_owned()) else {
            return Ok(None);
        };
        let Some(known) = sink.known_file(&from, profile)? else {
            return Ok(None);
        };
        let is_same = content_of(&known.validator) == content_of(now);
        Ok(is_same.then(|| {
            audit.moves.push(Move {
                from: audit.hasher.hash_one(from.as_path()),
                to: path.to_owned(),
                known: known.clone(),
                now: now.clone(),
            });
            known
        }))
    }

    /// Everything was gone through: forgets what is not below `tops` any more, and lets the
    /// containers of what moved be found at their new places.
    pub(in crate::ingest) fn finish_audit(&mut self, tops: &[PathBuf]) -> Result<Changes> {
        let Some(mut audit) = self.audit.take() else {
            return Ok(Changes::default());
        };
        let mut moved = HashSet::new(); // Each once: a second one of it is a copy.
        for one in audit.moves {
            if !audit.present.contains(&one.from)
                && moved.insert(one.from)
                && let Some(container) = one.known.container
            {
                let kind = ContainerKind::File;
                self.sink.container(container, kind, &one.to, &one.now);
                self.sink.found_again(container);
                audit.changes.moved += 1;
            } else {
                audit.changes.added += 1;
            }
            let (known, profile) = (&one.known, self.profile);
            let (container, pack, sum) = (known.container, known.pack, known.sum);
            self.sink
                .file(&one.to, profile, &one.now, container, pack, sum);
        }
        let mut gone = Vec::new();
        for top in tops {
            self.sink.rows_below(top, self.profile, &mut |path, _| {
                let is_unclear = || {
                    let mut above = path.ancestors();
                    above.any(|one| audit.unclear.contains(&audit.hasher.hash_one(one)))
                };
                let is_present = audit.present.contains(&audit.hasher.hash_one(path));
                if !is_present && (audit.unclear.is_empty() || !is_unclear()) {
                    gone.push(path.to_owned());
                }
            })?;
        }
        audit.changes.vanished = (gone.len() as u64).saturating_sub(audit.changes.moved);
        for path in gone {
            self.sink.forget_file(&path, self.profile);
            self.checkpoint_if_due()?;
        }
        Ok(audit.changes)
    }
}

/// What tells content apart from other content at another path of the same source.
#[derive(PartialEq, Eq, Hash)]
enum Content<'a> {
    /// A file keeps its inode and its times when it moves.
    File(u64, u64, u64, crate::source::validator::FileTime),
    /// The store made the tag of the bytes.
    Object(u64, &'a str),
}

fn content_of(validator: &Validator) -> Option<Content<'_>> {
    match validator {
        Validator::File(FileStamp {
            dev,
            ino,
            size,
            mtime,
            ..
        }) => (*size > 0).then_some(Content::File(*dev, *ino, *size, *mtime)),
        Validator::Object(stamp) => {
            let ObjectStamp { size, etag, .. } = &**stamp;
            let etag = etag.as_deref().filter(|etag| is_of_content(etag))?;
            (*size > 0).then_some(Content::Object(*size, etag))
        }
    }
}

fn content(hasher: &RandomState, validator: &Validator) -> Option<u64> {
    content_of(validator).map(|content| hasher.hash_one(content))
}

/// Whether a tag looks like the MD5 that stores of objects give, of the whole or of parts. Tags
/// of web servers are made of times and lengths: two files may have the same.
fn is_of_content(etag: &str) -> bool {
    let tag = etag.trim_matches('"');
    let (md5, parts) = tag.split_once('-').unwrap_or((tag, "1"));
    md5.len() == 32
        && md5.bytes().all(|byte| byte.is_ascii_hexdigit())
        && parts.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_of_content;

    #[test]
    fn tags_made_of_times_tell_nothing_of_content() {
        for (tag, expected) in [
            ("\"d41d8cd98f00b204e9800998ecf8427e\"", true),
            ("\"d41d8cd98f00b204e9800998ecf8427e-12\"", true),
            ("\"65f1c2a0-1f4\"", false),
            ("\"d41d8cd98f00b204e9800998ecf8427e-\"", false),
            ("\"\"", false),
        ] {
            assert_eq!(is_of_content(tag), expected, "{tag}");
        }
    }
}
