//! The disk as a mount, for programs that know nothing of it.
//!
//! In       an empty directory, root's rights and `/dev/fuse`.
//! Out      a file system on a [`Machine`]; cuts and starts without a new mount, for no number of
//!          a file is used twice and the kernel keeps nothing of the top directory.
//! Limits   one thread answers the kernel; extended attributes, `fallocate` and locks over several
//!          machines are not there (locks are the kernel's own).
//! Not here what is durable (`disk`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use super::disk::{Attributes, Entry, Ino, Kind, ROOT};
use super::machine::Machine;

/// How long the kernel may keep what it was told.
const KEPT: Duration = Duration::from_secs(3600);
const BLOCK_LEN: u32 = 4096;
/// Free space that is claimed, in blocks.
const BLOCKS_FREE: u64 = 1 << 20;
/// The time of the first change.
const FIRST_TIME_SECS: u64 = 1_700_000_000;

/// A mounted machine; unmounted when dropped.
#[derive(Debug)]
pub struct PowerMount {
    machine: Arc<Mutex<Machine>>,
    session: Option<BackgroundSession>,
    dir: PathBuf,
}

impl PowerMount {
    /// Mounts an empty disk on `dir`.
    ///
    /// # Errors
    /// Those of mounting, with what it takes.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let machine = Arc::new(Mutex::new(Machine::default()));
        let filesystem = PowerFilesystem {
            machine: Arc::clone(&machine),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("carrack-power".to_owned())];
        let session = Session::new(filesystem, dir, &config).and_then(Session::spawn);
        let session = session.map_err(|error| {
            let what = "a disk that loses power cannot be mounted: run as root on a machine with \
                        /dev/fuse (modprobe fuse; in a container --device /dev/fuse --cap-add \
                        SYS_ADMIN)";
            io::Error::new(error.kind(), format!("{what}: {error}"))
        })?;
        Ok(Self {
            machine,
            session: Some(session),
            dir: dir.to_owned(),
        })
    }

    /// The disk and its power. While this is held the mount waits: do not look into it.
    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        hold(&self.machine)
    }
}

impl Drop for PowerMount {
    fn drop(&mut self) {
        let session = self.session.take();
        if session.is_some_and(|session| session.umount_and_join().is_err()) {
            // Somebody still has a file open there: the name goes now, the rest with the process.
            let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
        }
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct PowerFilesystem {
    machine: Arc<Mutex<Machine>>,
    /// Directories that are open, as they were then: an offset means the same whatever is removed.
    listings: Mutex<BTreeMap<u64, Vec<Entry>>>,
    next_handle: AtomicU64,
}

impl PowerFilesystem {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        hold(&self.machine)
    }

    /// Carries out what gives something a name, and tells what it is.
    fn named(
        &self,
        dir: INodeNo,
        reply: ReplyEntry,
        make: impl FnOnce(&mut Machine) -> Result<Ino, Errno>,
    ) {
        let mut machine = self.machine();
        match make(&mut machine).and_then(|ino| machine.disk()?.attributes(ino)) {
            Ok(found) => reply.entry(&kept(dir.0), &attr(&found), Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn done(&self, reply: ReplyEmpty, carry_out: impl FnOnce(&mut Machine) -> Result<(), Errno>) {
        match carry_out(&mut self.machine()) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }
}

/// What was told of the top directory is asked for again: a start changes it.
const fn kept(ino: Ino) -> Duration {
    if ino == ROOT { Duration::ZERO } else { KEPT }
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

const fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    }
}

fn attr(found: &Attributes) -> FileAttr {
    let secs = Duration::from_secs(FIRST_TIME_SECS + found.changed);
    let time = UNIX_EPOCH.checked_add(secs).unwrap_or(UNIX_EPOCH);
    FileAttr {
        ino: INodeNo(found.ino),
        size: found.len,
        blocks: found.len.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(found.kind),
        perm: u16::try_from(found.mode & 0o7777).unwrap_or_default(),
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_LEN,
        flags: 0,
    }
}

impl Filesystem for PowerFilesystem {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A kernel that takes less says what it takes.
        if let Err(most) = config.set_max_write(1 << 20) {
            let _ = config.set_max_write(most);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.named(parent, reply, |machine| {
            machine.disk()?.lookup(parent.0, name)
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let machine = self.machine();
        match machine.disk().and_then(|disk| disk.attributes(ino.0)) {
            Ok(found) => reply.attr(&kept(ino.0), &attr(&found)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut machine = self.machine();
        let mut set = || {
            if let Some(mode) = mode {
                machine.set_mode(ino.0, mode & 0o7777)?;
            }
            if let Some(len) = size {
                machine.set_len(ino.0, len)?;
            }
            machine.disk()?.attributes(ino.0)
        };
        match set() {
            Ok(found) => reply.attr(&kept(ino.0), &attr(&found)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let machine = self.machine();
        match machine.disk().and_then(|disk| disk.target(ino.0)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        use rustix::fs::FileType;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Kind::File,
            FileType::Socket => Kind::Socket,
            _ => return reply.error(fuser::Errno::EPERM),
        };
        self.named(parent, reply, |machine| {
            machine.make(parent.0, name, kind, mode & 0o7777)
        });
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.named(parent, reply, |machine| {
            machine.make(parent.0, name, Kind::Directory, mode & 0o7777)
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |machine| machine.remove(parent.0, name, false));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |machine| machine.remove(parent.0, name, true));
    }

    fn symlink(
        &self,
        _req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.named(parent, reply, |machine| {
            machine.symlink(parent.0, link_name, target.as_os_str())
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let may_replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(fuser::Errno::EINVAL);
        }
        self.done(reply, |machine| {
            machine.rename((parent.0, name), (newparent.0, newname), may_replace)
        });
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.named(newparent, reply, |machine| {
            machine.link(ino.0, newparent.0, newname)?;
            Ok(ino.0)
        });
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.machine().disk() {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut machine = self.machine();
        let made = machine.make(parent.0, name, Kind::File, mode & 0o7777);
        match made.and_then(|ino| machine.disk()?.attributes(ino)) {
            Ok(found) => reply.created(
                &kept(parent.0),
                &attr(&found),
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let machine = self.machine();
        match machine.disk().and_then(|disk| disk.bytes(ino.0)) {
            Ok(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let end = bytes.len().min(start.saturating_add(size as usize));
                reply.data(bytes.get(start..end).unwrap_or_default());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.machine().write(ino.0, offset, data) {
            Ok(len) => reply.written(u32::try_from(len).unwrap_or_default()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok(); // Nothing is held back from the disk as processes see it.
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.done(reply, |machine| machine.sync(ino.0));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.done(reply, |machine| machine.sync(ino.0));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let listing = self.machine().disk().and_then(|disk| disk.entries(ino.0));
        match listing {
            Ok(listing) => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                hold(&self.listings).insert(handle, listing);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if let Err(error) = self.machine().disk() {
            return reply.error(errno(error));
        }
        let listings = hold(&self.listings);
        let listing = listings.get(&fh.0).map(Vec::as_slice).unwrap_or_default();
        let left = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, entry) in listing.iter().enumerate().skip(left) {
            let next = index as u64 + 1;
            if reply.add(INodeNo(entry.ino), next, file_type(entry.kind), &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        hold(&self.listings).remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let free = BLOCKS_FREE;
        reply.statfs(2 * free, free, free, free, free, BLOCK_LEN, 255, BLOCK_LEN);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;

    use super::super::machine::{Call, Cut, Fault, Moment, Wrong};
    use super::PowerMount;

    fn mounted() -> (tempfile::TempDir, PowerMount) {
        let dir = tempfile::tempdir().unwrap();
        let mount = PowerMount::new(dir.path()).unwrap();
        (dir, mount)
    }

    #[test]
    fn files_are_what_they_are_elsewhere_until_the_power_goes() {
        let (dir, mount) = mounted();
        let sub = dir.path().join("data/sub");
        fs::create_dir_all(&sub).unwrap();
        let big: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        fs::write(sub.join("big"), &big).unwrap();
        fs::write(sub.join("small"), b"alpha").unwrap();
        let file = File::options().append(true).open(sub.join("small"));
        file.unwrap().write_all(b" omega").unwrap();
        assert_eq!(fs::read(sub.join("big")).unwrap(), big);
        fs::rename(sub.join("small"), sub.join("renamed")).unwrap();
        let file = File::open(sub.join("renamed")).unwrap();
        let mut part = [0; 5];
        file.read_exact_at(&mut part, 6).unwrap();
        assert_eq!(&part, b"omega");
        let names = || {
            let entries = fs::read_dir(&sub).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["big", "renamed"]);
        File::open(sub.join("big")).unwrap().sync_all().unwrap();
        for dir in [sub.as_path(), &dir.path().join("data"), dir.path()] {
            File::open(dir).unwrap().sync_all().unwrap();
        }
        mount.machine().start_again();
        assert_eq!(names(), ["big", "renamed"]);
        assert_eq!(fs::read(sub.join("big")).unwrap(), big);
        let renamed = fs::read(sub.join("renamed")).unwrap();
        assert!(b"alpha omega".starts_with(&renamed), "one sector");
    }

    #[test]
    fn the_cut_fails_what_is_under_way_and_the_next_start_shows_what_was_synced() {
        let (dir, mount) = mounted();
        let path = dir.path().join("a");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"alpha").unwrap();
        file.sync_all().unwrap();
        File::open(dir.path()).unwrap().sync_all().unwrap();
        let n_syncs = mount.machine().counts().syncs;
        mount
            .machine()
            .cut_at(Some(Cut::Sync(n_syncs, Moment::Before)));
        file.write_all(b" omega").unwrap();
        assert!(file.sync_all().is_err());
        assert!(mount.machine().is_off());
        assert!(fs::write(dir.path().join("b"), b"x").is_err());
        drop(file);
        mount.machine().start_again();
        let mut text = String::new();
        let mut file = File::open(&path).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(["alpha", "alpha omega"].contains(&text.as_str()), "{text}");
    }

    #[test]
    fn calls_fail_by_their_position() {
        let (dir, mount) = mounted();
        let fault = |call, nth, wrong| Fault { call, nth, wrong };
        mount.machine().fail_at(vec![
            fault(Call::Write, 1, Wrong::Full),
            fault(Call::Write, 2, Wrong::Short),
            fault(Call::Sync, 0, Wrong::Io),
            fault(Call::Rename, 0, Wrong::Io),
        ]);
        let path = dir.path().join("a");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one").unwrap();
        let full = file.write_all(b"two").unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(file.write(b"four").unwrap(), 2);
        assert!(file.sync_all().is_err());
        file.sync_all().unwrap();
        let other = dir.path().join("b");
        assert!(fs::rename(&path, &other).is_err());
        fs::rename(&path, &other).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"onefo");
        assert_eq!(mount.machine().n_struck(), 4);
    }
}
