//! `carrack source rescan`.

use super::find;
use crate::cli::Env;
use crate::cli::args::SourceRescanArgs;
use crate::error::{Error, ErrorKind, Result};

/// Takes up what appeared, changed or went.
///
/// # Errors
/// `NotFound` for a name that is none; those of adding.
pub(super) fn run(args: &SourceRescanArgs, env: &mut Env<'_>) -> Result<()> {
    if let Some(name) = &args.name {
        find(name, env)?;
    }
    Err(Error::new(ErrorKind::Internal, "rescan comes with ingest"))
}
