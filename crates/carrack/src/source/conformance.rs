//! What every source must do, whatever it is made of.
//!
//! In       a source with nothing in it, and a way to put, replace and delete its objects.
//! Out      a panic that names what does not hold.
//! Limits   some ten objects of at most 3 MB.
//! Not here what is particular to one kind: its own tests have that.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic here is a failed test"
)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::StreamExt;

use crate::source::retry::Patient;
use crate::source::validator::ObjectStamp;
use crate::source::{Listed, Source, SourceError, SourceErrorKind};

/// Changes what a source has.
pub trait Place {
    /// Makes or replaces an object; its validators differ from those of the object before.
    fn put(&self, path: &str, content: &[u8]);
    /// Removes an object.
    fn delete(&self, path: &str);
}

/// Names that servers and clients spell in different ways.
const NAMES: [&str; 9] = [
    "a",
    "dir/a b+c",
    "dir/deeper/percent%20&<\"'>;#?=:@",
    "dir/deeper/ünïcode €",
    "dir-not-below",
    "dir.txt",
    "empty",
    "large",
    "zz/~_.-",
];

/// Runs all of it.
///
/// # Panics
/// If something does not hold.
pub async fn run(source: Arc<dyn Source>, place: &dyn Place) {
    let objects: BTreeMap<&str, Vec<u8>> = NAMES.map(|name| (name, content(name))).into();
    for (path, content) in &objects {
        place.put(path, content);
    }
    lists_all_below_a_path(&*source, &objects).await;
    reads_exactly_the_range(&*source, &objects).await;
    tells_what_is_missing(&*source).await;
    resumes_to_the_same_bytes(&source, &objects["large"]).await;
    never_reads_another_version(&source, place).await;
}

/// Bytes that tell where they are from.
fn content(name: &str) -> Vec<u8> {
    let len = match name {
        "empty" => 0,
        "large" => 3_000_001,
        name => 100 + name.len(),
    };
    let seed = name.len();
    (0..len)
        .map(|at| u8::try_from((at * 7 + at / 251 + seed) % 256).unwrap())
        .collect()
}

async fn lists_all_below_a_path(source: &dyn Source, objects: &BTreeMap<&str, Vec<u8>>) {
    for prefix in ["", "dir", "dir/deeper", "dir/a b+c", "a", "large"] {
        let mut found = list(source, prefix).await.unwrap();
        assert_together(found.iter().map(|(path, _)| path.as_str()));
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let is_below = |path: &&&str| {
            let rest = path.strip_prefix(prefix);
            prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let expected: Vec<&str> = objects.keys().filter(is_below).copied().collect();
        let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, expected, "below {prefix:?} of {}", source.url());
        for (path, stamp) in found {
            assert_eq!(stamp.size, objects[path.as_str()].len() as u64, "{path}");
            let now = source.stat(path.as_bytes()).await.unwrap();
            assert!(now.agrees_with(&stamp), "{path}: {stamp:?} then {now:?}");
        }
    }
    let nothing = list(source, "nothing/here").await;
    let is_missing = |error: SourceError| error.kind == SourceErrorKind::Missing;
    assert!(nothing.map_or_else(is_missing, |found| found.is_empty()));
}

/// Everything below one directory comes without interruption.
fn assert_together<'a>(paths: impl Iterator<Item = &'a str>) {
    let mut left: Vec<String> = Vec::new();
    let mut before: Vec<&str> = Vec::new();
    for path in paths {
        let mut names: Vec<&str> = path.split('/').collect();
        names.pop();
        let same = before
            .iter()
            .zip(&names)
            .take_while(|(a, b)| a == b)
            .count();
        left.extend((same + 1..=before.len()).map(|len| before[..len].join("/")));
        for len in same + 1..=names.len() {
            let directory = names[..len].join("/");
            assert!(
                !left.contains(&directory),
                "{path}: {directory} was left before"
            );
        }
        before = names;
    }
}

async fn reads_exactly_the_range(source: &dyn Source, objects: &BTreeMap<&str, Vec<u8>>) {
    for (path, content) in objects {
        let stamp = source.stat(path.as_bytes()).await.unwrap();
        let len = content.len();
        let mut ranges = vec![0..len, 0..0, len..len];
        if len > 3 {
            ranges.extend([0..1, len - 1..len, 1..len - 1, len / 2..len / 2 + 1]);
        }
        for range in ranges {
            let bytes = read(source, path, &stamp, range.start as u64..range.end as u64).await;
            assert!(bytes.unwrap() == content[range.clone()], "{path} {range:?}");
        }
        let beyond = read(source, path, &stamp, 0..len as u64 + 1).await;
        assert!(beyond.is_err(), "{path} beyond its end");
    }
}

async fn tells_what_is_missing(source: &dyn Source) {
    for path in ["nothing", "dir/nothing", "dir", "a/below"] {
        let error = source.stat(path.as_bytes()).await.unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Missing, "{path}: {error}");
        let stamp = ObjectStamp {
            size: 10,
            ..ObjectStamp::default()
        };
        let error = read(source, path, &stamp, 0..10).await.unwrap_err();
        let kinds = [SourceErrorKind::Missing, SourceErrorKind::Changed];
        assert!(
            kinds.contains(&error.kind) || path == "dir",
            "{path}: {error:?}"
        );
    }
    for path in ["a/../large", "./a", "dir//a", "/a", "dir/.."] {
        assert!(source.stat(path.as_bytes()).await.is_err(), "{path}");
    }
}

async fn resumes_to_the_same_bytes(source: &Arc<dyn Source>, content: &[u8]) {
    let patient = Patient {
        source: source.as_ref(),
        limiter: &Arc::default(),
        attempts: 3,
        n_throttled: &AtomicU64::new(0),
    };
    let stamp = patient.stat(b"large").await.unwrap();
    let (range, mut bytes) = (7..content.len() as u64 - 7, Vec::new());
    let reading = patient.each_piece(b"large", &stamp, range, |piece: bytes::Bytes| {
        bytes.extend_from_slice(&piece);
    });
    reading.await.unwrap();
    assert!(bytes == content[7..content.len() - 7]);
}

async fn never_reads_another_version(source: &Arc<dyn Source>, place: &dyn Place) {
    let before = content("a");
    let mut other = before.clone();
    other.reverse();
    let stamp = source.stat(b"a").await.unwrap();
    let range = 1..stamp.size - 1;
    // Of the same length, and longer.
    for content in [other.clone(), [other, before].concat()] {
        place.put("a", &content);
        let error = read(&**source, "a", &stamp, range.clone())
            .await
            .unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Changed, "{error}");
        assert!(!error.is_passing());
        let now = source.stat(b"a").await.unwrap();
        assert!(read(&**source, "a", &now, range.clone()).await.is_ok());
    }
    place.delete("a");
    let error = read(&**source, "a", &stamp, range).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Missing, "{error}");
    let error = source.stat(b"a").await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Missing, "{error}");
}

async fn list(
    source: &dyn Source,
    prefix: &str,
) -> Result<Vec<(String, ObjectStamp)>, SourceError> {
    let mut found = Vec::new();
    let mut objects = source.list(prefix.as_bytes());
    while let Some(listed) = objects.next().await {
        match listed? {
            Listed::Object { path, stamp } => {
                found.push((String::from_utf8(path).unwrap(), stamp));
            }
            Listed::Folder { .. } | Listed::List => {}
            Listed::Hidden { path } => panic!("{}", String::from_utf8_lossy(&path)),
            Listed::Odd { path, why } => panic!("{}: {why}", String::from_utf8_lossy(&path)),
        }
    }
    Ok(found)
}

async fn read(
    source: &dyn Source,
    path: &str,
    stamp: &ObjectStamp,
    range: Range<u64>,
) -> Result<Vec<u8>, SourceError> {
    let mut pieces = source.read(path.as_bytes(), stamp, range).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}
