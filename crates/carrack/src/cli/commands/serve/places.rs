//! What `serve` takes in before it serves: the places of its arguments, one after another.
//!
//! In       folders, CARs and URLs; flags as `add` and `import` have them.
//! Out      roots, printed with the URL under which they are served; the number of places that are
//!          not, each named.
//! Limits   [`ROOTS_SHOWN_MAX`] roots of a place, or of earlier runs, are printed for people.
//! Not here what is watched afterwards (`watch`).

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::json;

use crate::cli::Env;
use crate::cli::args::ServeArgs;
use crate::cli::commands::several::ends_all;
use crate::cli::commands::{add, import};
use crate::cli::output::{Output, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::AddedRoot;
use crate::ingest::remote::target::is_url;
use crate::store::block::Blocks;

/// Roots that are printed for people.
const ROOTS_SHOWN_MAX: usize = 20;

/// Adds what is named, or lists what was added before; gives how many places could not be served.
/// Those are named, and the node serves the others; if there are none, it is an error.
pub(super) fn add_all(
    args: &ServeArgs,
    blocks: &Blocks,
    address: SocketAddr,
    out: &mut Output,
    stop: &AtomicBool,
) -> Result<usize> {
    if args.paths.is_empty() {
        return list_roots(blocks, address, out).map(|()| 0);
    }
    let directory = PathBuf::new(); // Relative paths start where the process does.
    let mut stdin = std::io::empty();
    let (directory, stdin) = (directory.as_path(), &mut stdin);
    let environment = blocks.extents().sources().environment();
    let mut env = Env {
        blocks,
        p2p: None,
        environment: &environment,
        directory,
        out,
        stdin,
        stop,
    };
    let mut n_failed = 0;
    for place in &args.paths {
        match add_one(args, &mut env, place) {
            Ok(roots) => print_roots(env.out, &roots, address)?,
            Err(error) if args.paths.len() == 1 || ends_all(&error, &env) => return Err(error),
            Err(error) => {
                n_failed += 1;
                let (place, error) = (shown(place.as_encoded_bytes()), error.chain());
                let error = shown(error.as_bytes());
                env.out
                    .note(&format!("warning: {place} is not served: {error}"));
            }
        }
    }
    if n_failed == args.paths.len() {
        return Err(not_served(n_failed, n_failed));
    }
    if n_failed > 0 {
        let error = not_served(n_failed, args.paths.len());
        env.out.note(&format!("warning: {error}"));
    }
    env.out.flush()?;
    Ok(n_failed)
}

/// Adds or imports one place.
fn add_one(args: &ServeArgs, env: &mut Env<'_>, place: &OsString) -> Result<Vec<AddedRoot>> {
    let path = Path::new(place);
    if is_car(place) {
        let options = import::options(&args.car);
        let report = match is_url(place) {
            true => import::import_url(env, place, &options, args.car.verify, false)?,
            false => crate::ingest::import::import(
                env.blocks.store(),
                path,
                &options,
                env.out,
                env.stop,
            )?,
        };
        import::tell_problems(env, place, &report);
        return Ok(report.roots);
    }
    let options = add::options(&args.dag)?;
    let report = add::add_places(env, std::slice::from_ref(place), &options)?;
    add::summary(env, &report);
    // A node that serves most of a folder is better than none: it says what is missing.
    if let Err(error) = add::left_out(env, &report, options.strict) {
        if options.strict {
            return Err(error);
        }
        env.out.note(&format!("warning: {error}"));
    }
    Ok(report.roots)
}

/// The roots of one place, or the first of very many.
fn print_roots(out: &mut Output, roots: &[AddedRoot], address: SocketAddr) -> Result<()> {
    let n_shown = match out.json {
        true => roots.len(),
        false => roots.len().min(ROOTS_SHOWN_MAX),
    };
    for root in roots.iter().take(n_shown) {
        print_root(out, root, address)?;
    }
    if n_shown < roots.len() {
        let n = roots.len() - n_shown;
        out.note(&format!("and {n} more roots: see carrack ls"));
    }
    Ok(())
}

/// Whether a place is a CAR, by its name: a file of this machine, or something elsewhere.
pub(super) fn is_car(place: &OsString) -> bool {
    let path = Path::new(place);
    ends_with_car(path) && (is_url(place) || path.is_file())
}

fn ends_with_car(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("car"))
}

pub(super) fn print_root(out: &mut Output, root: &AddedRoot, address: SocketAddr) -> Result<()> {
    let url = format!("http://{address}/ipfs/{}", root.cid);
    if out.json {
        return out.object(&json!({
            "cid": root.cid.to_string(),
            "path": root.path.to_string_lossy(),
            "bytes": root.bytes,
            "blocks": root.n_blocks,
            "url": url,
        }));
    }
    out.line(&root.cid.to_string())?;
    out.line(&format!(
        "  {}",
        shown(root.path.as_os_str().as_encoded_bytes())
    ))?;
    out.line(&format!("  {url}?format=car"))
}

fn list_roots(blocks: &Blocks, address: SocketAddr, out: &mut Output) -> Result<()> {
    let roots = blocks.store().catalog().roots()?;
    if roots.is_empty() {
        out.note("nothing was added yet: carrack add PATH, also while this runs");
    }
    for root in roots.iter().take(ROOTS_SHOWN_MAX) {
        let path = PathBuf::from(String::from_utf8_lossy(&root.path).into_owned());
        let (cid, bytes, n_blocks, n_files) = (root.cid, root.bytes, root.n_blocks, root.n_files);
        print_root(
            out,
            &AddedRoot {
                cid,
                path,
                bytes,
                n_blocks,
                n_files,
            },
            address,
        )?;
    }
    if roots.len() > ROOTS_SHOWN_MAX {
        out.note(&format!(
            "and {} more roots: see carrack ls",
            roots.len() - ROOTS_SHOWN_MAX
        ));
    }
    out.flush()
}

pub(super) fn not_served(n_failed: usize, n_places: usize) -> Error {
    let what = format!("{n_failed} of {n_places} places were not served");
    Error::new(ErrorKind::Partial, what)
}
