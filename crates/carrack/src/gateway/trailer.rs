//! The metadata trailer of IPIP-431: what was sent, after the last byte of the CAR.
//!
//! In       the bytes of the CAR as they are sent, the parameters of the request.
//! Out      `0x00` and one JSON object. The zero byte cannot begin a CARv1 section.
//! Limits   the object is under 64 KiB: its long field is the path, which a request head bounds.
//! Not here a signature (`sig`): this node has no identity yet.
//!
//! Spec: IPIP-431 (`meta=eof+json`). Where it leaves a choice: `car_cid` and `b3checksum` are the
//! same BLAKE3 digest, the one as a CID, the other as a multihash in base58btc; `data` together
//! with `error` describes the bytes that were sent before the error, and the body ends cleanly.

use bytes::Bytes;
use carrack_formats::walk::{ByteRange, Scope};
use carrack_formats::{Cid, Multihash};
use serde_json::{Map, Value, json};

use super::request::CarOptions;

/// Multicodec of BLAKE3.
const BLAKE3: u64 = 0x1e;
/// Multicodec of a CAR.
const CAR: u64 = 0x0202;

/// Collects what the trailer says.
#[derive(Debug)]
pub struct Trailer {
    hasher: blake3::Hasher,
    car_bytes: u64,
    n_blocks: u64,
    content_path: String,
    options: CarOptions,
}

impl Trailer {
    /// A trailer for the URL path `content_path`, without its query.
    #[must_use]
    pub fn new(content_path: &str, options: CarOptions) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            car_bytes: 0,
            n_blocks: 0,
            content_path: content_path.to_owned(),
            options,
        }
    }

    /// These bytes of the CAR, which hold `n_blocks` blocks, are sent. About 0.3 ms for 1 MiB.
    pub fn update(&mut self, bytes: &[u8], n_blocks: u64) {
        self.hasher.update(bytes);
        self.car_bytes = self.car_bytes.saturating_add(bytes.len() as u64);
        self.n_blocks = self.n_blocks.saturating_add(n_blocks);
    }

    /// The trailer. `error`: why the CAR is not whole.
    #[must_use]
    pub fn finish(&self, error: Option<&str>) -> Bytes {
        let mut data = Map::new();
        data.insert("car_bytes".into(), self.car_bytes.into());
        data.insert("block_count".into(), self.n_blocks.into());
        // Neither fails: a BLAKE3 digest has 32 bytes.
        if let Ok(multihash) = Multihash::wrap(BLAKE3, self.hasher.finalize().as_bytes()) {
            let checksum = multibase::encode(multibase::Base::Base58Btc, multihash.to_bytes());
            data.insert("b3checksum".into(), checksum.into());
            let cid = Cid::new_v1(CAR, multihash);
            data.insert("car_cid".into(), cid.to_string().into());
        }
        data.insert("content_path".into(), self.content_path.as_str().into());
        data.insert("dag_params".into(), dag_params(&self.options));
        let dups = if self.options.dups { "y" } else { "n" };
        let car_params = json!({ "order": self.options.order.as_str(), "dups": dups });
        data.insert("car_params".into(), car_params);
        let mut object = Map::new();
        object.insert("data".into(), data.into());
        if let Some(error) = error {
            object.insert("error".into(), error.into());
        }
        let mut bytes = vec![0];
        bytes.extend_from_slice(Value::Object(object).to_string().as_bytes());
        bytes.into()
    }
}

fn dag_params(options: &CarOptions) -> Value {
    let mut params = Map::new();
    params.insert("dag-scope".into(), scope_str(options.scope).into());
    if let Some(range) = options.entity_bytes {
        params.insert("entity-bytes".into(), range_text(range).into());
    }
    params.into()
}

/// The value of `dag-scope`.
#[must_use]
pub const fn scope_str(scope: Scope) -> &'static str {
    match scope {
        Scope::All => "all",
        Scope::Entity => "entity",
        Scope::Block => "block",
    }
}

/// The value of `entity-bytes`.
#[must_use]
pub fn range_text(range: ByteRange) -> String {
    match range.to {
        Some(to) => format!("{}:{to}", range.from),
        None => format!("{}:*", range.from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::negotiate::Order;

    #[test]
    fn the_trailer_is_a_zero_byte_and_one_object() {
        let options = CarOptions {
            scope: Scope::Entity,
            entity_bytes: Some(ByteRange { from: -5, to: None }),
            order: Order::Dfs,
            dups: true,
            meta: true,
        };
        let mut trailer = Trailer::new("/ipfs/bafkqaaa/a%20b", options);
        trailer.update(b"hello ", 1);
        trailer.update(b"world", 2);
        let bytes = trailer.finish(Some("cut"));
        assert_eq!(bytes[0], 0);
        let object: Value = serde_json::from_slice(&bytes[1..]).unwrap();
        let data = &object["data"];
        assert_eq!(object["error"], "cut");
        assert_eq!(data["car_bytes"], 11);
        assert_eq!(data["block_count"], 3);
        assert_eq!(data["content_path"], "/ipfs/bafkqaaa/a%20b");
        assert_eq!(
            data["dag_params"],
            json!({"dag-scope": "entity", "entity-bytes": "-5:*"})
        );
        assert_eq!(data["car_params"], json!({"order": "dfs", "dups": "y"}));
        let digest = blake3::hash(b"hello world");
        let (_, checksum) = multibase::decode(data["b3checksum"].as_str().unwrap()).unwrap();
        assert_eq!(
            checksum,
            [&[0x1e, 0x20], digest.as_bytes().as_slice()].concat()
        );
        let cid: Cid = data["car_cid"].as_str().unwrap().parse().unwrap();
        assert_eq!(
            (cid.codec(), cid.hash().digest()),
            (CAR, digest.as_bytes().as_slice())
        );
    }
}
