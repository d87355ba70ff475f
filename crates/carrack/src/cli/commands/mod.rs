//! One file a command.

pub mod add;
pub mod cat;
pub mod cid;
pub mod export;
pub mod id;
pub mod import;
pub mod index;
pub mod ls;
pub mod peers;
pub mod rm;
pub mod serve;
mod several;
pub mod source;
pub mod status;
#[cfg(test)]
mod tests;
pub mod verify;

use std::ffi::OsStr;

use carrack_formats::walk::{ResolveLimits, Resolved};

use crate::cli::Env;
use crate::cli::args::Command;
use crate::cli::target::{self, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::store::resolve::resolve_blocking;

/// Carries out a command that works on an open store.
///
/// # Errors
/// Those of the command.
pub fn run(command: &Command, env: &mut Env<'_>) -> Result<()> {
    match command {
        Command::Add(args) => add::run(args, env),
        Command::Import(args) => import::run(args, env),
        Command::Ls(args) => ls::run(args, env),
        Command::Cat(args) => cat::run(args, env),
        Command::Export(args) => export::run(args, env),
        Command::Verify(args) => verify::run(args, env),
        Command::Status => status::run(env),
        Command::Index(command) => index::run(command, env),
        Command::Source(command) => source::run(command, env),
        Command::Rm(args) => rm::run(args, env),
        Command::Cid(command) => cid::run(command, env.out),
        Command::Id => id::run(env.blocks.store().dir(), env.out),
        Command::Peers => peers::run(env),
        Command::Serve(_) => Err(Error::new(
            ErrorKind::Busy,
            "another carrack serves this store already",
        )),
    }
}

/// Follows what a person wrote to where it ends.
fn resolve(text: &OsStr, env: &Env<'_>) -> Result<(Target, Resolved)> {
    let target = target::parse(text)?;
    let resolved = resolve_blocking(
        env.blocks,
        target.root,
        target.segments.clone(),
        ResolveLimits::default(),
    )?;
    Ok((target, resolved))
}

/// Threads for hashing.
fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
