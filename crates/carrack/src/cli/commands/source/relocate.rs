//! `carrack source relocate`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde_json::json;

use super::{find, place};
use crate::cli::Env;
use crate::cli::args::SourceRelocateArgs;
use crate::cli::output::{bytes, shown};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::remote::target::is_url;
use crate::source::url::is_same_origin;
use crate::store::catalog::SourceRecord;
use crate::store::relocate::{NewPlace, Options, Report, Subject, relocate};

/// Points a source at a new place once that has proved to hold the same data.
///
/// # Errors
/// `NotFound` for what is no source and no folder that was added; `Changed` if the new place holds
/// other data: nothing is changed then.
pub(super) fn run(args: &SourceRelocateArgs, env: &mut Env<'_>) -> Result<()> {
    let (subject, place) = match source_of(args, env)? {
        Some((id, record)) => of_source(args, id, &record, env)?,
        None => of_folder(args, env)?,
    };
    let options = Options {
        samples: args.sample,
        missing_max: args.allow_missing,
        dry_run: args.dry_run,
    };
    let mut report = Report::default();
    let outcome = relocate(
        env.blocks,
        &subject,
        &place,
        &options,
        env.stop,
        &mut report,
    );
    if let (Ok(()), false, Subject::Source(id, new)) = (&outcome, args.dry_run, &subject)
        && new.credentials == "env"
    {
        env.sources().lend(*id, env.environment);
    }
    told(args, &report, outcome.is_ok(), env)?;
    outcome
}

/// The configured source that is to be moved; `None`: a folder of this machine is.
fn source_of(args: &SourceRelocateArgs, env: &Env<'_>) -> Result<Option<(u32, SourceRecord)>> {
    let looks_like_path = args.name.as_bytes().contains(&b'/') && !is_url(&args.name);
    match args.name.to_str() {
        Some(name) => match find(name, env) {
            Err(error) if error.kind() == ErrorKind::NotFound && looks_like_path => Ok(None),
            found => found.map(Some),
        },
        None => Ok(None),
    }
}

fn of_source(
    args: &SourceRelocateArgs,
    id: u32,
    old: &SourceRecord,
    env: &Env<'_>,
) -> Result<(Subject, NewPlace)> {
    let mut new = place::record(&args.place, &args.access, env)?;
    new.created_unix = old.created_unix;
    if old.name != old.url {
        new.name.clone_from(&old.name);
    }
    if args.access.credentials.is_none() && old.credentials != new.credentials && is_remote(&new) {
        if !is_same_service(old, &new) {
            // A login is for the server that it was made for.
            let what = "the new place is another service, which does not get the credentials of \
                        the old one: say what it gets, --credentials none if nothing";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        new.credentials.clone_from(&old.credentials);
    }
    for (other, known) in env.blocks.store().catalog().sources()? {
        if other != id && known.url == new.url && known.endpoint == new.endpoint {
            let what = format!("this is source {} already", shown(known.name.as_bytes()));
            return Err(Error::new(ErrorKind::Invalid, what));
        }
    }
    let place = if is_remote(&new) {
        let source = env.sources().open_in(&new, env.environment)?;
        NewPlace::Elsewhere(source, env.sources().handle()?)
    } else {
        NewPlace::Folder(PathBuf::from(&new.url))
    };
    Ok((Subject::Source(id, new), place))
}

fn is_remote(record: &SourceRecord) -> bool {
    !record.url.starts_with('/')
}

/// Whether two places are reached at the same server, or are buckets of the same endpoint.
fn is_same_service(old: &SourceRecord, new: &SourceRecord) -> bool {
    let is_web = |record: &SourceRecord| record.url.starts_with("http");
    match (is_web(old), is_web(new)) {
        (true, true) => is_same_origin(&old.url, &new.url),
        (false, false) => {
            let scheme = |record: &SourceRecord| record.url.split(':').next().map(String::from);
            is_remote(old) && old.endpoint == new.endpoint && scheme(old) == scheme(new)
        }
        _ => false,
    }
}

fn of_folder(args: &SourceRelocateArgs, env: &Env<'_>) -> Result<(Subject, NewPlace)> {
    if is_url(&args.place) {
        let what = "a folder can move to another folder; one that is to become a bucket must be \
                    a source: carrack source add";
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    // The old place need not exist any more: it is taken as it is written.
    let old = plain(&env.path(Path::new(&args.name)));
    let new = env.path(Path::new(&args.place));
    let cannot = || format!("cannot look at {}", new.display());
    let new = std::fs::canonicalize(&new).context(ErrorKind::Invalid, cannot)?;
    let place = NewPlace::Folder(new.clone());
    Ok((Subject::Folder(old, new), place))
}

/// A path without `.` and `..`, as far as its text tells.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

fn told(
    args: &SourceRelocateArgs,
    report: &Report,
    is_proved: bool,
    env: &mut Env<'_>,
) -> Result<()> {
    let is_done = is_proved && !args.dry_run;
    if env.out.json {
        let list = |list: &[(PathBuf, String)]| -> Vec<_> {
            list.iter()
                .map(|(path, why)| json!({ "path": path.to_string_lossy(), "reason": why }))
                .collect()
        };
        return env.out.object(&json!({
            "relocated": is_done,
            "objects": report.n_objects,
            "proved_by_validator": report.n_proved,
            "blocks_sampled": report.n_sampled,
            "bytes_sampled": report.bytes_sampled,
            "missing": report.n_missing,
            "missing_objects": list(&report.missing),
            "failed": list(&report.failed),
            "roots": report.n_roots,
        }));
    }
    for (what, list) in [("missing", &report.missing), ("differs", &report.failed)] {
        for (path, why) in list {
            let path = shown(path.as_os_str().as_encoded_bytes());
            env.out.line(&format!("{what}  {path}  {why}"))?;
        }
    }
    let rest = report.n_missing.saturating_sub(report.missing.len() as u64);
    if rest > 0 {
        env.out.line(&format!("and {rest} more missing"))?;
    }
    env.out.line(&format!(
        "{} objects: {} proved by their validators, {} missing; {} blocks ({}) read and hashed",
        report.n_objects,
        report.n_proved,
        report.n_missing,
        report.n_sampled,
        bytes(report.bytes_sampled),
    ))?;
    if is_proved && report.n_objects == 0 {
        env.out
            .note("nothing was added from it yet, so there was nothing to compare");
    }
    match (is_done, is_proved) {
        (true, _) => env.out.line(&format!("moved, {} roots", report.n_roots)),
        (false, true) => env.out.line("nothing was changed: a dry run"),
        (false, false) => Ok(()),
    }
}
