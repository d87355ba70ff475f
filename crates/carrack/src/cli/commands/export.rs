//! `carrack export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::cli::Env;
use crate::cli::args::ExportArgs;
use crate::cli::output::write_error;
use crate::durable::{self, Temporary};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::store::car_stream::{Batch, CarPlan, CarRequest};
use carrack_formats::walk::{Scope, WalkLimits};

/// Writes the DAG below the target as a CAR. A file appears under its name only when it is whole.
///
/// # Errors
/// Those of resolving, reading and writing.
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
    let plan = CarPlan::new(env.blocks.clone(), request, WalkLimits::default());
    if args.output == Path::new("-") {
        return write_car(plan, env, None);
    }
    let path = env.path(&args.output);
    let cannot = || format!("cannot write {}", path.display());
    // Into a device or a pipe the bytes go as they come.
    if std::fs::metadata(&path).is_ok_and(|meta| !meta.is_file()) {
        let file = File::options()
            .write(true)
            .open(&path)
            .context(ErrorKind::Unavailable, cannot)?;
        return write_car(plan, env, Some(&mut BufWriter::new(file)));
    }
    let made = Temporary::new(&path, durable::MODE_SHARED);
    let mut made = made.context(ErrorKind::Unavailable, cannot)?;
    write_car(plan, env, Some(&mut made.file))?;
    made.publish().context(ErrorKind::Unavailable, cannot)
}

/// Batches are read on all cores and written in order.
fn write_car(mut plan: CarPlan, env: &mut Env<'_>, mut file: Option<&mut dyn Write>) -> Result<()> {
    let mut done = 0;
    let mut write = |env: &mut Env<'_>, bytes: &[u8]| {
        done += bytes.len() as u64;
        env.out.update("exported", done, None);
        match &mut file {
            Some(file) => file.write_all(bytes).map_err(write_error),
            None => env.out.data().write_all(bytes).map_err(write_error),
        }
    };
    // A header alone would be a whole CAR: nothing is written before the first blocks are good.
    let mut header = Some(plan.header());
    loop {
        let mut batches = Vec::new();
        while batches.len() < 2 * super::n_threads() {
            let Some(batch) = plan.next_batch_blocking()? else {
                break;
            };
            batches.push(batch);
        }
        if batches.is_empty() {
            break;
        }
        let frames: Vec<Result<bytes::Bytes>> = std::thread::scope(|scope| {
            let reads: Vec<_> = batches
                .into_iter()
                .map(|batch| scope.spawn(move || Batch::read(batch)))
                .collect();
            let failed = || Error::new(ErrorKind::Internal, "a reading thread failed");
            reads
                .into_iter()
                .map(|read| read.join().unwrap_or_else(|_| Err(failed())))
                .collect()
        });
        for frame in frames {
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
    }
    if let Some(header) = header {
        write(env, &header)?; // Of an identity CID, which is no block.
    }
    if let Some(file) = file {
        file.flush().map_err(write_error)?;
    }
    Ok(())
}
