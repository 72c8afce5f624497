//! The groups of this node, by id, and the gRPC services through which other nodes reach them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tonic::service::Routes;

use crate::channels::Channels;
use crate::config::GroupId;
use crate::group::Group;
use crate::network::MESSAGE_MAX;
use crate::proto::consensus_server::ConsensusServer;
use crate::proto::membership_server::MembershipServer;
use crate::service::Service;

/// The groups of this node. Groups come and go while the services run, hence the lock.
#[derive(Clone, Default)]
pub struct Groups {
    by_name: Arc<RwLock<BTreeMap<String, Group>>>,
}

impl Groups {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a group reachable for other nodes.
    pub fn insert(&self, group: Group) {
        let name = group.core.local.group.to_string();
        self.by_name
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, group);
    }

    /// The group of this id.
    #[must_use]
    pub fn get(&self, id: &GroupId) -> Option<Group> {
        self.named(&id.name())
    }

    /// All groups, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Group> {
        let groups = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        groups.values().cloned().collect()
    }

    pub(crate) fn named(&self, name: &str) -> Option<Group> {
        let groups = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        groups.get(name).cloned()
    }

    /// The services for the cluster port; they ask for the proof of the secret. Other services may
    /// be added, wrapped by [`Channels::guard`].
    #[must_use]
    pub fn routes(&self, channels: &Channels) -> Routes {
        let service = Service::new(self.clone());
        let consensus = ConsensusServer::new(service.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let membership = MembershipServer::new(service);
        Routes::new(channels.guard(consensus)).add_service(channels.guard(membership))
    }
}

impl From<Group> for Groups {
    fn from(group: Group) -> Self {
        let groups = Self::new();
        groups.insert(group);
        groups
    }
}
