//! `carrack source add`.

use std::sync::Arc;

use std::path::PathBuf;

use serde_json::json;

use super::place;
use crate::cli::Env;
use crate::cli::args::SourceAddArgs;
use crate::cli::commands::add::{left_out, options, print_root, summary};
use crate::cli::output::shown;
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::AddReport;
use crate::ingest::add::{AddOptions, add_of};
use crate::ingest::remote;
use crate::ingest::remote::target::Target;
use crate::ingest::sink::Origin;
use crate::source::look::answers;
use crate::store::catalog::{Batch, SourceRecord};

/// Configures a source once it has answered, and adds what is there.
///
/// # Errors
/// `Invalid` for what cannot be a source, or is one already; those of its first answer, in which
/// case nothing is configured; those of adding.
pub(super) fn run(args: &SourceAddArgs, env: &mut Env<'_>) -> Result<()> {
    let options = options(&args.dag)?;
    let mut record = place::record(&args.place, &args.access, env)?;
    if let Some(name) = &args.name {
        place::check_name(name)?;
        record.name.clone_from(name);
    }
    is_new(&record, env)?;
    let is_folder = record.url.starts_with('/');
    if !is_folder {
        let source = env.sources().open_in(&record, env.environment)?;
        // A wrong name or key is told now, not by the first reader.
        let answered = env.sources().handle()?.block_on(answers(source.as_ref()));
        let answered = answered.map_err(|error| {
            let kind = Error::from(error.clone()).kind();
            Error::with(kind, format!("cannot list {}", record.url), error)
        });
        if !answered? {
            env.out.note("there is nothing at this place yet");
        }
    }
    let id = configure(&record, env)?;
    tracing::info!(name = record.name, url = record.url, "source configured");
    if args.no_scan {
        return told(&record, env);
    }
    if !env.out.json {
        told(&record, env)?;
    }
    let report = scan(id, &record, &options, env)?;
    for root in &report.roots {
        print_root(env, root, false, &report)?;
    }
    summary(env, &report);
    left_out(env, &report, options.strict)
}

/// Adds what lies in a source.
pub(super) fn scan(
    id: u32,
    record: &SourceRecord,
    options: &AddOptions,
    env: &mut Env<'_>,
) -> Result<AddReport> {
    let store = env.blocks.store();
    if record.url.starts_with('/') {
        let base = PathBuf::from(&record.url);
        let origin = Origin {
            source: id,
            base: base.clone(),
            shown: Vec::new(),
        };
        return add_of(store, origin, &[base], options, env.out, env.stop);
    }
    let target = Target {
        source: env.sources().get(id)?,
        path: Vec::new(),
        is_new: false, // Somebody asked for it.
    };
    let sources = Arc::clone(env.blocks.extents().sources());
    remote::add(store, &sources, &[target], options, env.out, env.stop)
}

fn is_new(record: &SourceRecord, env: &Env<'_>) -> Result<()> {
    for (_, known) in env.blocks.store().catalog().sources()? {
        let name = shown(known.name.as_bytes());
        if known.url == record.url && known.endpoint == record.endpoint {
            let what = format!("this is source {name} already: see carrack source rescan {name}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if known.name == record.name {
            let url = shown(known.url.as_bytes());
            let what = format!("{name} is the name of {url}: give another by --name");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
    }
    Ok(())
}

fn configure(record: &SourceRecord, env: &Env<'_>) -> Result<u32> {
    let store = env.blocks.store();
    let _ingest = store.ingest_lock(); // Nobody else takes this id or name meanwhile.
    is_new(record, env)?;
    let id = store.catalog().next_source();
    let mut batch = Batch::new();
    batch.put_source(id, record);
    store.commit(batch)?;
    if record.credentials == "env" {
        env.sources().lend(id, env.environment);
    }
    Ok(id)
}

fn told(record: &SourceRecord, env: &mut Env<'_>) -> Result<()> {
    if env.out.json {
        return env
            .out
            .object(&json!({ "name": record.name, "url": record.url }));
    }
    let (name, url) = (shown(record.name.as_bytes()), shown(record.url.as_bytes()));
    let text = match record.name == record.url {
        true => format!("source {name}"),
        false => format!("source {name}  {url}"),
    };
    env.out.line(&text)
}
