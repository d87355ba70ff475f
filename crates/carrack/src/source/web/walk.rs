//! What a web server has, directory by directory.
//!
//! In       a source and a path.
//! Out      its files, in the order of names within a directory, files before directories.
//! Limits   one page of each directory on the way down; [`NAMES_LEN_MAX`] bytes of names in all.
//! Not here what a page says (`source::listing`).

use std::collections::{HashSet, VecDeque};

use futures_util::stream::{self, FuturesOrdered, StreamExt};
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::{DEPTH_MAX, Head, STATS_MAX, Web, unusable};
use crate::source::listing::{Entry, Format, html, json, manifest, s3};
use crate::source::retry::patiently;
use crate::source::url::{encode_path, odd_key};
use crate::source::{BoxFuture, Listed, ObjectStream, SourceError, SourceErrorKind, printable};

/// Names that wait to be looked at, in bytes.
const NAMES_LEN_MAX: usize = 256 << 20;

/// All files below `prefix`, or the one that has this path.
pub(super) fn list<'a>(web: &'a Web, prefix: &'a [u8]) -> ObjectStream<'a> {
    let walk = Walk {
        web,
        prefix,
        state: State::Begin,
        asked: FuturesOrdered::new(),
        files: VecDeque::new(),
        directories: Vec::new(),
        names_len: 0,
    };
    Box::pin(stream::try_unfold(walk, |mut walk| async move {
        let listed = walk.next().await?;
        Ok(listed.map(|listed| (listed, walk)))
    }))
}

struct Walk<'a> {
    web: &'a Web,
    prefix: &'a [u8],
    state: State,
    /// Files that are being asked what they are.
    asked: FuturesOrdered<BoxFuture<'a, Result<Option<Listed>, SourceError>>>,
    /// Files that are to be asked.
    files: VecDeque<File>,
    /// Directories that are to be listed, by their depth: paths that end in `/`.
    directories: Vec<VecDeque<Vec<u8>>>,
    names_len: usize,
}

struct File {
    path: Vec<u8>,
    /// What a manifest says of its length.
    size: Option<u64>,
}

enum State {
    Begin,
    Directories,
    /// A bucket that shows its keys: the URL that gives them, and where its next page begins.
    Bucket {
        url: Url,
        next: String,
    },
    /// The rest of a bucket's page, backwards, and what comes then.
    Page {
        items: Vec<s3::Item>,
        then: Option<(Url, String)>,
    },
}

impl<'a> Walk<'a> {
    async fn next(&mut self) -> Result<Option<Listed>, SourceError> {
        loop {
            while self.asked.len() < STATS_MAX
                && let Some(file) = self.files.pop_front()
            {
                self.names_len = self.names_len.saturating_sub(file.path.len());
                self.asked.push_back(Box::pin(look(self.web, file)));
            }
            if let Some(listed) = self.asked.next().await {
                if let Some(listed) = listed? {
                    return Ok(Some(listed));
                }
                continue;
            }
            match std::mem::replace(&mut self.state, State::Directories) {
                State::Begin => {
                    if let Some(listed) = self.begin().await? {
                        return Ok(Some(listed));
                    }
                }
                State::Directories => {
                    let Some(path) = self.next_directory() else {
                        return Ok(None);
                    };
                    self.directory(path).await?;
                }
                State::Bucket { url, next } => self.bucket_page(url, &next).await?,
                State::Page { mut items, then } => {
                    let item = items.pop();
                    match (item, then) {
                        (Some(item), then) => {
                            self.state = State::Page { items, then };
                            if let Some(listed) = bucket_item(item) {
                                return Ok(Some(listed));
                            }
                        }
                        (None, Some((url, next))) => self.state = State::Bucket { url, next },
                        (None, None) => return Ok(None),
                    }
                }
            }
        }
    }

    /// Finds out what lies at the prefix: a file, a list of files, a directory.
    async fn begin(&mut self) -> Result<Option<Listed>, SourceError> {
        let names_directory = match self.prefix {
            b"" => self.web.file.is_empty(),
            path => path.ends_with(b"/"),
        };
        let url = self.web.target(self.prefix)?;
        if !names_directory {
            match patiently(|| self.web.head(&url)).await {
                Ok(head) => return self.file_or_list(url, head).await,
                Err(error) if error.kind == SourceErrorKind::Missing && !self.prefix.is_empty() => {
                }
                Err(error) => return Err(error),
            }
        }
        let mut path = self.prefix.to_vec();
        if !path.is_empty() && !names_directory {
            path.push(b'/');
        }
        match self.directory(path).await {
            Err(error) if self.prefix.is_empty() => Err(error),
            Err(error)
                if matches!(
                    error.kind,
                    SourceErrorKind::Missing | SourceErrorKind::Denied
                ) =>
            {
                self.prefix_of_bucket(error).await?;
                Ok(None)
            }
            result => result.map(|()| None),
        }
    }

    async fn file_or_list(&mut self, url: Url, head: Head) -> Result<Option<Listed>, SourceError> {
        let may_be_list = head.is_text || url.path().ends_with(".txt");
        if may_be_list && is_list(self.web, self.prefix, &head).await? {
            let (page, url) = patiently(|| self.web.page(url.clone())).await?;
            self.manifest(&page, &url)?;
            return Ok(None);
        }
        Ok(Some(Listed::Object {
            path: self.prefix.to_vec(),
            stamp: head.stamp,
        }))
    }

    fn next_directory(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(path) = self.directories.last_mut()?.pop_front() {
                self.names_len = self.names_len.saturating_sub(path.len());
                return Some(path);
            }
            self.directories.pop();
        }
    }

    /// Asks for the directory at `path`, which is empty or ends in `/`.
    async fn directory(&mut self, path: Vec<u8>) -> Result<(), SourceError> {
        let asked = self.web.target(&path)?;
        let (page, url) = patiently(|| self.web.page(asked.clone())).await?;
        match Format::of(&page) {
            Some(Format::Html) => self.entries(&path, html::entries(&page, &url)),
            Some(Format::Json) => {
                let entries = json::entries(&page);
                let entries = entries.map_err(|why| unusable(&format!("{asked}: {why}")))?;
                self.entries(&path, entries)
            }
            Some(Format::Manifest) => self.manifest(&page, &url),
            Some(Format::S3) => {
                self.state = State::Bucket {
                    url,
                    next: String::new(),
                };
                Ok(())
            }
            None => Err(unusable(&format!(
                "{asked} shows no listing that is known (nginx, Apache, caddy, a bucket's XML, or \
                 a file that begins with {})",
                manifest::FIRST_LINE
            ))),
        }
    }

    fn entries(&mut self, path: &[u8], entries: Vec<Entry>) -> Result<(), SourceError> {
        if self.directories.len() >= DEPTH_MAX {
            return Err(unusable(&format!(
                "{}: more than {DEPTH_MAX} directories in one another",
                self.web.url
            )));
        }
        let mut directories = VecDeque::new();
        for entry in entries {
            let mut full = path.to_vec();
            full.extend_from_slice(&entry.name);
            self.count(full.len())?;
            if entry.is_dir {
                full.push(b'/');
                directories.push_back(full);
            } else {
                self.files.push_back(File {
                    path: full,
                    size: None,
                });
            }
        }
        self.directories.push(directories);
        Ok(())
    }

    fn count(&mut self, len: usize) -> Result<(), SourceError> {
        self.names_len += len;
        if self.names_len <= NAMES_LEN_MAX {
            return Ok(());
        }
        Err(unusable(&format!(
            "{}: a directory has more than {} MiB of names",
            self.web.url,
            NAMES_LEN_MAX >> 20
        )))
    }

    fn manifest(&mut self, page: &[u8], url: &Url) -> Result<(), SourceError> {
        let shown = bare(url);
        let lines = manifest::lines(page).map_err(|why| unusable(&format!("{shown}: {why}")))?;
        let mut files: Vec<File> = Vec::with_capacity(lines.len());
        let mut seen = HashSet::new();
        for line in lines {
            let path = path_of(line.url, url, &self.web.directory).ok_or_else(|| {
                let named = line.url.split('?').next().unwrap_or_default();
                unusable(&format!(
                    "{shown}: {} is no file below {}",
                    printable(named.as_bytes()),
                    self.web.directory
                ))
            })?;
            self.count(path.len())?;
            if seen.insert(path.clone()) {
                files.push(File {
                    path,
                    size: line.size,
                });
            }
        }
        // What lies below one directory comes together.
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.files.extend(files);
        Ok(())
    }

    /// A bucket does not answer for its directories, but its root may tell all its keys.
    async fn prefix_of_bucket(&mut self, error: SourceError) -> Result<(), SourceError> {
        let root = self.web.directory.clone();
        match patiently(|| self.web.page(root.clone())).await {
            Ok((page, url)) if Format::of(&page) == Some(Format::S3) => {
                self.state = State::Bucket {
                    url,
                    next: String::new(),
                };
                Ok(())
            }
            _ => Err(error),
        }
    }

    async fn bucket_page(&mut self, url: Url, after: &str) -> Result<(), SourceError> {
        let mut query = "encoding-type=url&list-type=2&max-keys=1000".to_owned();
        let mut prefix = self.prefix.to_vec();
        if !prefix.is_empty() && !prefix.ends_with(b"/") {
            prefix.push(b'/');
        }
        for (name, value) in [
            ("continuation-token", after.as_bytes()),
            ("prefix", &prefix),
        ] {
            if !value.is_empty() {
                query.push_str(&format!(
                    "&{name}={}",
                    encode_path(value).replace('/', "%2F")
                ));
            }
        }
        let mut asked = url.clone();
        asked.set_query(Some(&query));
        let (page, _) = patiently(|| self.web.page(asked.clone())).await?;
        let shown = bare(&url);
        let page = s3::page(&page).map_err(|error| unusable(&format!("{shown}: {error}")))?;
        if page.next.as_deref() == Some(after) {
            return Err(unusable(&format!("{shown}: its listing goes in circles")));
        }
        let mut items = page.objects;
        items.reverse();
        self.state = State::Page {
            items,
            then: page.next.map(|next| (url, next)),
        };
        Ok(())
    }
}

/// A URL for an error: what it was sent on with may be a signature.
fn bare(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// Whether the file begins like a list of files.
async fn is_list(web: &Web, path: &[u8], head: &Head) -> Result<bool, SourceError> {
    let len = manifest::FIRST_LINE.len() as u64 + 4;
    let len = len.min(head.stamp.size);
    patiently(|| async {
        let mut body = web.read_file(path, &head.stamp, 0..len).await?;
        let mut beginning = Vec::new();
        while let Some(piece) = body.next().await {
            beginning.extend_from_slice(&piece?);
        }
        Ok(Format::of(&beginning) == Some(Format::Manifest))
    })
    .await
}

/// What a file is; `None`: it is there no more.
async fn look(web: &Web, file: File) -> Result<Option<Listed>, SourceError> {
    let url = web.target(&file.path)?;
    match patiently(|| web.head(&url)).await {
        Ok(head) if file.size.is_some_and(|size| size != head.stamp.size) => {
            Ok(Some(Listed::Odd {
                path: file.path,
                why: format!("has {} bytes, its list says otherwise", head.stamp.size),
            }))
        }
        Ok(head) => Ok(Some(Listed::Object {
            path: file.path,
            stamp: head.stamp,
        })),
        Err(error) => match error.kind {
            SourceErrorKind::Missing if file.size.is_none() => Ok(None),
            SourceErrorKind::Missing | SourceErrorKind::Denied | SourceErrorKind::Unusable => {
                Ok(Some(Listed::Odd {
                    path: file.path,
                    why: error.what,
                }))
            }
            _ => Err(error),
        },
    }
}

fn bucket_item(item: s3::Item) -> Option<Listed> {
    if item.key.ends_with(b"/") && item.stamp.size == 0 {
        return None;
    }
    Some(match odd_key(&item.key) {
        None => Listed::Object {
            path: item.key,
            stamp: item.stamp,
        },
        Some(why) => Listed::Odd {
            path: item.key,
            why: why.to_owned(),
        },
    })
}

/// The path below `directory` that `text`, on a list at `list`, names.
fn path_of(text: &str, list: &Url, directory: &Url) -> Option<Vec<u8>> {
    let url = list.join(text).ok()?;
    let plain = url.origin() == directory.origin()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none()
        && !url.path().to_ascii_lowercase().contains("%2f");
    if !plain {
        return None;
    }
    let base: Vec<u8> = percent_decode_str(directory.path()).collect();
    let path: Vec<u8> = percent_decode_str(url.path()).collect();
    let path = path.strip_prefix(base.as_slice())?;
    (!path.is_empty() && odd_key(path).is_none()).then(|| path.to_vec())
}
