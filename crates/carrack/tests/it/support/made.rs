//! Blocks of many codecs made by hand, and CARs of them with any roots.
//!
//! In       contents.
//! Out      blocks, whose CIDs are right, and CARs; the CIDs of a CAR.
//! Not here CARs that are wrong (`support::car`).

use carrack_formats::{Cid, Multihash, cid};
use sha2::{Digest, Sha256};

use super::car::{framed, raw_cid, section};

/// A block and its CID.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) cid: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

/// A block named by SHA2-256.
pub(crate) fn block(codec: u64, data: Vec<u8>) -> Block {
    let multihash = Multihash::wrap(0x12, &Sha256::digest(&data)).unwrap();
    let cid = Cid::new_v1(codec, multihash).to_bytes();
    Block { cid, data }
}

pub(crate) fn raw(data: &[u8]) -> Block {
    let (cid, data) = (raw_cid(data), data.to_vec());
    Block { cid, data }
}

/// A CAR of these blocks with these roots.
pub(crate) fn car(roots: &[&[u8]], blocks: &[Block]) -> Vec<u8> {
    let mut cbor = b"\xa2\x65roots".to_vec();
    cbor.extend(head(4, roots.len()));
    for root in roots {
        cbor.extend(link(root));
    }
    cbor.extend(b"\x67version\x01");
    let mut car = framed(&cbor);
    for block in blocks {
        car.extend(section(&block.cid, &block.data));
    }
    car
}

/// The CIDs of a CAR's sections in order; a trailer after them is passed over.
pub(crate) fn cids_of(car: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = car;
    let mut cids = Vec::new();
    while !rest.is_empty() {
        let n = rest.iter().position(|byte| *byte < 0x80).unwrap() + 1;
        let digits = rest[..n].iter().rev();
        let len = digits.fold(0, |len, byte| len << 7 | usize::from(byte & 0x7f));
        if len == 0 {
            break;
        }
        if let Ok(Some((_, cid_len))) = cid::read_prefix(&rest[n..n + len]) {
            cids.push(rest[n..n + cid_len].to_vec());
        }
        rest = &rest[n + len..];
    }
    cids
}

/// A dag-cbor list of links.
pub(crate) fn list(links: &[&[u8]]) -> Vec<u8> {
    let mut block = head(4, links.len());
    links.iter().for_each(|cid| block.extend(link(cid)));
    block
}

/// A dag-pb block: names with CIDs, then its data.
pub(crate) fn pb(links: &[(&[u8], &[u8])], data: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, cid) in links {
        let link = [&[0x0a][..], &framed(cid), &[0x12], &framed(name)].concat();
        block.extend([&[0x12][..], &framed(&link)].concat());
    }
    block.extend([&[0x0a][..], &framed(data)].concat());
    block
}

/// A git object, named by SHA-1.
pub(crate) fn git_object(kind: &str, body: &[u8]) -> Block {
    let data = [format!("{kind} {}\0", body.len()).as_bytes(), body].concat();
    let digest = sha1_of(&data);
    let multihash = Multihash::wrap(cid::SHA1, &digest).unwrap();
    let cid = Cid::new_v1(cid::GIT_RAW, multihash).to_bytes();
    Block { cid, data }
}

/// A commit of a tree.
pub(crate) fn commit(tree: &Block, parent: Option<&Block>) -> Block {
    let mut text = format!("tree {}\n", git_name(tree));
    if let Some(parent) = parent {
        text.push_str(&format!("parent {}\n", git_name(parent)));
    }
    text.push_str("author A <a@example> 1 +0000\ncommitter A <a@example> 1 +0000\n\nx\n");
    git_object("commit", text.as_bytes())
}

/// A tag, its commit, the commit's tree and its two blobs, in the order of a walk.
pub(crate) fn git() -> Vec<Block> {
    let [first, second] = [&b"hello\n"[..], b"world\n"].map(|body| git_object("blob", body));
    let entries = [
        &b"100644 a\0"[..],
        digest(&first),
        b"100755 b c\0",
        digest(&second),
    ];
    let tree = git_object("tree", &entries.concat());
    let commit = commit(&tree, None);
    let text = format!("object {}\ntype commit\ntag v1\n\nx\n", git_name(&commit));
    let tag = git_object("tag", text.as_bytes());
    vec![tag, commit, tree, first, second]
}

/// A signed object, its payload, and what that links to.
pub(crate) fn jose() -> Vec<Block> {
    let leaf = raw(b"signed");
    let payload = block(0x71, list(&[&leaf.cid]));
    let signature = [
        &b"\xa2\x69protected\x4f{\"alg\":\"EdDSA\"}\x69signature\x58\x40"[..],
        &[7; 64],
    ];
    let jws = [
        b"\xa2\x67payload".to_vec(),
        head(2, payload.cid.len()),
        payload.cid.clone(),
        b"\x6asignatures\x81".to_vec(),
        signature.concat(),
    ];
    vec![block(0x85, jws.concat()), payload, leaf]
}

fn digest(block: &Block) -> &[u8] {
    &block.cid[block.cid.len() - 20..]
}

fn git_name(block: &Block) -> String {
    let digits = digest(block).iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

fn sha1_of(data: &[u8]) -> [u8; 20] {
    use sha1::Digest as _;
    sha1::Sha1::digest(data).into()
}

fn link(cid: &[u8]) -> Vec<u8> {
    let bytes = [&[0][..], cid].concat();
    [vec![0xd8, 42], head(2, bytes.len()), bytes].concat()
}

fn head(major: u8, n: usize) -> Vec<u8> {
    let major = major << 5;
    match n {
        0..24 => vec![major | u8::try_from(n).unwrap()],
        24..256 => vec![major | 24, u8::try_from(n).unwrap()],
        _ => {
            let bytes = u16::try_from(n).unwrap();
            #[expect(clippy::big_endian_bytes, reason = "CBOR is in network order")]
            let bytes = bytes.to_be_bytes();
            [&[major | 25][..], &bytes].concat()
        }
    }
}
