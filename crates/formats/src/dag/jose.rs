//! dag-jose: links and paths of a signed or encrypted object.
//!
//! In       a block of dag-cbor that is a JWS or a JWE.
//! Out      spans of its CIDs: the `payload` of a JWS is the bytes of one, without a tag; links
//!          with a tag may stand anywhere else (headers). A path through `link` goes where the
//!          payload says.
//! Limits   those of `dag::cbor`.
//! Not here signatures and keys: nothing is checked or decrypted. What a JWE's ciphertext links to
//!          only its readers know; it has no links for anybody else.
//!
//! Spec: <https://ipld.io/specs/codecs/dag-jose/spec/>

use bytes::Bytes;

use super::cbor::{self, Head, Reader};
use super::{DagError, LinkForm, Links, PathStep};

/// The key whose value is a CID as bytes.
const PAYLOAD: &[u8] = b"payload";
/// The key under which decoders show the payload as a link.
const LINK: &[u8] = b"link";

/// Finds the links of a dag-jose block.
///
/// # Errors
/// [`DagError`] if the block is not one whole CBOR map with keys of text, or its payload is no byte
/// string.
pub fn links(block: &Bytes) -> Result<Links, DagError> {
    let mut links = Links::new(block.clone(), LinkForm::Binary)?;
    let mut reader = Reader::new(block);
    let n_pairs = enter(&mut reader)?;
    for _ in 0..n_pairs {
        if is_payload(&mut reader)? {
            links.push(payload(&mut reader)?)?;
        } else {
            reader.value(|span| links.push(span))?;
        }
    }
    if reader.at() != block.len() {
        return Err(DagError::malformed(reader.at(), "bytes follow the map"));
    }
    Ok(links)
}

/// Follows a path: `link` leads to the payload's block, everything else is as in dag-cbor.
///
/// # Errors
/// As [`cbor::resolve`].
pub fn resolve<S: AsRef<[u8]>>(block: &[u8], segments: &[S]) -> Result<PathStep, DagError> {
    if segments.first().map(AsRef::as_ref) != Some(LINK) {
        return cbor::resolve(block, segments);
    }
    let mut reader = Reader::new(block);
    let n_pairs = enter(&mut reader)?;
    for _ in 0..n_pairs {
        if is_payload(&mut reader)? {
            let span = payload(&mut reader)?;
            let cid = reader.cid(span)?;
            return Ok(PathStep::Link { cid, used: 1 });
        }
        reader.value(|_| Ok(()))?;
    }
    cbor::resolve(block, segments)
}

/// How many pairs the outermost map has.
fn enter(reader: &mut Reader<'_>) -> Result<u64, DagError> {
    match reader.head()? {
        Head::Map(n_pairs) => Ok(n_pairs),
        _ => Err(DagError::malformed(0, "it is no map")),
    }
}

/// Reads a key of the outermost map.
fn is_payload(reader: &mut Reader<'_>) -> Result<bool, DagError> {
    let start = reader.at();
    match reader.head()? {
        Head::Text(span) => Ok(reader.slice(span) == PAYLOAD),
        _ => Err(DagError::malformed(start, "a key is no text")),
    }
}

fn payload(reader: &mut Reader<'_>) -> Result<std::ops::Range<usize>, DagError> {
    let start = reader.at();
    match reader.head()? {
        Head::Bytes(span) => Ok(span),
        _ => Err(DagError::malformed(start, "the payload is no byte string")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cid;
    use crate::cid::{DAG_CBOR, RAW, from_sha256};

    fn cid(byte: u8) -> Cid {
        from_sha256(::cid::Version::V1, DAG_CBOR, &[byte; 32])
    }

    fn text(text: &str) -> Vec<u8> {
        [&[0x60 | text.len() as u8], text.as_bytes()].concat()
    }

    fn bytes(bytes: &[u8]) -> Vec<u8> {
        [&[0x58, bytes.len() as u8], bytes].concat()
    }

    fn tagged(cid: &Cid) -> Vec<u8> {
        let cid = [&[0][..], &cid.to_bytes()].concat();
        [vec![0xd8, 42], bytes(&cid)].concat()
    }

    /// `{payload, signatures: [{header: {x: link}, protected, signature}]}`.
    fn jws(payload: &[u8], header: &Cid) -> Vec<u8> {
        [
            vec![0xa2],
            text("payload"),
            bytes(payload),
            text("signatures"),
            vec![0x81, 0xa3],
            text("header"),
            vec![0xa1],
            text("x"),
            tagged(header),
            text("protected"),
            bytes(b"{\"alg\":\"EdDSA\"}"),
            text("signature"),
            bytes(&[7; 64]),
        ]
        .concat()
    }

    fn listed(block: Vec<u8>) -> Result<Vec<Cid>, DagError> {
        links(&block.into())?.iter().collect()
    }

    #[test]
    fn the_payload_of_a_jws_is_a_link() {
        let block = jws(&cid(1).to_bytes(), &cid(2));
        assert_eq!(listed(block.clone()), Ok(vec![cid(1), cid(2)]));
        let link = |path: &[&[u8]]| resolve(&block, path);
        let step = |cid, used| Ok(PathStep::Link { cid, used });
        assert_eq!(link(&[b"link", b"a"]), step(cid(1), 1));
        assert_eq!(
            link(&[b"signatures", b"0", b"header", b"x"]),
            step(cid(2), 4)
        );
        assert_eq!(link(&[b"payload"]), Ok(PathStep::Value { used: 1 }));
        assert_eq!(link(&[b"absent"]), Ok(PathStep::Missing { used: 0 }));
    }

    #[test]
    fn a_jwe_has_the_links_that_are_tagged() {
        let block = [
            vec![0xa2],
            text("ciphertext"),
            bytes(&cid(1).to_bytes()),
            text("unprotected"),
            tagged(&cid(3)),
        ]
        .concat();
        assert_eq!(listed(block.clone()), Ok(vec![cid(3)]));
        let missing = Ok(PathStep::Missing { used: 0 });
        assert_eq!(resolve(&block, &[b"link"]), missing);
    }

    #[test]
    fn what_is_no_jose_object_is_an_error_and_no_leaf() {
        let good = jws(&cid(1).to_bytes(), &cid(2));
        for cut in 0..good.len() {
            assert!(listed(good[..cut].to_vec()).is_err(), "cut at {cut}");
        }
        assert!(listed([good, vec![0]].concat()).is_err());
        assert!(listed(vec![0x80]).is_err());
        assert!(listed(vec![0xa1, 1, 1]).is_err());
        assert!(listed([vec![0xa1], text("payload"), text("x")].concat()).is_err());
        // Bytes that are no CID, and a CID with something behind it.
        assert!(listed(jws(b"hello", &cid(2))).is_err());
        let long = [&cid(1).to_bytes()[..], &[0]].concat();
        assert!(listed(jws(&long, &cid(2))).is_err());
        let raw = from_sha256(::cid::Version::V1, RAW, &[9; 32]);
        assert_eq!(listed(jws(&raw.to_bytes(), &cid(2))), Ok(vec![raw, cid(2)]));
    }
}
