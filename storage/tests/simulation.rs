//! The disk in memory keeps its promises, and no more than them.

use std::io::Read;
use std::path::Path;

use crate::disk::Disk;
use crate::simulation::SimulatedDisk;

const FOLDER: &str = "data";

/// A disk with a folder whose name is durable.
fn disk(seed: u64) -> (SimulatedDisk, Disk) {
    let simulated = SimulatedDisk::new(seed);
    let disk = Disk::Simulated(simulated.clone());
    disk.create_folder(Path::new(FOLDER)).expect("a folder");
    disk.sync_folder(Path::new("")).expect("synced");
    (simulated, disk)
}

fn contents(disk: &Disk, name: &str) -> Option<Vec<u8>> {
    let mut file = disk.open_to_read(&Path::new(FOLDER).join(name)).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("there is power");
    Some(bytes)
}

#[test]
fn what_was_synced_survives_whatever_the_seed() {
    for seed in 0..64 {
        let (simulated, disk) = disk(seed);
        let path = Path::new(FOLDER).join("kept");
        let file = disk.create(&path).expect("a file");
        file.write_all_at(&[7; 3000], 0).expect("a write");
        file.sync_data().expect("synced");
        disk.sync_folder(Path::new(FOLDER)).expect("synced");
        file.write_all_at(&[9; 3000], 1024).expect("a write");
        simulated.cut();
        assert!(file.sync_data().is_err(), "there is no power");
        simulated.power_on();
        let bytes = contents(&disk, "kept").expect("its name was synced");
        assert_eq!(bytes[..1024], [7; 1024]);
        assert!(bytes[1024..].iter().all(|byte| [0, 7, 9].contains(byte)));
    }
}

#[test]
fn what_was_not_synced_goes_for_some_seeds_and_stays_for_others() {
    let (mut gone, mut whole, mut torn, mut nameless) = (0, 0, 0, 0);
    for seed in 0..256 {
        let (simulated, disk) = disk(seed);
        let path = Path::new(FOLDER).join("new");
        let file = disk.create(&path).expect("a file");
        file.write_all_at(&[9; 2048], 0).expect("a write");
        simulated.cut();
        simulated.power_on();
        match contents(&disk, "new") {
            None => nameless += 1,
            Some(bytes) if bytes.iter().all(|byte| *byte == 9) && bytes.len() == 2048 => whole += 1,
            Some(bytes) if bytes.is_empty() => gone += 1,
            Some(_) => torn += 1,
        }
    }
    for count in [gone, whole, torn, nameless] {
        assert!(count > 5, "{gone} {whole} {torn} {nameless}");
    }
}

#[test]
fn a_rename_is_there_or_not() {
    for seed in 0..64 {
        let (simulated, disk) = disk(seed);
        let (from, to) = (Path::new(FOLDER).join("a"), Path::new(FOLDER).join("b"));
        let file = disk.create(&from).expect("a file");
        file.write_all_at(b"x", 0).expect("a write");
        file.sync_all().expect("synced");
        disk.sync_folder(Path::new(FOLDER)).expect("synced");
        disk.rename(&from, &to).expect("renamed");
        simulated.cut();
        simulated.power_on();
        let found = [disk.exists(&from), disk.exists(&to)];
        assert_eq!(found.iter().filter(|there| **there).count(), 1);
    }
}

#[test]
fn a_program_that_ends_loses_nothing() {
    let (simulated, disk) = disk(1);
    let path = Path::new(FOLDER).join("new");
    let file = disk.create(&path).expect("a file");
    file.write_all_at(b"unsynced", 0).expect("a write");
    simulated.halt();
    assert!(
        file.write_all_at(b"late", 0).is_err(),
        "the program is gone"
    );
    simulated.power_on();
    assert_eq!(contents(&disk, "new").expect("the file"), b"unsynced");
}

#[test]
fn the_power_goes_at_the_operation_that_was_named() {
    let (simulated, disk) = disk(1);
    let file = disk.create(&Path::new(FOLDER).join("new")).expect("a file");
    simulated.cut_after(2);
    file.write_all_at(b"one", 0).expect("a write");
    file.write_all_at(b"two", 3).expect("a write");
    assert!(file.write_all_at(b"three", 6).is_err());
    assert!(!simulated.is_on());
    assert_eq!(simulated.figures().cuts_inside, 1);
}
