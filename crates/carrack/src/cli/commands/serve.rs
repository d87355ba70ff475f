//! `carrack serve`.
use std::path::Path;
use std::sync::Arc;
use crate::cli::args::ServeArgs;
use crate::cli::output::Output;
use crate::error::Result;
use crate::store::Store;
/// Serves.
///
/// # Errors
/// x
pub fn run(_store: Arc<Store>, _data_dir: &Path, _args: &ServeArgs, _out: &mut Output) -> Result<()> {
    Ok(())
}
