//! json: to be written.
