//! Sessions as state in, outputs out.
