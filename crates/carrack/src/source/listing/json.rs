//! Directories as nginx (`autoindex_format json`) and caddy (`file_server browse`) tell them to
//! programs.
//!
//! In       JSON: an array of objects with a `name`, and `type` (nginx) or `is_dir` (caddy).
//! Out      the names.
//! Limits   [`ENTRIES_MAX`] of them.
//! Not here their sizes and times: the files themselves are asked.

use serde::Deserialize;

use super::{ENTRIES_MAX, Entry};

#[derive(Deserialize)]
struct Item {
    name: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    is_dir: bool,
}

/// The entries of a page, sorted by name, each once.
pub(in crate::source) fn entries(page: &[u8]) -> Result<Vec<Entry>, String> {
    let page = page.strip_prefix(b"\xef\xbb\xbf").unwrap_or(page);
    let items: Vec<Item> = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    let mut entries = Vec::with_capacity(items.len().min(ENTRIES_MAX));
    for item in items.iter().take(ENTRIES_MAX) {
        let Some(mut entry) = Entry::new(item.name.as_bytes()) else {
            continue;
        };
        match item.kind.as_deref() {
            Some("directory") => entry.is_dir = true,
            None | Some("file") => entry.is_dir |= item.is_dir,
            Some(_) => continue, // A socket, a device.
        }
        entries.push(entry);
    }
    entries.sort_unstable();
    entries.dedup_by(|b, a| a.name == b.name);
    Ok(entries)
}
