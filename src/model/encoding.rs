//! Versioned bytes of commands and snapshots.
