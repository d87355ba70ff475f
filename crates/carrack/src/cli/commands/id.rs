//! `carrack id`.

use std::path::Path;

use serde_json::json;

use crate::cli::output::Output;
use crate::error::Result;
use crate::node::identity::Identity;

/// Prints the PeerID of the node whose data lie in `data_dir`, alone on its line. Without a key one
/// is made, which is the one that `serve` will use.
///
/// # Errors
/// Those of [`Identity::open_or_create`].
pub fn run(data_dir: &Path, out: &mut Output) -> Result<()> {
    let peer_id = Identity::open_or_create(data_dir)?.peer_id().to_string();
    match out.json {
        true => out.object(&json!({ "peer_id": peer_id })),
        false => out.line(&peer_id),
    }
}
