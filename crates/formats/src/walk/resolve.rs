//! resolve: to be written.
