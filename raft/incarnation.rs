//! A number drawn when a data folder is made. It stands in the group's membership beside the node's
//! address, and in every message to the node: who lost the folder has another one, is found out,
//! and can neither vote nor confirm anything under its old id.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::error::StartError;

const FILE: &str = "incarnation";

/// The folder's incarnation, drawn and made durable if it has none yet.
pub(crate) fn load(folder: &Path) -> Result<u64, StartError> {
    let path = folder.join(FILE);
    let failed = |error| StartError::File {
        path: path.display().to_string(),
        error,
    };
    match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|_| failed(std::io::Error::new(ErrorKind::InvalidData, "not a number"))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let drawn = rand::random_range(1..=u64::MAX);
            create(folder, drawn).map_err(failed)?;
            Ok(drawn)
        }
        Err(error) => Err(failed(error)),
    }
}

fn create(folder: &Path, incarnation: u64) -> std::io::Result<()> {
    let fresh = folder.join("incarnation.new");
    let mut file = File::create(&fresh)?;
    writeln!(file, "{incarnation}")?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join(FILE))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_with_the_folder() {
        let one = tempfile::tempdir().expect("a folder");
        let two = tempfile::tempdir().expect("a folder");
        let drawn = load(one.path()).expect("drawn");
        assert_eq!(load(one.path()).expect("read"), drawn);
        assert_ne!(load(two.path()).expect("drawn"), drawn);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(FILE), "seven").expect("written");
        let error = load(folder.path()).expect_err("damaged");
        assert!(error.to_string().contains(FILE), "{error}");
    }
}
