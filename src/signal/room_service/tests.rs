//! Twirp requests into commands, outcomes into responses.
