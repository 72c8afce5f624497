//! Upgrade requests, good and bad.
