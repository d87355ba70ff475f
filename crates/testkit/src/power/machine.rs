//! A disk with a moment at which its power goes, and calls that fail.
//!
//! In       the same operations as [`Disk`], a [`Cut`], [`Fault`]s, a seed.
//! Out      their results; after the cut `EIO` for all, until [`Machine::start_again`].
//! Limits   the names of the last [`TRACE_LEN`] changes and syncs are kept for people.
//! Not here who calls (`mount`).

use std::collections::VecDeque;
use std::ffi::OsStr;

use rustix::io::Errno;

use super::chance::Chance;
use super::disk::{Disk, Ino, Kind, Loss};

/// Lines of the trace.
const TRACE_LEN: usize = 400;

/// Where in a sync the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before it did anything.
    Before,
    /// When some of it is on the disk.
    During,
    /// When all of it is on the disk, and nobody was told.
    After,
}

/// When the power goes. Positions count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Before this change of the disk.
    Change(u64),
    /// At this sync.
    Sync(u64, Moment),
}

/// A call that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// fsync and fdatasync, of files and directories.
    Sync,
    /// write.
    Write,
    /// rename.
    Rename,
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// `EIO`. A failed sync loses what it was to write, and the next one does not tell.
    Io,
    /// `ENOSPC`.
    Full,
    /// Half of the bytes are written.
    Short,
}

/// One call that fails: the `nth` of its kind, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which call.
    pub call: Call,
    /// The how manieth.
    pub nth: u64,
    /// What happens.
    pub wrong: Wrong,
}

/// How many calls there were since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Everything that changes the disk, syncs apart.
    pub changes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Writes.
    pub writes: u64,
    /// Renames.
    pub renames: u64,
}

/// A disk and its power.
#[derive(Debug)]
pub struct Machine {
    disk: Disk,
    chance: Chance,
    sector_len: usize,
    cut: Option<Cut>,
    faults: Vec<Fault>,
    counts: Counts,
    is_off: bool,
    n_struck: u64,
    trace: VecDeque<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new(Disk::default(), 0)
    }
}

impl Machine {
    /// A machine that was just started.
    #[must_use]
    pub fn new(disk: Disk, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let sector_len = if chance.one_in(2) { 512 } else { 4096 };
        Self {
            disk,
            chance,
            sector_len,
            cut: None,
            faults: Vec::new(),
            counts: Counts::default(),
            is_off: false,
            n_struck: 0,
            trace: VecDeque::new(),
        }
    }

    /// Starts from `disk` with another seed. Nothing is to go wrong.
    pub fn load(&mut self, disk: &Disk, seed: u64) {
        let first = self.disk.next_ino();
        *self = Self::new(disk.renumbered(first), seed);
    }

    /// When the power is to go, in counts since the last start.
    pub fn cut_at(&mut self, cut: Option<Cut>) {
        self.cut = cut;
    }

    /// What is to fail, in counts since the last start.
    pub fn fail_at(&mut self, faults: Vec<Fault>) {
        self.faults = faults;
    }

    /// Cuts the power now if it is on, and starts with what a cut left. Nothing is to go wrong.
    pub fn start_again(&mut self) -> Loss {
        let loss = Loss::any(&mut self.chance);
        self.disk = self.disk.after_cut(loss, self.sector_len, &mut self.chance);
        self.sector_len = if self.chance.one_in(2) { 512 } else { 4096 };
        (self.cut, self.is_off) = (None, false);
        self.faults.clear();
        self.counts = Counts::default();
        self.note(format_args!("--- power, lost: {loss:?}"));
        loss
    }

    /// Goes on as if the cut had been the end of a process alone: nothing is lost. Nothing is to go
    /// wrong.
    pub fn resume(&mut self) {
        (self.cut, self.is_off) = (None, false);
        self.faults.clear();
        self.note(format_args!("--- goes on"));
    }

    /// Whether the cut has come.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.is_off
    }

    /// Calls that failed as they were to.
    #[must_use]
    pub const fn n_struck(&self) -> u64 {
        self.n_struck
    }

    /// How many calls there were since the start.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// What was done last, a line each.
    #[must_use]
    pub fn trace(&self) -> String {
        let lines: Vec<&str> = self.trace.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    /// The disk, for looking.
    ///
    /// # Errors
    /// `IO` if the power is off.
    pub const fn disk(&self) -> Result<&Disk, Errno> {
        if self.is_off {
            return Err(Errno::IO);
        }
        Ok(&self.disk)
    }

    /// The disk, whether or not its power is on: for tests, not for processes.
    #[must_use]
    pub const fn inspect(&self) -> &Disk {
        &self.disk
    }

    /// As [`Disk::make`].
    ///
    /// # Errors
    /// Those of the disk; `IO` if the power is off.
    pub fn make(&mut self, dir: Ino, name: &OsStr, kind: Kind, mode: u32) -> Result<Ino, Errno> {
        self.change(format_args!("make {kind:?} {}", name.to_string_lossy()))?;
        self.disk.make(dir, name, kind, mode)
    }

    /// As [`Disk::symlink`].
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn symlink(&mut self, dir: Ino, name: &OsStr, target: &OsStr) -> Result<Ino, Errno> {
        self.change(format_args!("symlink {}", name.to_string_lossy()))?;
        self.disk.symlink(dir, name, target)
    }

    /// As [`Disk::link`].
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &OsStr) -> Result<(), Errno> {
        self.change(format_args!("link {}", name.to_string_lossy()))?;
        self.disk.link(ino, dir, name)
    }

    /// As [`Disk::remove`].
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn remove(&mut self, dir: Ino, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        self.change(format_args!("remove {}", name.to_string_lossy()))?;
        self.disk.remove(dir, name, is_dir)
    }

    /// As [`Disk::rename`].
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn rename(
        &mut self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        may_replace: bool,
    ) -> Result<(), Errno> {
        let (shown, to_shown) = (from.1.to_string_lossy(), to.1.to_string_lossy());
        self.change(format_args!("rename {shown} to {to_shown}"))?;
        self.counts.renames += 1;
        match self.strikes(Call::Rename, self.counts.renames - 1) {
            Some(Wrong::Full) => Err(Errno::NOSPC),
            Some(_) => Err(Errno::IO),
            None => self.disk.rename(from, to, may_replace),
        }
    }

    /// As [`Disk::write`]; how many bytes were written.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let name = self.disk.name(ino);
        self.change(format_args!("write {name} {offset} +{}", data.len()))?;
        self.counts.writes += 1;
        let len = match self.strikes(Call::Write, self.counts.writes - 1) {
            Some(Wrong::Io) => return Err(Errno::IO),
            Some(Wrong::Full) => return Err(Errno::NOSPC),
            Some(Wrong::Short) => data.len().div_ceil(2),
            None => data.len(),
        };
        let data = data.get(..len).unwrap_or(data);
        self.disk.write(ino, offset, data)?;
        Ok(len)
    }

    /// As [`Disk::set_len`].
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn set_len(&mut self, ino: Ino, len: u64) -> Result<(), Errno> {
        let name = self.disk.name(ino);
        self.change(format_args!("length {name} {len}"))?;
        self.disk.set_len(ino, len)
    }

    /// As [`Disk::set_mode`].
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn set_mode(&mut self, ino: Ino, mode: u32) -> Result<(), Errno> {
        let name = self.disk.name(ino);
        self.change(format_args!("mode {name} {mode:o}"))?;
        self.disk.set_mode(ino, mode)
    }

    /// As [`Disk::sync`].
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        if self.is_off {
            return Err(Errno::IO);
        }
        let n = self.counts.syncs;
        let name = self.disk.name(ino);
        self.note(format_args!("sync {n} {name}"));
        self.counts.syncs += 1;
        if self.strikes(Call::Sync, n).is_some() {
            self.disk
                .fail_sync(ino, self.sector_len, &mut self.chance)?;
            return Err(Errno::IO);
        }
        let Some(Cut::Sync(_, moment)) = self
            .cut
            .filter(|cut| matches!(cut, Cut::Sync(at, _) if *at == n))
        else {
            return self.disk.sync(ino);
        };
        self.turn_off();
        match moment {
            Moment::Before => {}
            Moment::During => {
                self.disk
                    .sync_partly(ino, self.sector_len, &mut self.chance)?;
            }
            Moment::After => self.disk.sync(ino)?,
        }
        Err(Errno::IO)
    }

    /// Counts a change, unless the power is off or goes now.
    fn change(&mut self, what: std::fmt::Arguments<'_>) -> Result<(), Errno> {
        if self.is_off {
            return Err(Errno::IO);
        }
        if self.cut == Some(Cut::Change(self.counts.changes)) {
            self.turn_off();
            return Err(Errno::IO);
        }
        let n = self.counts.changes;
        self.note(format_args!("{n} {what}"));
        self.counts.changes += 1;
        Ok(())
    }

    fn turn_off(&mut self) {
        self.is_off = true;
        let cut = self.cut;
        self.note(format_args!("--- cut {cut:?}"));
    }

    fn strikes(&mut self, call: Call, n: u64) -> Option<Wrong> {
        let mut faults = self.faults.iter();
        let fault = faults.find(|fault| fault.call == call && fault.nth == n)?;
        let wrong = fault.wrong;
        self.n_struck += 1;
        self.note(format_args!("--- {wrong:?}"));
        Some(wrong)
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if self.trace.len() == TRACE_LEN {
            self.trace.pop_front();
        }
        self.trace.push_back(what.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use super::super::disk::ROOT;
    use super::{Call, Cut, Errno, Fault, Kind, Machine, Moment, Wrong};

    fn with_file() -> (Machine, u64) {
        let mut machine = Machine::default();
        let ino = machine.make(ROOT, OsStr::new("a"), Kind::File, 0o600);
        (machine, ino.unwrap())
    }

    #[test]
    fn after_the_cut_everything_fails_until_the_next_start() {
        let (mut machine, ino) = with_file();
        machine.cut_at(Some(Cut::Sync(1, Moment::After)));
        machine.write(ino, 0, b"alpha").unwrap();
        machine.sync(ROOT).unwrap();
        assert_eq!(machine.sync(ino), Err(Errno::IO));
        assert!(machine.is_off());
        assert_eq!(machine.write(ino, 0, b"x"), Err(Errno::IO));
        assert_eq!(machine.sync(ino), Err(Errno::IO));
        assert!(machine.disk().is_err());
        machine.start_again();
        let disk = machine.disk().unwrap();
        let found = disk.find(Path::new("a")).unwrap();
        assert!(found > ino, "numbers are new");
        assert_eq!(disk.bytes(found).unwrap(), b"alpha", "it was synced");
    }

    #[test]
    fn a_cut_before_a_change_keeps_it_out() {
        let (mut machine, ino) = with_file();
        machine.cut_at(Some(Cut::Change(2)));
        machine.write(ino, 0, b"alpha").unwrap();
        machine.sync(ino).unwrap();
        machine.sync(ROOT).unwrap();
        assert_eq!(machine.write(ino, 0, b"omega"), Err(Errno::IO));
        machine.start_again();
        let disk = machine.disk().unwrap();
        let found = disk.find(Path::new("a")).unwrap();
        assert_eq!(disk.bytes(found).unwrap(), b"alpha");
    }

    #[test]
    fn the_nth_call_of_a_kind_fails_and_no_other() {
        let (mut machine, ino) = with_file();
        let fault = |call, wrong| Fault {
            call,
            nth: 1,
            wrong,
        };
        machine.fail_at(vec![
            fault(Call::Write, Wrong::Short),
            fault(Call::Sync, Wrong::Io),
            fault(Call::Rename, Wrong::Full),
        ]);
        let lens = [4, 4, 4].map(|len| machine.write(ino, 0, &vec![1; len]).unwrap());
        assert_eq!(lens, [4, 2, 4]);
        let syncs = [ino, ino, ino].map(|ino| machine.sync(ino).is_ok());
        assert_eq!(syncs, [true, false, true]);
        let (a, b) = ((ROOT, OsStr::new("a")), (ROOT, OsStr::new("b")));
        machine.rename(a, b, true).unwrap();
        assert_eq!(machine.rename(b, a, true), Err(Errno::NOSPC));
        machine.rename(b, a, true).unwrap();
        assert_eq!(machine.n_struck(), 3);
    }
}
