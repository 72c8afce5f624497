//! Who a message is from and for: metadata of every consensus call.
//!
//! A sender names the cluster, the group, itself, and the receiver with its incarnation; a receiver
//! refuses what is not for it ([`Local::check`]). So a message never takes effect in another
//! cluster that shares the secret, on a node that took over an address, or on a node that lost its
//! data and came back under its old id.

use std::sync::{Arc, Once, PoisonError, RwLock};

use flotilla_model::id::NodeId;
use flotilla_storage::Storage;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Status};
use tracing::warn;

use crate::types::Member;

const CLUSTER: &str = "flotilla-cluster";
const GROUP: &str = "flotilla-group";
const FROM: &str = "flotilla-from";
const TO: &str = "flotilla-to";
const INCARNATION: &str = "flotilla-incarnation";

/// Which cluster this node is in, once it is in one. Written once; read by every call.
#[derive(Clone)]
pub(crate) struct Cluster {
    id: Arc<RwLock<Option<Arc<str>>>>,
    storage: Storage,
}

impl Cluster {
    pub(crate) fn new(storage: Storage) -> Self {
        let id = storage.identity().cluster.map(Arc::from);
        Self {
            id: Arc::new(RwLock::new(id)),
            storage,
        }
    }

    pub(crate) fn id(&self) -> Option<Arc<str>> {
        self.id
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes this node one of `cluster`, durably. Fails if it is one of another.
    pub(crate) fn adopt(&self, cluster: &str) -> Result<(), String> {
        let mut id = self.id.write().unwrap_or_else(PoisonError::into_inner);
        match id.as_deref() {
            Some(own) if own == cluster => Ok(()),
            Some(own) => Err(format!(
                "this node belongs to cluster {own}, not to {cluster}"
            )),
            None => {
                self.storage
                    .set_cluster(cluster)
                    .map_err(|error| error.to_string())?;
                *id = Some(Arc::from(cluster));
                Ok(())
            }
        }
    }
}

/// This node, as one end of a group's messages.
#[derive(Clone)]
pub(crate) struct Local {
    pub(crate) node: NodeId,
    pub(crate) group: Arc<str>,
    pub(crate) incarnation: u64,
    pub(crate) cluster: Cluster,
}

impl Local {
    /// A request addressed to a member of the group.
    pub(crate) fn request<T>(&self, to: NodeId, member: &Member, body: T) -> Request<T> {
        let mut request = Request::new(body);
        let metadata = request.metadata_mut();
        if let Some(cluster) = self.cluster.id() {
            insert(metadata, CLUSTER, &cluster);
        }
        insert(metadata, GROUP, &self.group);
        metadata.insert(FROM, MetadataValue::from(self.node.0));
        metadata.insert(TO, MetadataValue::from(to.0));
        metadata.insert(INCARNATION, MetadataValue::from(member.incarnation));
        request
    }

    /// A request to a node about which only its address is known.
    pub(crate) fn introduction<T>(&self, body: T) -> Request<T> {
        let mut request = Request::new(body);
        insert(request.metadata_mut(), GROUP, &self.group);
        request
    }

    /// The sender of a request, if the request is for this node. A node that is in no cluster yet
    /// enters the one whose leader knows its incarnation.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<NodeId, Status> {
        let from = number(metadata, FROM)?;
        let to = number(metadata, TO)?;
        if to != self.node.0 {
            return Err(Status::failed_precondition(format!(
                "message for node {to} reached node {}: is its address in use by another node?",
                self.node
            )));
        }
        if number(metadata, INCARNATION)? != self.incarnation {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                warn!(
                    from,
                    "the cluster knows this node with other data than it has: if it does not get \
                     in, remove it from the cluster and let it join under a new id"
                );
            });
            return Err(Status::failed_precondition(format!(
                "node {to} has lost the data it had: remove it from the cluster and let it join \
                 under a new id"
            )));
        }
        let cluster = text(metadata, CLUSTER)?;
        self.cluster
            .adopt(cluster)
            .map_err(Status::failed_precondition)?;
        Ok(NodeId(from))
    }
}

/// The group that a request is for.
pub(crate) fn group(metadata: &MetadataMap) -> Result<&str, Status> {
    text(metadata, GROUP)
}

fn insert(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    // Group and cluster names are checked to be printable ASCII when they are made.
    if let Ok(value) = MetadataValue::<Ascii>::try_from(value) {
        metadata.insert(key, value);
    }
}

fn text<'a>(metadata: &'a MetadataMap, key: &'static str) -> Result<&'a str, Status> {
    metadata
        .get(key)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| Status::invalid_argument(format!("metadata {key} is missing")))
}

fn number(metadata: &MetadataMap, key: &'static str) -> Result<u64, Status> {
    text(metadata, key)?
        .parse()
        .map_err(|_| Status::invalid_argument(format!("metadata {key} is not a number")))
}
