//! `import`: a CAR's blocks become servable where they lie; every one is verified first.
//!
//! In       a CARv1 or CARv2 file, or with `copy` any stream of one.
//! Out      ranges of the CAR in the index, its roots in the catalog.
//! Limits   section and header lengths are `formats::car`'s; at most [`JOBS_MAX`] batches of about
//!          [`BATCH_LEN`] bytes are being verified.
//! Not here folders (`ingest::add`). A CARv2's own index is never used: it is a claim that reading
//!          the sections makes superfluous.
//!
//! Nothing of a CAR becomes visible unless all of it verified; `salvage` keeps the good blocks.

mod copy;
mod promise;
pub mod remote;
mod resync;

use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use carrack_formats::Cid;
use carrack_formats::car::v1::SECTION_LEN_MAX_LARGE;
use carrack_formats::car::{CarError, CarLimits, Parser, Section, Step, v2};
use carrack_formats::cid;
use carrack_formats::verify::{HashError, Verifier, is_legacy};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::sink::Sink;
use crate::ingest::tree::Sum;
use crate::ingest::{AddedRoot, Progress};

pub use self::promise::holds_copy;
use self::promise::promise;
use self::resync::Resync;
use crate::source::local::LocalFile;
use crate::store::Store;
use crate::store::catalog::ContainerKind;
use crate::store::location::{ContainerId, Location};

/// Bytes of sections after which a batch is handed to a worker.
const BATCH_LEN: u64 = 1 << 20;
/// Sections after which it is, however short they are.
const BATCH_SECTIONS: usize = 1024;
/// Batches being verified at once, for each worker.
const JOBS_MAX: usize = 4;
/// Bytes asked for at first: the length and the CID of nearly every section.
const HEAD_LEN: usize = 256;
/// Sections shorter than this on average are read a batch at a time, in bytes.
const SMALL_SECTION: u64 = 32 << 10;
/// Bytes verified at once, out of the processor's cache.
const SLICE_LEN: usize = 128 << 10;
/// Most bad blocks that a salvaging import names.
const PROBLEMS_MAX: usize = 1000;
/// Stands for the profile in the catalog's memory of files: a CAR is not cut.
const CAR_PROFILE: u32 = 0xca00_0001;

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Keep the good blocks of a damaged CAR.
    pub salvage: bool,
    /// Accept blocks named by hashes that are broken or deprecated: SHA-1, double SHA2-256.
    pub legacy_hashes: bool,
    /// What is accepted of lengths and padding.
    pub limits: CarLimits,
    /// Threads that verify.
    pub n_threads: usize,
}

impl ImportOptions {
    /// Whether a block with this hash is taken.
    fn check_hash(&self, section: &Section) -> Result<(), CarError> {
        let code = section.cid.hash().code();
        if self.legacy_hashes || !is_legacy(code) {
            return Ok(());
        }
        Err(section.hash_error(HashError::NotAllowed { code }))
    }
}

/// What an import did.
#[derive(Debug, Default)]
pub struct ImportReport {
    /// The CAR's roots.
    pub roots: Vec<AddedRoot>,
    /// Roots whose block is not in the CAR.
    pub roots_missing: Vec<Cid>,
    /// Sections in the CAR.
    pub n_blocks: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// The CAR had not changed since an earlier import: it was not read.
    pub unchanged: bool,
    /// The index that told where the sections are, if the CAR was not read for it.
    pub index: Option<String>,
    /// Blocks that an earlier import found at the same place and that are not here any more.
    pub n_gone: u64,
    /// Bad blocks that salvaging passed over; at least, if there are bytes that tell no block.
    pub n_bad: u64,
    /// Bytes that salvaging passed over without telling which blocks they are.
    pub n_untold: u64,
    /// The first of them.
    pub problems: Vec<String>,
}

/// Imports the CAR at `path` in place.
///
/// # Errors
/// `Verification`, naming the byte, if the CAR is cut, malformed or holds a wrong block; `Invalid`
/// if it cannot be opened; `Changed` if it changes meanwhile.
pub fn import(
    store: &Arc<Store>,
    path: &Path,
    options: &ImportOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<ImportReport> {
    let context = || format!("cannot import {}", path.display());
    let path = std::fs::canonicalize(path).context(ErrorKind::Invalid, context)?;
    import_at(store, &path, options, progress, stop)
}

/// Imports the CAR at a path that was resolved when it was named: no symlink in it is followed.
///
/// # Errors
/// As [`import`].
pub fn import_at(
    store: &Arc<Store>,
    path: &Path,
    options: &ImportOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<ImportReport> {
    let context = || format!("cannot import {}", path.display());
    if !path.is_absolute() {
        let what = format!("{}: it came from a stream, and lies nowhere", context());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let file = LocalFile::open_settled(path).context(ErrorKind::Invalid, context)?;
    let _ingest = store.ingest_lock();
    let mut sink = Sink::new(store)?;
    if let Some(known) = sink.known_file(path, CAR_PROFILE)?
        && known.validator == file.validator
        && let Some(container) = known.container
    {
        let roots = read_header(&file, options).map_err(|error| car_failed(path, error))?;
        let mut report = ImportReport {
            n_blocks: known.sum.n_blocks,
            bytes: known.sum.file_len,
            unchanged: true,
            ..ImportReport::default()
        };
        // One of them may have been dropped.
        promise(&mut sink, path, &roots, Some(container), &mut report, stop)?;
        sink.finish()?;
        report.find_missing(store, Some(container));
        return Ok(report);
    }
    file.advise_sequential();
    let container = sink.new_container();
    let mut report = ImportReport::default();
    let mut work = Import {
        file: &file,
        path,
        container,
        options,
        sink: &mut sink,
        report: &mut report,
        progress,
        stop,
    };
    let scanned = work.run();
    // A file that was cut meanwhile is no bad CAR.
    if file.current_validator().ok().as_ref() != Some(&file.validator) {
        let what = format!("{} changed while it was imported", path.display());
        return Err(Error::new(ErrorKind::Changed, what));
    }
    let roots = scanned?;
    sink.container(container, ContainerKind::Car, path, &file.validator);
    if report.n_bad == 0 {
        let (sum, validator) = (report.sum(cid::empty_identity()), &file.validator);
        sink.file(path, CAR_PROFILE, validator, Some(container), None, sum);
    }
    promise(&mut sink, path, &roots, Some(container), &mut report, stop)?;
    sink.finish()?;
    report.find_missing(store, Some(container));
    Ok(report)
}

/// Imports a CAR from a stream: its blocks are copied into a pack.
///
/// # Errors
/// As [`import`]; without salvage nothing is kept of a CAR that does not verify.
pub fn import_copy(
    store: &Arc<Store>,
    name: &Path,
    input: &mut dyn Read,
    options: &ImportOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<ImportReport> {
    let _ingest = store.ingest_lock();
    let mut sink = Sink::all_or_nothing(store)?;
    let mut report = ImportReport::default();
    let copied = copy::copy(&mut sink, input, options, &mut report, progress, stop);
    let roots = copied.map_err(|error| car_failed(name, error))?;
    let pack = sink.pack_id();
    promise(&mut sink, name, &roots, pack, &mut report, stop)?;
    sink.finish()?;
    report.find_missing(store, pack);
    Ok(report)
}

impl ImportReport {
    fn bad(&mut self, error: &CarError) {
        self.n_bad += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(error.to_string());
        }
    }

    fn sum(&self, cid: Cid) -> Sum {
        Sum {
            cid,
            file_len: self.bytes,
            dag_len: self.bytes,
            n_blocks: self.n_blocks,
            n_files: 1,
        }
    }

    /// Looks which roots are blocks of `container`, where the index is complete.
    fn find_missing(&mut self, store: &Store, container: Option<ContainerId>) {
        let mut locations = Vec::new();
        for root in &self.roots {
            locations.clear();
            store.index().get(root.cid.hash(), &mut locations);
            let is_there = locations.iter().any(|at| Some(at.container) == container);
            if !is_there && cid::identity_data(&root.cid).is_none() {
                self.roots_missing.push(root.cid);
            }
        }
    }
}

fn car_failed(path: &Path, error: CarFailure) -> Error {
    match error {
        CarFailure::Other(error) => error,
        CarFailure::Io(error) => Error::with(
            ErrorKind::Unavailable,
            format!("cannot read {}", path.display()),
            error,
        ),
        CarFailure::Car(error @ CarError::TooManyRoots { .. }) => {
            let what = format!("{} is more than is taken", path.display());
            Error::with(ErrorKind::Limit, what, error)
        }
        CarFailure::Car(error) => {
            let hint = hint(&error).unwrap_or_default();
            let what = format!("{} is not a sound CAR{hint}", path.display());
            Error::with(ErrorKind::Verification, what, error)
        }
    }
}

/// The switch under which a CAR is sound that is not without it.
fn hint(error: &CarError) -> Option<&'static str> {
    Some(match error {
        CarError::ZeroSection { .. } => " (--allow-padding takes zeros behind the last block)",
        CarError::SectionTooLong { len, len_max, .. }
            if (*len_max..=SECTION_LEN_MAX_LARGE).contains(len) =>
        {
            " (--allow-big-blocks takes blocks of up to 8 MiB)"
        }
        CarError::HashNotAllowed {
            source: HashError::NotAllowed { code },
            ..
        } if is_legacy(*code) => " (--allow-legacy-hashes takes SHA-1 and double SHA2-256)",
        _ => return None,
    })
}

/// Either the CAR's fault, or not.
enum CarFailure {
    Car(CarError),
    Io(std::io::Error),
    Other(Error),
}

impl From<CarError> for CarFailure {
    fn from(error: CarError) -> Self {
        Self::Car(error)
    }
}

impl From<std::io::Error> for CarFailure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for CarFailure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// The roots that a CAR's header names.
fn read_header(file: &LocalFile, options: &ImportOptions) -> Result<Vec<Cid>, CarFailure> {
    let (mut window, mut parser, end) = open_car(file, options)?;
    let mut want = HEAD_LEN;
    loop {
        let (bytes, eof) = window.at(parser.offset(), want, end)?;
        match parser.next(bytes, eof)? {
            Step::Need(n) => want = n,
            Step::Header(header) => return Ok(header.roots),
            Step::Section(_) | Step::End => return Ok(Vec::new()), // The header comes first.
        }
    }
}

/// A parser at the start of the CARv1, the window it looks through, and where the CARv1 ends.
fn open_car<'a>(
    file: &'a LocalFile,
    options: &ImportOptions,
) -> Result<(Window<'a>, Parser, u64), CarFailure> {
    let mut window = Window {
        file,
        start: 0,
        bytes: Vec::new(),
    };
    let (start, end) = payload(&mut window, file.validator.size())?;
    let mut parser = Parser::new(options.limits, start);
    parser.set_end(end);
    Ok((window, parser, end))
}

/// Sections verified by one worker.
struct Verified {
    good: Vec<Section>,
    bad: Vec<CarFailure>,
}

struct Import<'a, 'b> {
    file: &'a LocalFile,
    path: &'a Path,
    container: ContainerId,
    options: &'a ImportOptions,
    sink: &'a mut Sink<'b>,
    report: &'a mut ImportReport,
    progress: &'a mut dyn Progress,
    stop: &'a AtomicBool,
}

impl Import<'_, '_> {
    /// Verifies everything; gives the CAR's roots.
    fn run(&mut self) -> Result<Vec<Cid>> {
        let n_threads = self.options.n_threads.max(1);
        let (jobs, job_receiver) = sync_channel::<Vec<Section>>(n_threads * JOBS_MAX);
        let (results_sender, results) = sync_channel::<Verified>(n_threads * JOBS_MAX);
        let job_receiver = Mutex::new(job_receiver);
        let file = self.file;
        std::thread::scope(|scope| {
            for n in 0..n_threads {
                let results = results_sender.clone();
                let receiver = &job_receiver;
                let work = move || verify_all(file, receiver, &results);
                match std::thread::Builder::new().spawn_scoped(scope, work) {
                    // With fewer it takes longer.
                    Err(error) if n == 0 => {
                        drop(jobs);
                        let what = "cannot start a thread that verifies";
                        return Err(Error::with(ErrorKind::Unavailable, what, error));
                    }
                    Err(_) => break,
                    Ok(_) => {}
                }
            }
            drop(results_sender);
            let outcome = self.scan(jobs, &results, n_threads * JOBS_MAX);
            while results.recv().is_ok() {} // After an error: let the workers end.
            outcome.map_err(|error| car_failed(self.path, error))
        })
    }

    fn scan(
        &mut self,
        jobs: SyncSender<Vec<Section>>,
        results: &Receiver<Verified>,
        in_flight_max: usize,
    ) -> Result<Vec<Cid>, CarFailure> {
        let (mut window, mut parser, end) = open_car(self.file, self.options)?;
        let (mut resync, mut last) = (Resync::default(), 0);
        let mut roots = None;
        let mut batch = Vec::new();
        let mut batch_len = 0;
        let mut in_flight = 0;
        let mut want = HEAD_LEN;
        let failure = loop {
            let (bytes, eof) = window.at(parser.offset(), want, end)?;
            match next_in(&mut parser, bytes, eof, end) {
                Err(error) if self.options.salvage && roots.is_some() => {
                    // A wrong length before may have hidden what follows it.
                    let next = self.behind(&error, &mut resync, &mut window, last + 1, end)?;
                    self.report.n_untold += next.unwrap_or(end).saturating_sub(parser.offset());
                    let Some(next) = next else { break None };
                    parser = Parser::resume(self.options.limits, next);
                    parser.set_end(end);
                    want = HEAD_LEN;
                }
                Err(error) => break Some(error),
                Ok(Step::Need(n)) => want = n,
                Ok(Step::Header(header)) => {
                    want = HEAD_LEN;
                    last = parser.offset().saturating_sub(1);
                    roots = Some(header.roots);
                }
                Ok(Step::End) => break None,
                Ok(Step::Section(section)) => {
                    want = HEAD_LEN;
                    last = section.offset;
                    if let Err(error) = self.options.check_hash(&section) {
                        if !self.options.salvage {
                            break Some(error);
                        }
                        self.report.bad(&error);
                        continue;
                    }
                    batch_len += u64::from(section.data_len);
                    batch.push(section);
                }
            }
            if batch_len < BATCH_LEN && batch.len() < BATCH_SECTIONS {
                continue;
            }
            check_stop(self.stop)?;
            while in_flight >= in_flight_max {
                self.take(results, &mut in_flight)?;
            }
            if jobs.send(std::mem::take(&mut batch)).is_ok() {
                in_flight += 1;
            }
            batch_len = 0;
            self.progress
                .update("verifying", parser.offset(), Some(end));
        };
        if !batch.is_empty() && jobs.send(batch).is_ok() {
            in_flight += 1;
        }
        drop(jobs);
        while in_flight > 0 {
            self.take(results, &mut in_flight)?;
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(roots.unwrap_or_default()),
        }
    }

    /// Notes what cannot be read; gives where the next sound section begins.
    fn behind(
        &mut self,
        error: &CarError,
        resync: &mut Resync,
        window: &mut Window<'_>,
        from: u64,
        end: u64,
    ) -> Result<Option<u64>, CarFailure> {
        self.report.bad(error);
        let (progress, stop) = (&mut *self.progress, self.stop);
        let mut go_on = |offset| {
            progress.update("verifying", offset, Some(end));
            check_stop(stop)
        };
        resync.in_file(self.file, window, self.options, from, end, &mut go_on)
    }

    /// One batch's outcome.
    fn take(
        &mut self,
        results: &Receiver<Verified>,
        in_flight: &mut usize,
    ) -> Result<(), CarFailure> {
        let Ok(verified) = results.recv() else {
            *in_flight = 0;
            let what = "a verifying thread ended early";
            return Err(Error::new(ErrorKind::Internal, what).into());
        };
        *in_flight -= 1;
        for failure in verified.bad {
            match failure {
                CarFailure::Car(error) if self.options.salvage => self.report.bad(&error),
                failure => return Err(failure),
            }
        }
        for section in verified.good {
            self.report.n_blocks += 1;
            self.report.bytes += u64::from(section.data_len);
            if cid::identity_data(&section.cid).is_none() {
                let (container, offset, len) =
                    (self.container, section.data_offset, section.data_len);
                self.sink.range(
                    &section.cid,
                    Location {
                        container,
                        offset,
                        len,
                        wrapped: false,
                    },
                )?;
            }
        }
        Ok(())
    }
}

fn check_stop(stop: &AtomicBool) -> Result<(), CarFailure> {
    if stop.load(Ordering::Relaxed) {
        let what = "interrupted; nothing of this CAR was kept";
        return Err(Error::new(ErrorKind::Unavailable, what).into());
    }
    Ok(())
}

/// The parser's next step; no section that passes the end.
fn next_in(parser: &mut Parser, bytes: &[u8], eof: bool, end: u64) -> Result<Step, CarError> {
    match parser.next(bytes, eof)? {
        Step::Section(section) if section.end() > end => {
            let offset = section.offset;
            Err(CarError::Truncated { offset })
        }
        step => Ok(step),
    }
}

/// Where the CARv1 lies in the file: all of it, or what a CARv2 header says.
fn payload(window: &mut Window<'_>, file_len: u64) -> Result<(u64, u64), CarFailure> {
    let (head, _) = window.at(0, v2::START_LEN, file_len)?;
    if v2::is_v2(head) != Some(true) {
        return Ok((0, file_len));
    }
    let header = v2::parse(head, file_len)?;
    Ok((header.data_offset, header.data_end()))
}

/// The part of the file that the parser looks at.
struct Window<'a> {
    file: &'a LocalFile,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// At least `want` bytes from `offset`, or all up to `end`; and whether that is all.
    fn at(&mut self, offset: u64, want: usize, end: u64) -> Result<(&[u8], bool), CarFailure> {
        let window_end = self.start + self.bytes.len() as u64;
        let wanted_end = offset.saturating_add(want as u64).min(end);
        if offset < self.start || wanted_end > window_end {
            // Behind long sections heads lie far apart and are read alone.
            let len = if offset > window_end {
                want.max(512)
            } else {
                want.max(64 << 10)
            };
            let len = usize::try_from(end.saturating_sub(offset))
                .unwrap_or(len)
                .min(len);
            self.bytes.resize(len, 0);
            self.file.read_exact_at(&mut self.bytes, offset)?;
            self.start = offset;
        }
        let skip = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(skip..).unwrap_or_default();
        let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
        Ok((bytes, offset + bytes.len() as u64 >= end))
    }
}

fn verify_all(file: &LocalFile, jobs: &Mutex<Receiver<Vec<Section>>>, done: &SyncSender<Verified>) {
    let mut buffer = Vec::new();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(sections) = job else { return };
        let mut verified = Verified {
            good: Vec::with_capacity(sections.len()),
            bad: Vec::new(),
        };
        let span = read_span(file, &sections, &mut buffer);
        for section in sections {
            let checked = match span {
                Some(start) => verify_in(&section, &buffer, start),
                None => verify_at(file, &section, &mut buffer),
            };
            match checked {
                Ok(()) => verified.good.push(section),
                Err(error) => verified.bad.push(error),
            }
        }
        if done.send(verified).is_err() {
            return;
        }
    }
}

/// Reads short sections all at once; gives where the buffer starts in the file.
fn read_span(file: &LocalFile, sections: &[Section], buffer: &mut Vec<u8>) -> Option<u64> {
    let (first, last) = (sections.first()?, sections.last()?);
    let len = (last.data_offset + u64::from(last.data_len)).checked_sub(first.data_offset)?;
    if len / sections.len() as u64 > SMALL_SECTION {
        return None;
    }
    buffer.resize(usize::try_from(len).ok()?, 0); // At most BATCH_LEN and one section.
    file.read_exact_at(buffer, first.data_offset).ok()?;
    Some(first.data_offset)
}

fn verify_in(section: &Section, buffer: &[u8], start: u64) -> Result<(), CarFailure> {
    let from = usize::try_from(section.data_offset - start).unwrap_or(usize::MAX);
    let data = buffer
        .get(from..from.saturating_add(section.data_len as usize))
        .unwrap_or_default();
    Ok(section.verify(data)?)
}

fn verify_at(file: &LocalFile, section: &Section, buffer: &mut Vec<u8>) -> Result<(), CarFailure> {
    let mut verifier =
        Verifier::new(section.cid.hash()).map_err(|error| section.hash_error(error))?;
    buffer.resize(SLICE_LEN, 0);
    let mut offset = section.data_offset;
    let end = offset + u64::from(section.data_len);
    while offset < end {
        let len = usize::try_from(end - offset)
            .unwrap_or(SLICE_LEN)
            .min(SLICE_LEN);
        let slice = buffer.get_mut(..len).unwrap_or_default();
        file.read_exact_at(slice, offset)?;
        verifier.update(slice);
        offset += len as u64;
    }
    Ok(verifier
        .finish()
        .map_err(|error| section.hash_error(error))?)
}
