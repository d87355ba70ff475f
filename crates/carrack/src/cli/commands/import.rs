//! `carrack import`.

use std::ffi::OsStr;
use std::path::Path;

use carrack_formats::car::CarLimits;
use serde_json::json;

use super::several::Several;
use crate::cli::Env;
use crate::cli::args::{CarArgs, ImportArgs};
use crate::cli::output::{Output, bytes, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::ingest::import::remote::import_remote;
use crate::ingest::import::{ImportOptions, ImportReport, import, import_copy};
use crate::ingest::remote::target::is_url;
use crate::store::location::Location;

/// Largest block accepted with `--allow-big-blocks`, with room for its CID, in bytes.
const BIG_SECTION_LEN_MAX: u64 = (8 << 20) + 256;
const _: () = assert!(BIG_SECTION_LEN_MAX < Location::LEN_END as u64);

/// Imports the arguments and prints their roots.
///
/// # Errors
/// `Verification`, `Invalid`; `Partial` if salvaging passed bad blocks over, or some of several
/// CARs were not taken.
pub fn run(args: &ImportArgs, env: &mut Env<'_>) -> Result<()> {
    let (mut n_bad, mut n_untold) = (0, 0);
    let mut several = Several::new("imported", args.files.len());
    for file in &args.files {
        let imported = one(args, env, file);
        if let Some(report) = several.take(env, file.as_encoded_bytes(), imported)? {
            print(env, file, &report, args.quieter)?;
            n_bad += report.n_bad;
            n_untold += report.n_untold;
        }
    }
    several.conclude()?;
    if n_bad > 0 {
        let mut what = format!("{n_bad} blocks were bad and are not served");
        if n_untold > 0 {
            what = format!("at least {what}: {n_untold} bytes do not tell which blocks they are");
        }
        return Err(Error::new(ErrorKind::Partial, what));
    }
    Ok(())
}

/// Options without any of the command's switches.
#[must_use]
pub fn default_options() -> ImportOptions {
    let (salvage, limits) = (false, CarLimits::default());
    ImportOptions {
        salvage,
        legacy_hashes: false,
        limits,
        n_threads: super::n_threads(),
    }
}

/// Options as the switches say.
#[must_use]
pub fn options(args: &CarArgs) -> ImportOptions {
    let mut options = ImportOptions {
        salvage: args.salvage,
        legacy_hashes: args.allow_legacy_hashes,
        ..default_options()
    };
    options.limits.allow_zero_padding = args.allow_padding;
    if args.allow_big_blocks {
        options.limits.section_len_max = BIG_SECTION_LEN_MAX;
    }
    options
}

fn one(args: &ImportArgs, env: &mut Env<'_>, file: &OsStr) -> Result<ImportReport> {
    let options = options(&args.car);
    if is_url(file) {
        return import_url(env, file, &options, args.car.verify, args.copy);
    }
    let store = env.blocks.store();
    let file = Path::new(file);
    if file == Path::new("-") {
        if !args.copy {
            let what = "a CAR on standard input lies nowhere: --copy keeps its blocks";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        return import_copy(store, file, env.stdin, &options, env.out, env.stop);
    }
    let path = env.path(file);
    if !args.copy {
        return import(store, &path, &options, env.out, env.stop);
    }
    let mut input = std::fs::File::open(&path).map_err(|error| {
        Error::with(
            ErrorKind::Invalid,
            format!("cannot open {}", path.display()),
            error,
        )
    })?;
    let len = input.metadata().ok().map(|meta| meta.len());
    let mut progress = OfKnownLength { out: env.out, len };
    import_copy(store, &path, &mut input, &options, &mut progress, env.stop)
}

/// Progress through a stream whose length this command knows.
struct OfKnownLength<'a> {
    out: &'a mut Output,
    len: Option<u64>,
}

impl Progress for OfKnownLength<'_> {
    fn update(&mut self, what: &str, done: u64, total: Option<u64>) {
        self.out.update(what, done, total.or(self.len));
    }

    fn note(&mut self, text: &str) {
        self.out.note(text);
    }
}

/// Imports a CAR that lies elsewhere.
///
/// # Errors
/// As [`run`].
pub fn import_url(
    env: &mut Env<'_>,
    url: &OsStr,
    options: &ImportOptions,
    verify: bool,
    copy: bool,
) -> Result<ImportReport> {
    if copy {
        let what = "--copy takes CARs of this machine and standard input: fetch it first";
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let target = env.target_in_parent(url)?;
    let (store, sources) = (env.blocks.store(), env.blocks.extents().sources());
    let (out, stop) = (&mut *env.out, env.stop);
    let imported = import_remote(store, sources, &target, options, verify, out, stop);
    env.settle(&[target]);
    imported
}

/// One CAR's roots.
///
/// # Errors
/// Those of writing them.
pub fn print(env: &mut Env<'_>, file: &OsStr, report: &ImportReport, quieter: bool) -> Result<()> {
    let name = shown(file.as_encoded_bytes());
    for root in &report.roots {
        if quieter {
            env.out.line(&root.cid.to_string())?;
        } else if env.out.json {
            env.out.object(&json!({
                "cid": root.cid.to_string(),
                "path": root.path.to_string_lossy(),
                "bytes": root.bytes,
                "blocks": root.n_blocks,
                "unchanged": report.unchanged,
                "bad": report.n_bad,
                "untold_bytes": report.n_untold,
                "gone": report.n_gone,
            }))?;
        } else {
            env.out
                .line(&format!("{}  {}  {name}", root.cid, bytes(root.bytes)))?;
        }
    }
    tell_problems(env, file, report);
    if !quieter {
        let how = match &report.index {
            _ if report.unchanged => "unchanged since it was imported".to_owned(),
            Some(index) => format!("found by {index}; each is verified when it is read"),
            None => "verified".to_owned(),
        };
        let (n, len) = (report.n_blocks, bytes(report.bytes));
        env.out.note(&format!("{name}: {n} blocks, {len}, {how}"));
    }
    Ok(())
}

/// What is wrong with a CAR that was taken all the same.
pub fn tell_problems(env: &mut Env<'_>, file: &OsStr, report: &ImportReport) {
    let name = shown(file.as_encoded_bytes());
    for problem in &report.problems {
        env.out.note(&format!("{name}: {problem}"));
    }
    for root in &report.roots_missing {
        env.out
            .note(&format!("{name}: its root {root} is not in it"));
    }
    if report.n_gone > 0 {
        let n = report.n_gone;
        env.out.note(&format!(
            "warning: {name}: it holds {n} blocks fewer than when it was imported before; \
             what only the older one held is not served any more"
        ));
    }
}
