//! `carrack export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;

use crate::cli::Env;
use crate::cli::args::ExportArgs;
use crate::cli::output::write_error;
use crate::cli::pipe;
use crate::cli::written;
use crate::durable::{self, Temporary};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::store::block::{Blocks, block_len};
use crate::store::car_stream::{Batch, CarPlan, CarRequest};
use carrack_formats::Cid;
use carrack_formats::cid::DAG_PB;
use carrack_formats::dag::pb::PbNode;
use carrack_formats::walk::{Scope, WalkLimits};

/// Writes the DAG below the target as a CAR. A file appears under its name only when it is whole.
///
/// # Errors
/// Those of resolving, reading and writing; `Invalid` for a file of the store or of what is served.
/// `Partial` if it is whole as far as can be told: the
/// links of a block's codec are not known.
pub fn run(args: &ExportArgs, env: &mut Env<'_>) -> Result<()> {
    let scope = match args.dag_scope.as_str() {
        "all" => Scope::All,
        "entity" => Scope::Entity,
        "block" => Scope::Block,
        other => {
            let what = format!("no scope {other:?}: there are all, entity and block");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
    };
    let (target, resolved) = super::resolve(&args.target, env)?;
    let request = CarRequest {
        root: target.root,
        resolved,
        scope,
        range: None,
        dups: args.dups,
    };
    let expected = match scope {
        Scope::All => dag_len(env.blocks, &request.resolved.terminus),
        _ => None,
    };
    let plan = CarPlan::new(env.blocks.clone(), request, WalkLimits::default());
    if args.output == Path::new("-") {
        return write_car(plan, expected, env, None);
    }
    let path = env.path(&args.output);
    let cannot = || format!("cannot write {}", path.display());
    written::check(&path, env.blocks)?;
    // Into a device or a pipe the bytes go as they come.
    let kind = std::fs::metadata(&path).map(|meta| meta.file_type());
    if kind.as_ref().is_ok_and(FileTypeExt::is_fifo) {
        let stop = env.stop;
        let pipe = pipe::open_fifo(&path, stop);
        let mut pipe = pipe.context(ErrorKind::Unavailable, cannot)?;
        return write_car(plan, expected, env, Some(&mut pipe));
    }
    if kind.is_ok_and(|kind| !kind.is_file()) {
        let file = File::options()
            .write(true)
            .open(&path)
            .context(ErrorKind::Unavailable, cannot)?;
        return write_car(plan, expected, env, Some(&mut BufWriter::new(file)));
    }
    let made = Temporary::new(&path, durable::MODE_SHARED);
    let mut made = made.context(ErrorKind::Unavailable, cannot)?;
    let outcome = write_car(plan, expected, env, Some(&mut made.file));
    if matches!(&outcome, Err(error) if error.kind() != ErrorKind::Partial) {
        return outcome;
    }
    made.publish().context(ErrorKind::Unavailable, cannot)?;
    outcome
}

/// Bytes of a DAG's blocks as its first node tells, which may lie: for the eye alone.
fn dag_len(blocks: &Blocks, cid: &Cid) -> Option<u64> {
    let own = blocks
        .locate(cid.hash())
        .ok()?
        .first()
        .map(|at| block_len(*at))?;
    if cid.codec() != DAG_PB {
        return Some(own as u64);
    }
    let block = blocks.get_blocking(cid).ok()?;
    let node = PbNode::parse(&block).ok()?;
    let below = node.links().map(|link| link.tsize.unwrap_or(0));
    Some(below.fold(own as u64, u64::saturating_add))
}

/// Reads batches, a thread each.
fn read_all(batches: Vec<Batch>) -> Vec<Result<bytes::Bytes>> {
    std::thread::scope(|scope| {
        let reads: Vec<_> = batches
            .into_iter()
            .map(|batch| {
                let read = move || Batch::read(batch);
                std::thread::Builder::new().spawn_scoped(scope, read)
            })
            .collect();
        let failed = || Error::new(ErrorKind::Internal, "a reading thread failed");
        let end = |read: std::io::Result<ScopedJoinHandle<'_, _>>| {
            let read = read.context(ErrorKind::Unavailable, || {
                "cannot start a thread that reads".to_owned()
            })?;
            read.join().unwrap_or_else(|_| Err(failed()))
        };
        reads.into_iter().map(end).collect()
    })
}

/// Batches are read on all cores and written in order.
fn write_car(
    mut plan: CarPlan,
    expected: Option<u64>,
    env: &mut Env<'_>,
    mut file: Option<&mut dyn Write>,
) -> Result<()> {
    let mut done = 0;
    let mut write = |env: &mut Env<'_>, bytes: &[u8]| {
        done += bytes.len() as u64;
        env.out.update("exported", done, expected);
        match &mut file {
            Some(file) => file.write_all(bytes).map_err(write_error),
            None => env.out.data().write_all(bytes).map_err(write_error),
        }
    };
    // A header alone would be a whole CAR: nothing is written before the first blocks are good.
    let mut header = Some(plan.header());
    let ended = loop {
        let mut batches = Vec::new();
        let mut ended = None;
        while ended.is_none() && batches.len() < 2 * super::n_threads() {
            match plan.next_batch_blocking() {
                Ok(Some(batch)) => batches.push(batch),
                Ok(None) => ended = Some(Ok(())),
                Err(error) => ended = Some(Err(error)),
            }
        }
        for frame in read_all(batches) {
            let frame = frame?;
            if let Some(header) = header.take() {
                write(env, &header)?;
            }
            write(env, &frame)?;
        }
        if env.stop.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "interrupted; the CAR is not whole",
            ));
        }
        if let Some(ended) = ended {
            break ended;
        }
    };
    let is_kept = ended
        .as_ref()
        .map_or_else(|error| error.kind() == ErrorKind::Partial, |()| true);
    if let Some(header) = header.filter(|_| is_kept) {
        write(env, &header)?; // Of an identity CID, which is no block.
    }
    if let Some(file) = file {
        file.flush().map_err(write_error)?;
    }
    ended
}
