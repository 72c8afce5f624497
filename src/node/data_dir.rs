//! What a node keeps beside its log: whose data folder it is, and the cluster's DTLS certificate.
//!
//! The certificate is one for the whole cluster, so that a client's next node shows the same
//! fingerprint. The founder makes it; others get it when they enroll ([`crate::mesh::enroll`]).

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

const OWNER: &str = "node.json";
const CERTIFICATE: &str = "dtls.pem";

/// Why a data folder cannot be used.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Input or output.
    #[error("data folder {path}: {source}; check cluster.data_dir and its access rights")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another cluster's.
    #[error(
        "data folder {path} belongs to cluster `{found}`, the configuration says `{wanted}`: \
         use another cluster.data_dir, or correct cluster.name"
    )]
    OtherCluster {
        /// Folder.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// The configured one.
        wanted: String,
    },
    /// Another node's.
    #[error(
        "data folder {path} belongs to node {found}, the configuration says node {wanted}: \
         use another cluster.data_dir, or correct cluster.node_id"
    )]
    OtherNode {
        /// Folder.
        path: PathBuf,
        /// Its node.
        found: u64,
        /// The configured one.
        wanted: u64,
    },
    /// Damaged.
    #[error("{path} is damaged: {reason}; restore it from a backup")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Whose folder it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
struct Owner {
    cluster: String,
    node: u64,
    /// Nodes to join at, given with `cluster join`.
    #[serde(default)]
    seeds: Vec<String>,
}

/// A node's data folder.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    owner: Owner,
}

impl DataDir {
    /// Opens or creates the folder of this node.
    ///
    /// # Errors
    /// It belongs to another cluster or node, or cannot be used.
    pub fn open(path: &Path, cluster: &str, node: u64) -> Result<Self, DataDirError> {
        create_folder(path).map_err(|source| io_error(path, source))?;
        let file = path.join(OWNER);
        let owner = match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| DataDirError::Damaged {
                path: file,
                reason: error.to_string(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Owner {
                cluster: cluster.to_owned(),
                node,
                seeds: Vec::new(),
            },
            Err(source) => return Err(io_error(&file, source)),
        };
        if owner.cluster != cluster {
            return Err(DataDirError::OtherCluster {
                path: path.to_owned(),
                found: owner.cluster,
                wanted: cluster.to_owned(),
            });
        }
        if owner.node != node {
            return Err(DataDirError::OtherNode {
                path: path.to_owned(),
                found: owner.node,
                wanted: node,
            });
        }
        let folder = Self {
            path: path.to_owned(),
            owner,
        };
        folder.write_owner()?;
        Ok(folder)
    }

    fn write_owner(&self) -> Result<(), DataDirError> {
        let text = serde_json::to_string_pretty(&self.owner).unwrap_or_default();
        self.write(OWNER, text.as_bytes())
    }

    /// Nodes to join at.
    #[must_use]
    pub fn seeds(&self) -> &[String] {
        &self.owner.seeds
    }

    /// Remembers nodes to join at.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_seeds(&mut self, seeds: Vec<String>) -> Result<(), DataDirError> {
        self.owner.seeds = seeds;
        self.write_owner()
    }

    /// Where Raft keeps its data.
    #[must_use]
    pub fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// The cluster's certificate, if it is here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificate(&self) -> Result<Option<String>, DataDirError> {
        let file = self.path.join(CERTIFICATE);
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error(&file, source)),
        }
    }

    /// Keeps the cluster's certificate.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_certificate(&self, pem: &str) -> Result<(), DataDirError> {
        self.write(CERTIFICATE, pem.as_bytes())
    }

    /// Writes a file whole or not at all, readable for its owner only, and durable.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DataDirError> {
        let file = self.path.join(name);
        let fresh = self.path.join(format!("{name}.new"));
        let write = || {
            let mut out = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            out.write_all(bytes)?;
            out.sync_all()?;
            fs::rename(&fresh, &file)?;
            fs::File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| io_error(&file, source))
    }
}

fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn io_error(path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stays_with_its_node_and_cluster() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("data");
        let mut data = DataDir::open(&path, "one", 1).expect("new");
        data.set_certificate("pem").expect("written");
        data.set_seeds(vec!["a:1".into()]).expect("written");
        let again = DataDir::open(&path, "one", 1).expect("same");
        assert_eq!(again.certificate().expect("read").as_deref(), Some("pem"));
        assert_eq!(again.seeds(), ["a:1"]);
        let text = |result: Result<DataDir, DataDirError>| result.expect_err("refused").to_string();
        assert!(text(DataDir::open(&path, "two", 1)).contains("belongs to cluster `one`"));
        assert!(text(DataDir::open(&path, "one", 2)).contains("belongs to node 1"));
    }

    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join(OWNER), "{").expect("written");
        let error = DataDir::open(folder.path(), "one", 1).expect_err("damaged");
        assert!(
            error.to_string().contains("node.json is damaged"),
            "{error}"
        );
    }

    #[test]
    fn secrets_are_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("folder");
        let data = DataDir::open(folder.path(), "one", 1).expect("new");
        data.set_certificate("pem").expect("written");
        let mode = fs::metadata(folder.path().join(CERTIFICATE))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
