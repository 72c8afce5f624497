//! Bugs that are planted to see whether the simulator finds them. Each is a wrong decision in one place;
//! a run without one of them is a run of the product's own decisions.

use std::fmt;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Bug {
            $($(#[doc = $doc])* $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name in plans and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

bugs! {
    /// A log entry is acknowledged before the disk has it.
    AckBeforeSync = "ack-before-sync",
    /// A vote is not on disk when it is given.
    VoteForgotten = "vote-forgotten",
    /// A leader takes its own copy for a quorum.
    CommitAlone = "commit-alone",
    /// Voters stand after the same time, each time.
    ElectionTimeoutFixed = "election-timeout-fixed",
    /// A snapshot leaves the revoked tokens out.
    SnapshotForgetsRevocations = "snapshot-forgets-revocations",
    /// A linearizable read answers from what is applied here.
    ReadWithoutIndex = "read-without-index",
    /// A retry goes by a new request id.
    RetryUnderNewId = "retry-under-new-id",
    /// Engines send whether or not the lease holds.
    LeaseNotAsked = "lease-not-asked",
    /// One node's impression is a verdict.
    VerdictAlone = "verdict-alone",
    /// The former home is not asked to let go and does not look at the log.
    FormerHomeKeepsOn = "former-home-keeps-on",
    /// An engine takes relay packets of any epoch.
    RelayEpochNotChecked = "relay-epoch-not-checked",
    /// An engine goes on relaying what nobody wants.
    RelayLeaked = "relay-leaked",
    /// Data is not kept for those who move.
    MovesNotReplayed = "moves-not-replayed",
    /// Data is handed on before the state it was sent in.
    AheadNotWaited = "ahead-not-waited",
    /// A session that is taken over says that it has everything the client sent.
    SequenceFromOneNode = "sequence-from-one-node",
    /// The mesh sends again what was acknowledged.
    MeshRepeats = "mesh-repeats",
    /// People without a session leave at once.
    OrphansLeaveAtOnce = "orphans-leave-at-once",
    /// A node leaves out a change of the feed.
    FeedSkips = "feed-skips",
    /// A resume is answered with a new session.
    ResumeMakesNewSession = "resume-makes-new-session",
    /// A room is closed when the last one at a node leaves it.
    RoomClosedWhenLocallyEmpty = "room-closed-when-locally-empty",
    /// The leader's time limits go by the clock of each replica.
    ClockInApply = "clock-in-apply",
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
