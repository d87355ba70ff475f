//! What a web server has, directory by directory.
//!
//! In       a source and a path.
//! Out      its files, in the order of names within a directory, files before directories, and the
//!          directories. What is linked and cannot be had is told as odd: nothing is passed over.
//! Limits   one page of each directory on the way down; [`NAMES_LEN_MAX`] bytes of names in all.
//! Not here what a page says (`source::listing`).

use std::collections::{HashSet, VecDeque};

use futures_util::stream::{self, FuturesOrdered, StreamExt};
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::{DEPTH_MAX, Head, Look, Page, STATS_MAX, Web, unusable};
use crate::source::listing::{Format, Names, html, json, manifest, s3};
use crate::source::retry::patiently;
use crate::source::url::{encode_path, odd_key};
use crate::source::validator::ObjectStamp;
use crate::source::{BoxFuture, Listed, ObjectStream, SourceError, SourceErrorKind, printable};

/// Names that wait to be looked at, in bytes.
const NAMES_LEN_MAX: usize = 256 << 20;
/// Files that servers show instead of a directory's entries.
const INDEX_PAGES: [&[u8]; 2] = [b"index.html", b"index.htm"];

/// All files below `prefix`, or the one that has this path; what is `hidden` only if it is wanted.
pub(super) fn list<'a>(web: &'a Web, prefix: &'a [u8], hidden: bool) -> ObjectStream<'a> {
    let walk = Walk {
        web,
        prefix,
        base: Vec::new(),
        hidden,
        state: State::Begin,
        course: s3::Course::default(),
        ready: VecDeque::new(),
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
    /// What manifests name lies below this: empty, or a path that ends in `/`.
    base: Vec<u8>,
    /// What begins with a dot is wanted.
    hidden: bool,
    state: State,
    course: s3::Course,
    /// What nothing has to be asked about.
    ready: VecDeque<Listed>,
    /// Files that are being asked what they are.
    asked: FuturesOrdered<BoxFuture<'a, Result<Looked, SourceError>>>,
    /// Files that are to be asked.
    files: VecDeque<File>,
    /// Directories that are to be listed, by their depth: paths that end in `/`.
    directories: Vec<VecDeque<Vec<u8>>>,
    names_len: usize,
}

struct File {
    path: Vec<u8>,
    /// A line of a manifest names it.
    is_line: bool,
    /// What the line says of its length.
    size: Option<u64>,
}

/// What a link was found to lead to.
enum Looked {
    Listed(Listed),
    /// A directory, by its path without a `/`.
    Directory(Vec<u8>),
}

enum State {
    Begin,
    Directories,
    /// A bucket that shows its keys: its path (empty, or one that ends in `/`), the URL that gives
    /// them, and where its next page begins.
    Bucket {
        at: Vec<u8>,
        url: Url,
        next: String,
    },
    /// The rest of a bucket's page, backwards, and what comes then.
    Page {
        at: Vec<u8>,
        items: Vec<s3::Item>,
        then: Option<(Url, String)>,
    },
}

impl<'a> Walk<'a> {
    async fn next(&mut self) -> Result<Option<Listed>, SourceError> {
        loop {
            if let Some(listed) = self.ready.pop_front() {
                self.names_len = self.names_len.saturating_sub(path_len(&listed));
                return Ok(Some(listed));
            }
            while self.asked.len() < STATS_MAX
                && let Some(file) = self.files.pop_front()
            {
                self.names_len = self.names_len.saturating_sub(file.path.len());
                self.asked.push_back(Box::pin(look(self.web, file)));
            }
            match self.asked.next().await.transpose()? {
                Some(Looked::Listed(listed)) => return Ok(Some(listed)),
                Some(Looked::Directory(path)) => {
                    self.linked_without_slash(path)?;
                    continue;
                }
                None => {}
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
                    if let Err(error) = self.directory(path.clone()).await {
                        return named(path, error).map(Some);
                    }
                }
                State::Bucket { at, url, next } => self.bucket_page(at, url, &next).await?,
                State::Page {
                    at,
                    mut items,
                    then,
                } => match (items.pop(), then) {
                    (Some(item), then) => {
                        let listed = bucket_item(&at, item);
                        self.state = State::Page { at, items, then };
                        return Ok(Some(listed));
                    }
                    (None, Some((url, next))) => self.state = State::Bucket { at, url, next },
                    (None, None) => {} // The directories that come after it.
                },
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
        self.base.clone_from(&path);
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
            let page = patiently(|| self.web.page(url.clone())).await?;
            let len = self.prefix.iter().rposition(|&byte| byte == b'/');
            self.base = self.prefix.to_vec();
            self.base.truncate(len.map_or(0, |at| at + 1));
            self.manifest(&page)?;
            return Ok(Some(Listed::List));
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
        let page = patiently(|| self.web.page(asked.clone())).await?;
        let unreadable = |why: String| unusable(&format!("{asked}: {why}"));
        match Format::of(&page.body) {
            Some(Format::Html) if !page.known_end && !html::has_end(&page.body) => {
                let why = "its page ended with the connection, before </html>: it may be cut";
                Err(unreadable(why.to_owned()))
            }
            Some(Format::Html) => {
                let names = html::entries(&page.body, &page.url).map_err(unreadable)?;
                let index = index_of(self.web, &path, &page).await?;
                self.entries(&path, names)?;
                index.map_or(Ok(()), |name| self.shows_index(&path, name))
            }
            Some(Format::Json) => {
                let names = json::entries(&page.body).map_err(unreadable)?;
                self.entries(&path, names)
            }
            Some(Format::Manifest) => self.manifest(&page),
            Some(Format::S3) => {
                self.tell_folder(&path)?;
                self.state = State::Bucket {
                    at: path,
                    url: page.url,
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

    /// The directory whose entries were just listed shows its file `name` instead of a listing.
    fn shows_index(&mut self, path: &[u8], name: &[u8]) -> Result<(), SourceError> {
        let full = [path, name].concat();
        if !self.files.iter().any(|file| file.path == full) {
            self.count(full.len())?;
            self.files.push_back(File::linked(full));
        }
        self.tell(Listed::Odd {
            path: path.strip_suffix(b"/").unwrap_or(path).to_vec(),
            why: format!(
                "the server shows its {} instead of what is in it: what that does not link to is \
                 not part of the result",
                String::from_utf8_lossy(name)
            ),
        })
    }

    /// Something that nothing has to be asked about comes next.
    fn tell(&mut self, listed: Listed) -> Result<(), SourceError> {
        self.count(path_len(&listed))?;
        self.ready.push_back(listed);
        Ok(())
    }

    /// A directory that is not what was asked for itself is told.
    fn tell_folder(&mut self, path: &[u8]) -> Result<(), SourceError> {
        let own = path.strip_suffix(b"/").unwrap_or(path);
        if own == self.prefix.strip_suffix(b"/").unwrap_or(self.prefix) {
            return Ok(());
        }
        self.tell(Listed::Folder { path: own.to_vec() })
    }

    /// A link of the directory that is being listed leads to a directory.
    fn linked_without_slash(&mut self, mut path: Vec<u8>) -> Result<(), SourceError> {
        path.push(b'/');
        self.count(path.len())?;
        match self.directories.last_mut() {
            Some(directories) => directories.push_back(path),
            None => self.directories.push([path].into()),
        }
        Ok(())
    }

    fn entries(&mut self, path: &[u8], names: Names) -> Result<(), SourceError> {
        if self.directories.len() >= DEPTH_MAX {
            return Err(unusable(&format!(
                "{}: more than {DEPTH_MAX} directories in one another",
                self.web.url
            )));
        }
        self.tell_folder(path)?;
        for (name, why) in names.odd {
            let (path, why) = ([path, &name].concat(), why.to_owned());
            self.tell(Listed::Odd { path, why })?;
        }
        let mut directories = VecDeque::new();
        for entry in names.entries {
            let mut full = [path, &entry.name].concat();
            if !self.hidden && entry.name.starts_with(b".") {
                self.tell(Listed::Hidden { path: full })?;
                continue;
            }
            self.count(full.len())?;
            if entry.is_dir {
                full.push(b'/');
                directories.push_back(full);
            } else {
                self.files.push_back(File::linked(full));
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

    fn manifest(&mut self, page: &Page) -> Result<(), SourceError> {
        let (url, shown) = (&page.url, bare(&page.url));
        let lines =
            manifest::lines(&page.body).map_err(|why| unusable(&format!("{shown}: {why}")))?;
        let mut files: Vec<File> = Vec::with_capacity(lines.len());
        let mut seen = HashSet::new();
        for line in lines {
            let path = path_of(line.url, url, &self.web.directory);
            let path = path.filter(|path| path.starts_with(&self.base));
            let path = path.ok_or_else(|| {
                let named = line.url.split('?').next().unwrap_or_default();
                unusable(&format!(
                    "{shown}: {} is no file below {}{}",
                    printable(named.as_bytes()),
                    self.web.directory,
                    encode_path(&self.base)
                ))
            })?;
            self.count(path.len())?;
            if seen.insert(path.clone()) {
                files.push(File {
                    path,
                    is_line: true,
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
            Ok(page) if Format::of(&page.body) == Some(Format::S3) => {
                self.state = State::Bucket {
                    at: Vec::new(),
                    url: page.url,
                    next: String::new(),
                };
                Ok(())
            }
            _ => Err(error),
        }
    }

    async fn bucket_page(&mut self, at: Vec<u8>, url: Url, after: &str) -> Result<(), SourceError> {
        let mut query = "encoding-type=url&list-type=2&max-keys=1000".to_owned();
        let mut prefix = self.prefix.to_vec();
        if !prefix.is_empty() && !prefix.ends_with(b"/") {
            prefix.push(b'/');
        }
        // Keys are relative to the bucket.
        let prefix = prefix.strip_prefix(at.as_slice()).unwrap_or_default();
        for (name, value) in [("continuation-token", after.as_bytes()), ("prefix", prefix)] {
            if !value.is_empty() {
                query.push_str(&format!(
                    "&{name}={}",
                    encode_path(value).replace('/', "%2F")
                ));
            }
        }
        let mut asked = url.clone();
        asked.set_query(Some(&query));
        let page = patiently(|| self.web.page(asked.clone())).await?;
        let shown = bare(&url);
        let page = s3::page(&page.body).map_err(|error| unusable(&format!("{shown}: {error}")))?;
        if !self.course.is_sound(&page, after) {
            return Err(unusable(&format!("{shown}: its listing goes in circles")));
        }
        let mut items = page.objects;
        items.reverse();
        self.state = State::Page {
            at,
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

impl File {
    /// One that a directory's page links to.
    const fn linked(path: Vec<u8>) -> Self {
        Self {
            path,
            is_line: false,
            size: None,
        }
    }
}

/// The file that a server shows for the directory at `path`, if that is what the page is. One
/// that is made for each request has no validators.
async fn index_of(
    web: &Web,
    path: &[u8],
    page: &Page,
) -> Result<Option<&'static [u8]>, SourceError> {
    if page.stamp.etag.is_none() && page.stamp.modified.is_none() {
        return Ok(None);
    }
    for name in INDEX_PAGES {
        let url = web.target(&[path, name].concat())?;
        match patiently(|| web.head(&url)).await {
            Ok(head) if is_shown(&head.stamp, &page.stamp) => return Ok(Some(name)),
            Err(error) if error.is_passing() => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

fn path_len(listed: &Listed) -> usize {
    match listed {
        Listed::Object { path, .. }
        | Listed::Folder { path }
        | Listed::Hidden { path }
        | Listed::Odd { path, .. } => path.len(),
        Listed::List => 0,
    }
}

/// Whether the page is the file.
fn is_shown(file: &ObjectStamp, page: &ObjectStamp) -> bool {
    let both = |tells: fn(&ObjectStamp) -> bool| tells(file) && tells(page);
    let tells = both(|stamp| stamp.etag.is_some()) || both(|stamp| stamp.modified.is_some());
    tells && file.agrees_with(page)
}

/// What a link leads to.
async fn look(web: &Web, file: File) -> Result<Looked, SourceError> {
    let url = web.target(&file.path)?;
    let listed = match patiently(|| web.look(&url)).await {
        Ok(Look::Directory) if file.is_line => Listed::Odd {
            path: file.path,
            why: "is a directory".to_owned(),
        },
        Ok(Look::Directory) => return Ok(Looked::Directory(file.path)),
        Ok(Look::File(head)) if file.size.is_some_and(|size| size != head.stamp.size) => {
            Listed::Odd {
                path: file.path,
                why: format!("has {} bytes, its list says otherwise", head.stamp.size),
            }
        }
        Ok(Look::File(head)) => Listed::Object {
            path: file.path,
            stamp: head.stamp,
        },
        Err(error) => named(file.path, error)?,
    };
    Ok(Looked::Listed(listed))
}

/// Something that is listed and that the server does not give. An error if it may later.
fn named(path: Vec<u8>, error: SourceError) -> Result<Listed, SourceError> {
    if error.is_passing() {
        return Err(error);
    }
    Ok(Listed::Odd {
        path: path.strip_suffix(b"/").unwrap_or(&path).to_vec(),
        why: error.what,
    })
}

fn bucket_item(at: &[u8], item: s3::Item) -> Listed {
    let stamp = item.stamp;
    let (key, is_marker) = match item.key.strip_suffix(b"/") {
        Some(key) if stamp.size == 0 => (key, true),
        _ => (item.key.as_slice(), false),
    };
    let path = [at, key].concat();
    match odd_key(key) {
        None if is_marker => Listed::Folder { path },
        None => Listed::Object { path, stamp },
        Some(why) => Listed::Odd {
            path,
            why: why.to_owned(),
        },
    }
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
