//! `carrack source`: places that data lie in, by name.
//!
//! In       names, URLs and folders.
//! Out      rows of the catalog's `sources`; what became of what lies there.
//! Not here what a source does (`source`), the moving (`store::relocate`), the looking
//!          (`store::block`).

mod add;
mod place;
mod relocate;
mod rescan;
mod status;

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use serde_json::json;

pub use self::status::{advice, line};
use crate::cli::Env;
use crate::cli::args::SourceCommand;
use crate::cli::commands::rm::refuse_needed;
use crate::cli::output::{bytes, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::store::block::Scope;
use crate::store::catalog::{Batch, RootId, RootRecord, SourceRecord};

/// Names that stand for what is not configured.
const RESERVED: [&str; 2] = ["local", "store"];

/// Carries out one of the commands.
///
/// # Errors
/// Those of the command; `NotFound` for a name that is none, with those there are.
pub fn run(command: &SourceCommand, env: &mut Env<'_>) -> Result<()> {
    match command {
        SourceCommand::Add(args) => add::run(args, env),
        SourceCommand::List => list(env),
        SourceCommand::Status(args) => status::run(args, env),
        SourceCommand::Rm { name, force } => remove(name, *force, env),
        SourceCommand::Rescan(args) => rescan::run(args, env),
        SourceCommand::Relocate(args) => relocate::run(args, env),
    }
}

/// The source that a person named, by its name or its URL.
fn find(name: &str, env: &Env<'_>) -> Result<(u32, SourceRecord)> {
    let sources = env.blocks.store().catalog().sources()?;
    let by_name = sources.iter().find(|(_, record)| record.name == name);
    if let Some(found) = by_name {
        return Ok(found.clone());
    }
    let url = name.trim_end_matches('/');
    let is_there = |one: &&(u32, SourceRecord)| one.1.url.trim_end_matches('/') == url;
    let by_url: Vec<_> = sources.iter().filter(is_there).collect();
    match by_url.as_slice() {
        [found] => Ok((*found).clone()),
        [] => Err(unknown(name, &sources)),
        several => {
            let names = named(several.iter().map(|one| &one.1));
            let what = format!("{} is the place of several sources: {names}", said(name));
            Err(Error::new(ErrorKind::Invalid, what))
        }
    }
}

fn unknown(name: &str, sources: &[(u32, SourceRecord)]) -> Error {
    let name = said(name);
    let what = if sources.is_empty() {
        format!("no source is named {name}: none is configured, see carrack source add")
    } else {
        let names = named(sources.iter().map(|one| &one.1));
        format!("no source is named {name}: there are {names}")
    };
    Error::new(ErrorKind::NotFound, what)
}

/// What a person wrote, unless it may hold a password.
fn said(name: &str) -> String {
    if name.contains('@') || name.contains('?') {
        return "that".to_owned();
    }
    shown(name.as_bytes())
}

/// Names for a sentence; the first few of many.
fn named<'a>(sources: impl Iterator<Item = &'a SourceRecord>) -> String {
    const MANY: usize = 20;
    let mut names: Vec<&str> = sources.map(|record| record.name.as_str()).collect();
    names.sort_unstable();
    let rest = names.len().saturating_sub(MANY);
    names.truncate(MANY);
    let mut text = names.join(", ");
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}

/// Roots that were made from a source.
fn roots_of(id: u32, env: &Env<'_>) -> Result<Vec<RootRecord>> {
    let mut roots = env.blocks.store().catalog().roots()?;
    roots.retain(|root| root.source == id);
    Ok(roots)
}

fn list(env: &mut Env<'_>) -> Result<()> {
    let catalog = env.blocks.store().catalog();
    let mut n_roots: HashMap<u32, u64> = HashMap::new();
    for root in catalog.roots()? {
        *n_roots.entry(root.source).or_default() += 1;
    }
    let rows: HashMap<u32, SourceRecord> = catalog.sources()?.into_iter().collect();
    for status in env.blocks.survey(Scope::default(), env.stop)? {
        let Some(row) = rows.get(&status.id) else {
            continue;
        };
        let n_roots = n_roots.get(&status.id).copied().unwrap_or(0);
        let state = env.sources().state(&status);
        if env.out.json {
            env.out.object(&json!({
                "name": row.name,
                "url": row.url,
                "kind": kind(&row.url),
                "endpoint": row.endpoint,
                "region": row.region,
                "credentials": row.credentials,
                "redirects": row.redirects,
                "private": row.private,
                "roots": n_roots,
                "containers": status.n_containers,
                "bytes": status.n_bytes,
                "state": state.name(),
            }))?;
            continue;
        }
        let mut text = format!("{:<11}  {}", state.name(), shown(row.name.as_bytes()));
        if row.name != row.url {
            text.push_str(&format!("  {}", shown(row.url.as_bytes())));
        }
        let (n, size) = (status.n_containers, bytes(status.n_bytes));
        text.push_str(&format!("  {n_roots} roots, {n} objects, {size}"));
        env.out.line(&text)?;
    }
    if rows.is_empty() {
        env.out
            .note("no source is configured: carrack source add URL|PATH");
    }
    Ok(())
}

/// What sort of place a URL names.
fn kind(url: &str) -> &str {
    match url.split_once("://") {
        Some(("https", _)) => "http",
        Some((scheme, _)) => scheme,
        None => "local",
    }
}

fn remove(name: &str, force: bool, env: &mut Env<'_>) -> Result<()> {
    let store = env.blocks.store();
    // What an add is about to bring must not stay behind.
    let _ingest = store.ingest_lock();
    if env.stop.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Unavailable, "interrupted"));
    }
    let (id, record) = find(name, env)?;
    let roots = roots_of(id, env)?;
    if !force {
        let ids: Vec<RootId> = roots.iter().map(|root| root.id).collect();
        refuse_needed(&ids, env)?;
    }
    let mut batch = Batch::new();
    roots.iter().for_each(|root| batch.remove_root(root.id));
    batch.remove_source(id);
    if !env.out.json {
        // Said first: who sees a slip may still find out what went.
        for root in &roots {
            let path = shown(&root.path);
            env.out.line(&format!("dropping {}  {path}", root.cid))?;
        }
    }
    let committed = store.commit(batch)?;
    env.sources().forget(id);
    env.blocks.forget_elsewhere();
    let n_containers = committed.removed_containers.len();
    if env.out.json {
        return env.out.object(&json!({
            "name": record.name,
            "url": record.url,
            "roots_dropped": roots.len(),
            "containers_dropped": n_containers,
        }));
    }
    let (name, n) = (shown(record.name.as_bytes()), roots.len());
    env.out.line(&format!(
        "forgot {name}: {n} roots dropped; the bytes stay where they are"
    ))
}
