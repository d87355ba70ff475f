//! `carrack source status`.

use serde_json::json;

use super::find;
use crate::cli::Env;
use crate::cli::args::SourceStatusArgs;
use crate::cli::commands::status::{ranges_json, ranges_text};
use crate::cli::output::shown;
use crate::error::Result;
use crate::store::block::{Change, Scope, SourceStatus, State};
use crate::store::catalog::{SOURCE_LOCAL, SOURCE_STORE};

/// Asks every source, or one, and names each object that is not as it was added.
///
/// # Errors
/// `NotFound` for a name that is none; those of the catalog. That a source does not answer is what
/// this command tells, not an error.
pub(super) fn run(args: &SourceStatusArgs, env: &mut Env<'_>) -> Result<()> {
    let only = match args.name.as_deref() {
        Some("local") => Some(SOURCE_LOCAL),
        Some("store") => Some(SOURCE_STORE),
        Some(name) => Some(find(name, env)?.0),
        None => None,
    };
    let scope = Scope { only, asks: true };
    let found = env.blocks.survey(scope, env.stop)?;
    for status in &found {
        // Packs are carrack's own: they are of interest when something is wrong with them.
        if status.id == SOURCE_STORE && status.state == State::Live && only.is_none() {
            continue;
        }
        if env.out.json {
            print_json(status, args.limit, env)?;
        } else {
            print(status, args.limit, env)?;
        }
    }
    if found.is_empty() {
        env.out
            .note("nothing was added yet: carrack source add URL|PATH");
    }
    Ok(())
}

fn print_json(status: &SourceStatus, limit: usize, env: &mut Env<'_>) -> Result<()> {
    let mut counts = serde_json::Map::new();
    for state in State::ALL {
        counts.insert(state.name().to_owned(), status.count(state).into());
    }
    let objects: Vec<_> = status
        .changes
        .iter()
        .take(limit)
        .map(|change| {
            json!({
                "path": change.path.to_string_lossy(),
                "state": change.state.name(),
                "since": change.since_unix,
                "reason": change.reason,
                "ranges": ranges_json(change),
                "advice": advice(status, change),
            })
        })
        .collect();
    env.out.object(&json!({
        "name": status.name,
        "url": status.url,
        "state": status.state.name(),
        "since": status.since_unix,
        "counts": counts,
        "objects": objects,
        "objects_total": status.changes.len(),
    }))
}

fn print(status: &SourceStatus, limit: usize, env: &mut Env<'_>) -> Result<()> {
    env.out.line(&line(status))?;
    for change in status.changes.iter().take(limit) {
        let path = shown(change.path.as_os_str().as_encoded_bytes());
        let state = match change.state {
            State::Live => "touched",
            state => state.name(),
        };
        let since = change.since_unix.map(ago).unwrap_or_default();
        let (ranges, reason) = (ranges_text(change), shown(change.reason.as_bytes()));
        env.out
            .line(&format!("  {state:<11}  {path}{ranges}  {reason}{since}"))?;
        env.out
            .line(&format!("               {}", advice(status, change)))?;
    }
    if status.changes.len() > limit {
        let rest = status.changes.len() - limit;
        env.out.line(&format!("  and {rest} more: see --limit"))?;
    }
    Ok(())
}

/// A source in one line.
#[must_use]
pub fn line(status: &SourceStatus) -> String {
    let mut text = format!(
        "{:<11}  {}",
        status.state.name(),
        shown(status.name.as_bytes())
    );
    if status.name != status.url && status.id != SOURCE_LOCAL {
        text.push_str(&format!("  {}", shown(status.url.as_bytes())));
    }
    let counts: Vec<String> = State::ALL
        .iter()
        .filter(|state| **state == State::Live || status.count(**state) > 0)
        .map(|state| format!("{} {}", status.count(*state), state.name()))
        .collect();
    text.push_str(&format!("  {}", counts.join(", ")));
    text
}

/// What a person can do about an object.
#[must_use]
pub fn advice(status: &SourceStatus, change: &Change) -> String {
    let name = shown(status.name.as_bytes());
    match (change.state, status.id) {
        (_, SOURCE_STORE) => {
            "carrack's own file is damaged: restore it from a backup, or add its roots again"
                .to_owned()
        }
        (State::Live, _) => "carrack verify tells whether its bytes are the same".to_owned(),
        (State::Unreachable, SOURCE_LOCAL) => "make it readable again".to_owned(),
        (State::Unreachable, _) => {
            format!("check the network, the server and the credentials of {name}")
        }
        (State::Missing, SOURCE_LOCAL) => {
            "restore the file, or carrack source relocate OLD NEW if it moved".to_owned()
        }
        (State::Missing, _) => {
            format!("restore the object, or carrack source rescan {name} to let it go")
        }
        (State::Corrupt, SOURCE_LOCAL) => "restore the file from a good copy".to_owned(),
        (State::Corrupt, _) => format!(
            "restore the object from a good copy, or take it as it is: carrack source rescan {name}"
        ),
        (State::Stale, SOURCE_LOCAL) => {
            "restore the file, or carrack add it again to serve what it is now".to_owned()
        }
        (State::Stale, _) => {
            format!("restore the object, or carrack source rescan {name} to serve what it is now")
        }
    }
}

/// How long ago something was noticed.
fn ago(since_unix: u64) -> String {
    let seconds = crate::clock::unix_seconds().saturating_sub(since_unix);
    let (n, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        7200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!(", noticed {n} {unit} ago")
}
