//! A session's changes on their way to the log: one at a time, in order.
//!
//! Two proposals under way at once could be applied in either order, so a mute could overtake its
//! unmute. The queue is bounded: what the session itself must bring about is merged per subject and
//! asked for again when there was no quorum; what the client asked for fails and says so.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use flotilla_model::command::Command;
use flotilla_model::id::{RequestId, TrackSid};
use livekit_protocol as proto;

use super::CommitError;

/// What a proposal is for, and whom its outcome concerns.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Purpose {
    Join,
    /// To become the participant's home.
    Adopt,
    Activate,
    Leave,
    /// A new track, or a new encoding of a track that is there already.
    Publish {
        track: TrackSid,
        fresh: bool,
        request: Box<proto::AddTrackRequest>,
    },
    Describe(TrackSid),
    Unpublish(TrackSid),
    Mute(TrackSid),
    Subscriptions,
    SubscriptionPermission,
    Metadata(proto::UpdateParticipantMetadata),
    AudioTrack(proto::UpdateLocalAudioTrack),
    VideoTrack(proto::UpdateLocalVideoTrack),
}

impl Purpose {
    /// Asked for again until it is decided.
    fn is_persistent(&self) -> bool {
        match self {
            Self::Adopt
            | Self::Activate
            | Self::Leave
            | Self::Describe(_)
            | Self::Unpublish(_)
            | Self::Mute(_)
            | Self::Subscriptions
            | Self::SubscriptionPermission => true,
            Self::Join
            | Self::Publish { .. }
            | Self::Metadata(_)
            | Self::AudioTrack(_)
            | Self::VideoTrack(_) => false,
        }
    }

    /// The newer one says it all.
    fn replaces(&self, older: &Self) -> bool {
        self == older
            && matches!(
                self,
                Self::Adopt
                    | Self::Activate
                    | Self::Leave
                    | Self::Describe(_)
                    | Self::Unpublish(_)
                    | Self::Mute(_)
                    | Self::SubscriptionPermission
            )
    }
}

#[derive(Clone, Debug)]
pub(super) struct Proposal {
    pub(super) request: RequestId,
    pub(super) command: Command,
    pub(super) purpose: Purpose,
}

#[derive(Debug)]
pub(super) struct Proposals {
    waiting: VecDeque<Proposal>,
    flying: Option<Proposal>,
    retry_at: Option<Instant>,
    waiting_max: usize,
}

/// What an outcome means for the queue.
#[derive(Debug)]
pub(super) enum Landed {
    /// Not one of ours, or one that is asked for again.
    Nothing,
    /// The one that was under way.
    Decided(Box<Proposal>),
    /// The one that was under way and those behind it that the client waits for.
    Failed(Vec<Proposal>),
}

impl Proposals {
    pub(super) fn new(waiting_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            flying: None,
            retry_at: None,
            waiting_max,
        }
    }

    /// Queues a proposal. Full: a client's request is refused, the session's own ones are taken
    /// (they are merged, so there are at most a few per track).
    pub(super) fn push(&mut self, proposal: Proposal) -> bool {
        let older = self
            .waiting
            .iter_mut()
            .find(|waiting| proposal.purpose.replaces(&waiting.purpose));
        if let Some(older) = older {
            // With its own id: the older one may have been applied without our knowing.
            older.request = proposal.request;
            older.command = proposal.command;
            return true;
        }
        if self.waiting.len() >= self.waiting_max && !proposal.purpose.is_persistent() {
            return false;
        }
        self.waiting.push_back(proposal);
        true
    }

    /// The waiting command for a purpose, to be added to; it goes by a new id from then on.
    pub(super) fn waiting_mut(
        &mut self,
        purpose: &Purpose,
        request: RequestId,
    ) -> Option<&mut Command> {
        let waiting = self
            .waiting
            .iter_mut()
            .find(|waiting| waiting.purpose == *purpose)?;
        waiting.request = request;
        Some(&mut waiting.command)
    }

    /// Whether one of this purpose waits or is under way.
    pub(super) fn has(&self, purpose: &Purpose) -> bool {
        let mut all = self.waiting.iter().chain(&self.flying);
        all.any(|proposal| proposal.purpose == *purpose)
    }

    /// Drops what waits; what is under way stays.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Nothing is asked for any more, and no outcome is waited for.
    pub(super) fn end(&mut self) {
        self.clear();
        self.flying = None;
        self.retry_at = None;
    }

    pub(super) fn take_off(&mut self) -> Option<(RequestId, Command)> {
        if self.flying.is_some() || self.retry_at.is_some() {
            return None;
        }
        let next = self.waiting.pop_front()?;
        let asked = (next.request, next.command.clone());
        self.flying = Some(next);
        Some(asked)
    }

    /// Takes an outcome.
    pub(super) fn land(
        &mut self,
        now: Instant,
        request: RequestId,
        error: Option<&CommitError>,
        retry: Duration,
    ) -> Landed {
        let Some(landed) = self.flying.take_if(|flying| flying.request == request) else {
            return Landed::Nothing;
        };
        if !matches!(error, Some(CommitError::Unavailable(_))) {
            return Landed::Decided(Box::new(landed));
        }
        let (kept, failed): (Vec<_>, Vec<_>) = self
            .waiting
            .drain(..)
            .partition(|waiting| waiting.purpose.is_persistent());
        let mut failed = failed;
        self.waiting = kept.into();
        if landed.purpose.is_persistent() {
            self.waiting.push_front(landed);
        } else {
            failed.insert(0, landed);
        }
        if !self.waiting.is_empty() {
            self.retry_at = Some(now + retry);
        }
        Landed::Failed(failed)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.retry_at.take_if(|at| *at <= now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing;

    fn proposal(number: u128, purpose: Purpose) -> Proposal {
        Proposal {
            request: RequestId(number),
            command: Command::Noop,
            purpose,
        }
    }

    fn metadata() -> Purpose {
        Purpose::Metadata(proto::UpdateParticipantMetadata::default())
    }

    const RETRY: Duration = Duration::from_secs(1);

    fn unavailable() -> CommitError {
        CommitError::Unavailable("no leader".into())
    }

    #[test]
    fn one_is_under_way_at_a_time_in_order() {
        let now = testing::start();
        let mut proposals = Proposals::new(8);
        assert!(proposals.push(proposal(1, metadata())));
        assert!(proposals.push(proposal(2, Purpose::Activate)));
        assert_eq!(proposals.take_off(), Some((RequestId(1), Command::Noop)));
        assert_eq!(proposals.take_off(), None);
        let other = proposals.land(now, RequestId(9), None, RETRY);
        assert!(matches!(other, Landed::Nothing));
        let landed = proposals.land(now, RequestId(1), None, RETRY);
        assert!(matches!(landed, Landed::Decided(p) if p.purpose == metadata()));
        assert_eq!(proposals.take_off(), Some((RequestId(2), Command::Noop)));
    }

    #[test]
    fn without_quorum_requests_fail_and_duties_are_asked_for_again() {
        let now = testing::start();
        let mut proposals = Proposals::new(8);
        assert!(proposals.push(proposal(1, Purpose::Activate)));
        assert!(proposals.push(proposal(2, metadata())));
        assert!(proposals.take_off().is_some());
        let Landed::Failed(failed) = proposals.land(now, RequestId(1), Some(&unavailable()), RETRY)
        else {
            panic!("the request behind fails");
        };
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].request, RequestId(2));
        assert_eq!(proposals.take_off(), None);
        assert_eq!(proposals.deadline(), Some(now + RETRY));
        proposals.handle_timeout(now + RETRY);
        assert_eq!(proposals.take_off(), Some((RequestId(1), Command::Noop)));
    }

    #[test]
    fn the_queue_is_bounded_and_merged() {
        let mut proposals = Proposals::new(1);
        assert!(proposals.push(proposal(1, metadata())));
        assert!(!proposals.push(proposal(2, metadata())));
        let mute = || Purpose::Mute("TR_1".into());
        assert!(proposals.push(proposal(3, mute())));
        assert!(proposals.push(proposal(4, mute())));
        assert!(proposals.take_off().is_some());
        let now = testing::start();
        proposals.land(now, RequestId(1), None, RETRY);
        assert_eq!(proposals.take_off(), Some((RequestId(4), Command::Noop)));
        assert!(proposals.has(&mute()));
        proposals.land(now, RequestId(4), None, RETRY);
        assert_eq!(proposals.take_off(), None);
    }
}
