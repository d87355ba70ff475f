//! git-raw: links of a git object.
//!
//! In       an object as git hashes it: `blob 5\0hello`.
//! Out      spans of the SHA-1 names in it: a commit's tree and parents (those of a merged tag,
//!          too), what a tag names, all entries of a tree. A name is 20 bytes in trees and 40
//!          hexadecimal digits elsewhere; its CID is git-raw with SHA-1.
//! Limits   eight bytes of memory a link; no line and no name is copied.
//! Not here repositories that name by SHA-256, whose objects are an error; packs and deltas; paths.
//!
//! A tree's entry of a submodule is a link as any other, though its commit is of another
//! repository: so it is for other readers of this codec.
//!
//! Spec: <https://ipld.io/specs/codecs/git-raw/> and gitformat-commit, gitformat-tree.

use std::ops::Range;

use bytes::Bytes;

use super::{DagError, LinkForm, Links};
use crate::cid::{GIT_RAW, SHA1};
use crate::{Cid, Multihash};

/// Bytes of a name.
const NAME_LEN: usize = 20;
/// Digits of a name in text.
const HEX_LEN: usize = 2 * NAME_LEN;

/// Finds the links of a git object.
///
/// # Errors
/// [`DagError`] if the object is of no known kind, is not as long as it says, or lacks a name where
/// one belongs.
pub fn links(block: &Bytes) -> Result<Links, DagError> {
    let (kind, body) = header(block)?;
    let mut links = Links::new(block.clone(), LinkForm::Git)?;
    match kind {
        b"blob" => return Ok(Links::default()),
        b"tree" => tree(block, body, &mut links)?,
        b"commit" => commit(block, body, &mut links)?,
        b"tag" => {
            let line = line(block, body);
            let name = name_behind(block, line.clone(), b"object ")?;
            links.push(name.ok_or_else(|| DagError::malformed(line.start, "a tag of nothing"))?)?;
        }
        _ => return Err(DagError::malformed(0, "unknown kind of git object")),
    }
    Ok(links)
}

/// The CID of a name as it stands in an object.
pub(super) fn cid(name: &[u8]) -> Option<Cid> {
    let mut digest = [0; NAME_LEN];
    if name.len() == NAME_LEN {
        digest.copy_from_slice(name);
    } else if name.len() == HEX_LEN {
        for (byte, digits) in digest.iter_mut().zip(name.chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
    } else {
        return None;
    }
    let multihash = Multihash::wrap(SHA1, &digest).ok()?;
    Some(Cid::new_v1(GIT_RAW, multihash))
}

/// The kind, and where the content starts.
fn header(block: &[u8]) -> Result<(&[u8], usize), DagError> {
    let bad = |reason| DagError::malformed(0, reason);
    // The longest is `commit `, 20 digits and the zero.
    let end = block.iter().take(28).position(|&byte| byte == 0);
    let end = end.ok_or_else(|| bad("no header of a git object"))?;
    let head = block.get(..end).unwrap_or_default();
    let space = head.iter().position(|&byte| byte == b' ');
    let (kind, len) = head.split_at(space.ok_or_else(|| bad("no header of a git object"))?);
    let len = std::str::from_utf8(len.get(1..).unwrap_or_default()).unwrap_or_default();
    let is_number = len.bytes().all(|byte| byte.is_ascii_digit());
    let len = len.parse::<usize>().ok().filter(|_| is_number);
    if len != Some(block.len() - end - 1) {
        return Err(bad("the object is not as long as it says"));
    }
    Ok((kind, end + 1))
}

/// `mode name\0` and 20 bytes, again and again.
fn tree(block: &[u8], mut at: usize, links: &mut Links) -> Result<(), DagError> {
    while at < block.len() {
        let rest = block.get(at..).unwrap_or_default();
        let cut = DagError::Truncated { offset: at };
        let zero = rest.iter().position(|&byte| byte == 0);
        let zero = zero.ok_or_else(|| cut.clone())?;
        let entry = rest.get(..zero).unwrap_or_default();
        let mode = entry.split(|&byte| byte == b' ').next().unwrap_or_default();
        let is_mode = !mode.is_empty() && mode.iter().all(|byte| (b'0'..b'8').contains(byte));
        if !is_mode || mode.len() >= entry.len() {
            return Err(DagError::malformed(at, "an entry without a mode"));
        }
        let name = at + zero + 1;
        let end = name + NAME_LEN;
        if end > block.len() {
            return Err(cut);
        }
        links.push(name..end)?;
        at = end;
    }
    Ok(())
}

/// `tree`, then `parent`s among other fields, up to an empty line. Lines that go on with what the
/// line before them began start with a space.
fn commit(block: &[u8], mut at: usize, links: &mut Links) -> Result<(), DagError> {
    let first = line(block, at);
    let tree = name_behind(block, first.clone(), b"tree ")?;
    links.push(tree.ok_or_else(|| DagError::malformed(at, "a commit without a tree"))?)?;
    at = first.end + 1;
    while at < block.len() {
        let line = line(block, at);
        if line.is_empty() {
            break;
        }
        at = line.end + 1;
        for field in [&b"parent "[..], b"mergetag object "] {
            if let Some(name) = name_behind(block, line.clone(), field)? {
                links.push(name)?;
            }
        }
    }
    Ok(())
}

/// The line that starts at `at`, without its end.
fn line(block: &[u8], at: usize) -> Range<usize> {
    let rest = block.get(at..).unwrap_or_default();
    let len = rest.iter().position(|&byte| byte == b'\n');
    at..at + len.unwrap_or(rest.len())
}

/// The name in a line of this field; `None` for a line of another.
fn name_behind(
    block: &[u8],
    line: Range<usize>,
    field: &[u8],
) -> Result<Option<Range<usize>>, DagError> {
    let text = block.get(line.clone()).unwrap_or_default();
    let Some(name) = text.strip_prefix(field) else {
        return Ok(None);
    };
    if name.len() != HEX_LEN || !name.iter().all(u8::is_ascii_hexdigit) {
        let reason = "a name is not 40 hexadecimal digits";
        return Err(DagError::malformed(line.start, reason));
    }
    Ok(Some(line.start + field.len()..line.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, body: &[u8]) -> Vec<u8> {
        [format!("{kind} {}\0", body.len()).as_bytes(), body].concat()
    }

    fn named(byte: u8) -> Cid {
        Cid::new_v1(GIT_RAW, Multihash::wrap(SHA1, &[byte; 20]).unwrap())
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(20)
    }

    fn listed(block: Vec<u8>) -> Result<Vec<Cid>, DagError> {
        links(&block.into())?.iter().collect()
    }

    fn merge() -> Vec<u8> {
        let text = format!(
            "tree {}\nparent {}\nparent {}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\
             mergetag object {}\n type commit\n tag v1\n \n parent {}\ngpgsig x\n parent y\n\n\
             parent of nothing\ntree of nothing\n",
            hex(1),
            hex(2),
            hex(3),
            hex(4),
            hex(5),
        );
        object("commit", text.as_bytes())
    }

    #[test]
    fn each_kind_of_object_has_its_links() {
        assert_eq!(listed(object("blob", b"tree \0parent ")), Ok(vec![]));
        assert_eq!(listed(object("blob", b"")), Ok(vec![]));
        assert_eq!(listed(object("tree", b"")), Ok(vec![]));
        let entries = [
            &b"100644 a b\0"[..],
            &[1; 20],
            b"40000 d\0",
            &[2; 20],
            b"160000 sub\0",
            &[3; 20],
        ];
        let tree = object("tree", &entries.concat());
        assert_eq!(listed(tree), Ok(vec![named(1), named(2), named(3)]));
        let parents = vec![named(1), named(2), named(3), named(4)];
        assert_eq!(listed(merge()), Ok(parents));
        let tag = format!("object {}\ntype commit\ntag v1\n\nobject x\n", hex(9));
        assert_eq!(listed(object("tag", tag.as_bytes())), Ok(vec![named(9)]));
        // A commit need not have a message, nor an end of its last line.
        let bare = format!("tree {}", hex(6));
        assert_eq!(
            listed(object("commit", bare.as_bytes())),
            Ok(vec![named(6)])
        );
    }

    #[test]
    fn what_is_no_git_object_is_an_error_and_no_leaf() {
        let good = merge();
        for cut in 0..good.len() {
            assert!(listed(good[..cut].to_vec()).is_err(), "cut at {cut}");
        }
        let sha256 = "ab".repeat(32);
        for body in [
            object("commit", b""),
            object("commit", b"author A"),
            object("commit", format!("tree {sha256}\n").as_bytes()),
            object("commit", format!("tree {}\nparent x\n", hex(1)).as_bytes()),
            object("tag", b"type commit\n"),
            object("tree", b"100644 a\0short"),
            object("tree", b"name\0aaaaaaaaaaaaaaaaaaaa"),
            object("tree", b"100644\0aaaaaaaaaaaaaaaaaaaa"),
            object("note", b""),
            b"blob +1\0a".to_vec(),
            b"blob 2\0a".to_vec(),
            b"blob\0".to_vec(),
            Vec::new(),
        ] {
            let shown = String::from_utf8_lossy(&body).into_owned();
            assert!(listed(body).is_err(), "{shown:?}");
        }
    }
}
