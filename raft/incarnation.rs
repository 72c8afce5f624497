//! A number drawn when a data folder is made. It stands in the group's membership beside the node's
//! address, and in every message to the node: who lost the folder has another one, is found out,
//! and can neither vote nor confirm anything under its old id.

use std::io::ErrorKind;

use flotilla_storage::Storage;

use crate::error::StartError;

const FILE: &str = "incarnation";

/// The folder's incarnation, drawn and made durable if it has none yet.
pub(crate) fn load(storage: &Storage) -> Result<u64, StartError> {
    let failed = |error| StartError::File {
        path: FILE.to_owned(),
        error,
    };
    match storage.note(FILE).map_err(failed)? {
        Some(text) => text
            .trim()
            .parse()
            .map_err(|_| failed(std::io::Error::new(ErrorKind::InvalidData, "not a number"))),
        None => {
            let drawn = rand::random_range(1..=u64::MAX);
            let noted = storage.set_note(FILE, &format!("{drawn}\n"));
            noted.map_err(failed)?;
            Ok(drawn)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use flotilla_storage::Identity;

    use super::*;

    fn open(folder: &Path) -> Storage {
        let identity = Identity {
            cluster: None,
            node: 1,
        };
        Storage::open(folder, identity).expect("the folder opens")
    }

    #[test]
    fn it_stays_with_the_folder() {
        let one = tempfile::tempdir().expect("a folder");
        let two = tempfile::tempdir().expect("a folder");
        let drawn = load(&open(one.path())).expect("drawn");
        assert_eq!(load(&open(one.path())).expect("read"), drawn);
        assert_ne!(load(&open(two.path())).expect("drawn"), drawn);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let storage = open(folder.path());
        let path = folder.path().join(FILE);
        std::fs::write(&path, "seven").expect("written");
        let error = load(&storage).expect_err("damaged");
        assert!(error.to_string().contains(FILE), "{error}");
        std::fs::remove_file(&path).expect("removed");

        let drawn = load(&storage).expect("drawn");
        let whole = std::fs::read(&path).expect("read");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).expect("written");
            // Upper case is the same checksum.
            let read = load(&storage);
            assert!(read.is_err() || read.is_ok_and(|read| read == drawn));
        }
    }

    #[test]
    fn a_file_without_a_checksum_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(FILE), "17\n").expect("written");
        assert_eq!(load(&open(folder.path())).expect("read"), 17);
    }
}
