//! Adding from a source in memory that lists, fails and changes as it is told.

mod add;
pub(crate) mod fake;
