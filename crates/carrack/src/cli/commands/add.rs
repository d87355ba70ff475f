//! `carrack add`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use carrack_formats::unixfs::profile::{self, Profile};
use serde_json::json;

use super::several::{Several, ends_all};
use crate::cli::Env;
use crate::cli::args::{AddArgs, DagArgs};
use crate::cli::output::{bytes, shown};
use crate::cli::redact::redacted;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::add::{AddOptions, add};
use crate::ingest::remote;
use crate::ingest::remote::target::{Target, is_url};
use crate::ingest::{AddReport, AddedRoot};

/// Adds the arguments and prints their roots.
///
/// # Errors
/// `Invalid` for arguments that make no sense; `Partial` if files had to be left out, or some of
/// several places were not added.
pub fn run(args: &AddArgs, env: &mut Env<'_>) -> Result<()> {
    let options = AddOptions {
        wrap: args.wrap,
        ..options(&args.dag)?
    };
    let mut report = add_places(env, &args.paths, &options)?;
    for root in &report.roots {
        print_root(env, root, args.quieter, &report)?;
    }
    if !args.quieter {
        summary(env, &report);
    }
    let mut several = Several::new("added", args.paths.len());
    for (path, error) in report.failed.drain(..) {
        several.failed(env, path.as_os_str().as_encoded_bytes(), error);
    }
    let is_whole = left_out(env, &report, options.strict);
    several.conclude().and(is_whole)
}

/// Adds what lies on this machine and what lies elsewhere, in the order in which it is named. Of
/// several places the report names those that could not be added.
///
/// # Errors
/// Those of both, of a single place or if all are to be wrapped or taken strictly; `Invalid` if
/// paths and URLs are to be wrapped together.
pub fn add_places(
    env: &mut Env<'_>,
    places: &[OsString],
    options: &AddOptions,
) -> Result<AddReport> {
    let mut report = AddReport::default();
    let runs: Vec<&[OsString]> = places.chunk_by(|a, b| is_url(a) == is_url(b)).collect();
    if options.wrap && runs.len() > 1 {
        let what = "paths and URLs cannot be wrapped into one directory: add them apart";
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    for run in runs {
        if !run.first().is_some_and(|place| is_url(place)) {
            let paths = run.iter().map(|path| env.path(Path::new(path)));
            let paths: Vec<PathBuf> = paths.collect();
            match add(env.blocks.store(), &paths, options, env.out, env.stop) {
                Ok(added) => report.append(added),
                Err(error) => match (run, ends_all(&error, env)) {
                    // Between URLs; of several paths `add` names those that fail.
                    ([path], false) if places.len() > 1 && !options.wrap && !options.strict => {
                        report.failed.push((PathBuf::from(path), error));
                    }
                    _ => return Err(error),
                },
            }
            continue;
        }
        add_urls(env, run, places.len() > 1, options, &mut report)?;
    }
    Ok(report)
}

fn add_urls(
    env: &mut Env<'_>,
    urls: &[OsString],
    are_several: bool,
    options: &AddOptions,
    report: &mut AddReport,
) -> Result<()> {
    let together = if options.wrap { urls.len() } else { 1 };
    for urls in urls.chunks(together.max(1)) {
        let mut targets = Vec::with_capacity(urls.len());
        let added = add_together(env, urls, &mut targets, options);
        env.settle(&targets);
        match (added, urls) {
            (Ok(added), _) => report.append(added),
            (Err(error), [url]) if are_several && !options.strict && !ends_all(&error, env) => {
                let url = redacted(&url.to_string_lossy()).into_owned();
                report.failed.push((PathBuf::from(url), error));
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(())
}

fn add_together(
    env: &mut Env<'_>,
    urls: &[OsString],
    targets: &mut Vec<Target>,
    options: &AddOptions,
) -> Result<AddReport> {
    for url in urls {
        targets.push(env.target(url)?);
    }
    let (store, sources) = (env.blocks.store(), env.blocks.extents().sources());
    let (out, stop) = (&mut *env.out, env.stop);
    remote::add(store, sources, targets, options, out, stop)
}

/// What the DAG arguments ask for.
///
/// # Errors
/// `Invalid`, naming the argument.
pub fn options(args: &DagArgs) -> Result<AddOptions> {
    let unknown = || {
        let names = "unixfs-v1-2025 and unixfs-v0-2015";
        Error::new(
            ErrorKind::Invalid,
            format!("no profile {:?}: there are {names}", args.profile),
        )
    };
    let mut profile: Profile = profile::by_name(&args.profile).ok_or_else(unknown)?;
    if let Some(chunker) = &args.chunker {
        let bad = || format!("no chunker {chunker:?}: write size-N, N in bytes");
        let size = chunker
            .strip_prefix("size-")
            .and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| Error::new(ErrorKind::Invalid, bad()))?;
        profile = profile
            .with_chunk_size(size)
            .context(ErrorKind::Invalid, bad)?;
    }
    if let Some(raw) = args.raw_leaves {
        profile = profile.with_raw_leaves(raw);
    }
    if let Some(width) = args.link_width {
        let bad = || format!("link width {width} cannot be used");
        profile = profile
            .with_link_width(width)
            .context(ErrorKind::Invalid, bad)?;
    }
    let n_threads = super::n_threads();
    Ok(AddOptions {
        profile,
        hidden: args.hidden,
        wrap: false,
        strict: args.strict,
        n_threads,
    })
}

/// One root, as the person asked for it.
///
/// # Errors
/// Those of writing it.
pub fn print_root(
    env: &mut Env<'_>,
    root: &AddedRoot,
    quieter: bool,
    report: &AddReport,
) -> Result<()> {
    if quieter {
        return env.out.line(&root.cid.to_string());
    }
    if env.out.json {
        return env.out.object(&json!({
            "cid": root.cid.to_string(),
            "path": root.path.to_string_lossy(),
            "bytes": root.bytes,
            "blocks": root.n_blocks,
            "files": root.n_files,
            "files_hashed": report.files_hashed,
            "bytes_hashed": report.bytes_hashed,
            "left_out": report.n_left_out,
        }));
    }
    let path = shown(root.path.as_os_str().as_encoded_bytes());
    env.out
        .line(&format!("{}  {}  {path}", root.cid, bytes(root.bytes)))
}

/// What happened to the files, for a person.
pub fn summary(env: &mut Env<'_>, report: &AddReport) {
    let mut parts = vec![format!(
        "{} files hashed ({}), {} unchanged",
        report.files_hashed,
        bytes(report.bytes_hashed),
        report.files_unchanged
    )];
    for (n, what) in [
        (report.symlinks, "symlinks kept as such"),
        (
            report.hidden,
            "hidden entries not taken (--hidden takes them)",
        ),
        (report.special, "sockets, FIFOs and devices passed over"),
        (report.n_left_out, "LEFT OUT"),
    ] {
        if n > 0 {
            parts.push(format!("{n} {what}"));
        }
    }
    env.out.note(&parts.join(", "));
}

/// Names what is missing from the result, and makes that the command's outcome.
///
/// # Errors
/// `Partial` if anything is; `Unavailable` if nothing may be: there is no result then.
pub fn left_out(env: &mut Env<'_>, report: &AddReport, strict: bool) -> Result<()> {
    let failures = report.left_out.iter();
    for left in report.own.iter().chain(failures) {
        let path = shown(left.path.as_os_str().as_encoded_bytes());
        env.out.note(&format!("left out: {path}: {}", left.why));
    }
    if report.n_left_out == 0 {
        return Ok(());
    }
    if strict {
        let what = format!(
            "{} files would not be part of the result, so nothing was added (--strict)",
            report.n_left_out
        );
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    let what = format!("{} files are not part of the result", report.n_left_out);
    Err(Error::new(ErrorKind::Partial, what))
}
