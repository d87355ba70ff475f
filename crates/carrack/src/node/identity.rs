//! Who this node is among libp2p peers: one ed25519 key in the data directory.
//!
//! In       a data directory. Whoever comes first makes the key; nobody replaces it.
//! Out      the key, and its PeerID.
//! Limits   the file is exactly [`FILE_LEN`] bytes, and its owner's alone.
//! Not here what is signed with it (libp2p); the store, whose lock is not needed for it.
//!
//! Format: `docs/formats/identity.md`, the private key as libp2p writes it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use libp2p_identity::{Keypair, PeerId};
use rustix::fs::{FlockOperation, OFlags, flock};
use zeroize::Zeroizing;

use crate::durable::{self, DurableError, Temporary};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::key_file::{FILE_LEN, FILE_NAME, HEAD};
use crate::store::Store;

/// What nobody but the owner may do with the file.
const OTHERS: u32 = 0o077;

/// A node's key. Its `Debug` shows the PeerID alone.
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.peer_id()).finish()
    }
}

impl Identity {
    /// The key in `data_dir`. At the first call one is made, durably, and the directory with it;
    /// of many first calls at once, in whatever processes, all return the same key.
    ///
    /// # Errors
    /// `Corrupt` if the file is not an ed25519 key of its owner's alone; `Unavailable` if it cannot
    /// be read or made. It is never replaced. `Invalid` if the directory holds something else and
    /// no store: nothing is made in it.
    pub fn open_or_create(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join(FILE_NAME);
        if let Some(identity) = Self::read(&path)? {
            // Whoever made it may have ended before its name was durable, and it is told to peers.
            let synced = durable::sync_name(&path).map_err(DurableError::into_io);
            synced.context(ErrorKind::Unavailable, || {
                format!("cannot keep the key of this node, {}", path.display())
            })?;
            return Ok(identity);
        }
        Store::check_place(data_dir)?;
        create(data_dir, &path).context(ErrorKind::Unavailable, || {
            format!("cannot make the key of this node, {}", path.display())
        })?;
        // What counts is what lies there now: another process may have been first.
        Self::read(&path)?.ok_or_else(|| {
            let message = format!("{} vanished as it was made", path.display());
            Error::new(ErrorKind::Unavailable, message)
        })
    }

    /// The name that peers know this node by.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    /// The key, for libp2p.
    #[must_use]
    pub const fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    /// `None`: there is no such file.
    fn read(path: &Path) -> Result<Option<Self>> {
        let cannot = || format!("cannot read the key of this node, {}", path.display());
        let opened = OpenOptions::new()
            .read(true)
            // A pipe in its place must not hold the start up.
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        let file = match opened {
            Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
            opened => opened.context(ErrorKind::Unavailable, cannot)?,
        };
        let meta = file.metadata().context(ErrorKind::Unavailable, cannot)?;
        if !meta.is_file() {
            return Err(unusable(path, Unusable::NoFile));
        }
        if meta.mode() & OTHERS != 0 {
            return Err(unusable(path, Unusable::Readable(meta.mode() & 0o7777)));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_LEN + 1));
        file.take(FILE_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .context(ErrorKind::Unavailable, cannot)?;
        let keypair = decode(&bytes).map_err(|reason| unusable(path, reason))?;
        Ok(Some(Self { keypair }))
    }
}

/// Why a file is not taken for a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Unusable {
    #[error("it is no regular file; move it away")]
    NoFile,
    #[error("others than its owner may use it (mode {0:o}); run chmod 600 on it")]
    Readable(u32),
    #[error("it is {0}, and only ed25519 keys are taken; move it away")]
    Kind(&'static str),
    #[error("it is {0} bytes long instead of {FILE_LEN}; put a backup back, or move it away")]
    Length(usize),
    #[error("it is longer than {FILE_LEN} bytes; put a backup back, or move it away")]
    TooLong,
    #[error("it holds no libp2p private key; put a backup back, or move it away")]
    NoKey,
    #[error("its two halves do not belong together; put a backup back, or move it away")]
    Damaged,
}

fn unusable(path: &Path, reason: Unusable) -> Error {
    let advice = match reason {
        Unusable::Readable(_) => "",
        // The next start makes a new one, which is worth a warning.
        _ => " (a new key is a new PeerID)",
    };
    let message = format!(
        "the key of this node, {}, cannot be used{advice}",
        path.display()
    );
    Error::with(ErrorKind::Corrupt, message, reason)
}

/// The key that `bytes` are: in the one form that this node writes, and no other.
fn decode(bytes: &[u8]) -> Result<Keypair, Unusable> {
    match bytes {
        [0x08, 0x00, ..] => return Err(Unusable::Kind("an RSA key")),
        [0x08, 0x02, ..] => return Err(Unusable::Kind("a secp256k1 key")),
        [0x08, 0x03, ..] => return Err(Unusable::Kind("an ECDSA key")),
        _ if bytes.len() > FILE_LEN => return Err(Unusable::TooLong),
        _ if bytes.len() < FILE_LEN => return Err(Unusable::Length(bytes.len())),
        _ if !bytes.starts_with(&HEAD) => return Err(Unusable::NoKey),
        _ => {}
    }
    Keypair::from_protobuf_encoding(bytes).map_err(|_| Unusable::Damaged)
}

/// Makes a key unless there is one. What a crash leaves under a temporary name was nobody's key,
/// and is removed by the next start.
fn create(data_dir: &Path, path: &Path) -> std::io::Result<()> {
    durable::create_dir_all(data_dir).map_err(DurableError::into_io)?;
    let directory = File::open(data_dir)?;
    // Of several first starts one makes the key, and the others wait.
    let is_alone = flock(&directory, FlockOperation::LockExclusive).is_ok();
    let keypair = Keypair::generate_ed25519();
    let encoded = keypair.to_protobuf_encoding();
    let encoded = Zeroizing::new(encoded.map_err(std::io::Error::other)?);
    debug_assert!(decode(&encoded).is_ok());
    let mut temporary = match is_alone {
        true => Temporary::of_owner(path, durable::MODE_PRIVATE)?,
        // Not every file system has such locks: each takes a name of its own.
        false => Temporary::new(path, durable::MODE_PRIVATE)?,
    };
    let mode = std::fs::Permissions::from_mode(durable::MODE_PRIVATE);
    temporary.file.set_permissions(mode)?;
    temporary.file.write_all(&encoded)?;
    let published = temporary.publish_unless_there();
    published.map(drop).map_err(DurableError::into_io)
}

#[cfg(test)]
mod tests;
