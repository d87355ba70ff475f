//! A disk that loses power: what was not synced is dropped, torn or reordered at the cut.
//!
//! In       operations of a file system, where to cut or to fail, a seed.
//! Out      [`Machine`]: the file system as processes see it, and as it is after the next start;
//!          with feature `power` a mount of it (`mount`), for programs that know nothing of it.
//! Limits   all in memory; files of up to [`FILE_LEN_MAX`] bytes. The same seed and the same
//!          operations give the same disk.
//! Not here what a program makes of it (`carrack`'s tests).
//!
//! What is promised is what POSIX promises, and no more than that:
//! - fsync of a file makes its bytes, its length and its mode durable, not its name;
//! - fsync of a directory makes the entries in it durable: creations, renames and removals;
//! - what was not synced may have happened or not, a file sector by sector in any order, an entry
//!   by itself, a rename as a whole; but no entry before one of the same name that it builds on;
//! - after a failed fsync of a file the next one does not write again what the failed one lost.

mod chance;
mod disk;
mod file;
mod machine;
#[cfg(feature = "power")]
pub mod mount;

pub use chance::Chance;
pub use disk::{Attributes, Disk, Entry, Ino, Kind, Loss, ROOT};
pub use file::FILE_LEN_MAX;
pub use machine::{Call, Counts, Cut, Fault, Machine, Moment, Wrong};
