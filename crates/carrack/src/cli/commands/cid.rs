//! `carrack cid inspect`.

use carrack_formats::{Cid, cid};
use serde_json::json;

use crate::cli::args::CidCommand;
use crate::cli::output::Output;
use crate::cli::target;
use crate::error::Result;

/// Shows what a CID says of itself.
///
/// # Errors
/// `Invalid` if it is none.
pub fn run(command: &CidCommand, out: &mut Output) -> Result<()> {
    let CidCommand::Inspect { cid } = command;
    let cid = target::parse(cid)?.root;
    let hash = cid.hash();
    let digest: String = hash
        .digest()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let version = u64::from(cid.version());
    let v1 = Cid::new_v1(cid.codec(), *hash);
    let v0 = Cid::new_v0(*hash)
        .ok()
        .filter(|_| cid.codec() == cid::DAG_PB);
    if out.json {
        return out.object(&json!({
            "cid": cid.to_string(),
            "version": version,
            "codec": codec_name(cid.codec()),
            "codec_code": cid.codec(),
            "hash": hash_name(hash.code()),
            "hash_code": hash.code(),
            "digest_len": hash.size(),
            "digest": digest,
            "cid_v1": v1.to_string(),
            "cid_v0": v0.map(|cid| cid.to_string()),
        }));
    }
    out.line(&format!("cid      {cid}"))?;
    out.line(&format!("version  {version}"))?;
    out.line(&format!(
        "codec    {} (0x{:02x})",
        codec_name(cid.codec()),
        cid.codec()
    ))?;
    let (name, code, len) = (hash_name(hash.code()), hash.code(), hash.size());
    out.line(&format!("hash     {name} (0x{code:02x}), {len} bytes"))?;
    out.line(&format!("digest   {digest}"))?;
    out.line(&format!("as v1    {v1}"))?;
    match v0 {
        Some(v0) => out.line(&format!("as v0    {v0}")),
        None => Ok(()),
    }
}

/// Name of a codec in the multicodec table.
fn codec_name(code: u64) -> &'static str {
    match code {
        cid::RAW => "raw",
        cid::DAG_PB => "dag-pb",
        cid::DAG_CBOR => "dag-cbor",
        cid::DAG_JSON => "dag-json",
        cid::JSON => "json",
        cid::CBOR => "cbor",
        0x72 => "libp2p-key",
        0x78 => "git-raw",
        0x0202 => "car",
        _ => "unknown",
    }
}

/// Name of a hash function in the multicodec table.
fn hash_name(code: u64) -> &'static str {
    match code {
        cid::IDENTITY => "identity",
        0x11 => "sha1",
        cid::SHA2_256 => "sha2-256",
        0x13 => "sha2-512",
        0x14 => "sha3-512",
        0x15 => "sha3-384",
        0x16 => "sha3-256",
        0x17 => "sha3-224",
        0x1b => "keccak-256",
        0x1e => "blake3",
        0x56 => "dbl-sha2-256",
        0xb220 => "blake2b-256",
        0xb260 => "blake2s-256",
        _ => "unknown",
    }
}
