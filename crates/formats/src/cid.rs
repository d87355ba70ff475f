//! cid: to be written.
