//! Directories as nginx (`autoindex_format json`) and caddy (`file_server browse`) tell them to
//! programs.
//!
//! In       JSON: an array of objects with a `name`, and `type` (nginx) or `is_dir` (caddy).
//! Out      the names; those that no directory can have, with the reason.
//! Limits   [`ENTRIES_MAX`] of them.
//! Not here their sizes and times: the files themselves are asked.

use serde::Deserialize;

use super::{ENTRIES_MAX, Entry, Names, TOO_MANY};

#[derive(Deserialize)]
struct Item {
    name: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    is_dir: bool,
}

/// The names on a page.
///
/// # Errors
/// It cannot be read, or has more than [`ENTRIES_MAX`].
pub(in crate::source) fn entries(page: &[u8]) -> Result<Names, String> {
    let page = page.strip_prefix(b"\xef\xbb\xbf").unwrap_or(page);
    let items: Vec<Item> = serde_json::from_slice(page).map_err(|error| {
        // The error itself repeats what a server wrote.
        let (line, column) = (error.line(), error.column());
        format!("line {line}, column {column}: it is no list of names in JSON")
    })?;
    if items.len() > ENTRIES_MAX {
        return Err(TOO_MANY.to_owned());
    }
    let mut names = Names::default();
    for item in items {
        let Some(mut entry) = Entry::new(item.name.as_bytes()) else {
            names
                .odd
                .push((item.name.into_bytes(), "can be no name in a directory"));
            continue;
        };
        match item.kind.as_deref() {
            Some("directory") => entry.is_dir = true,
            None | Some("file") => entry.is_dir |= item.is_dir,
            Some(_) => {
                names.odd.push((entry.name, "is no file and no directory"));
                continue;
            }
        }
        names.entries.push(entry);
    }
    names.entries.sort_unstable();
    names.entries.dedup_by(|b, a| {
        let same = a.name == b.name;
        a.is_dir |= same && b.is_dir;
        same
    });
    Ok(names)
}
