//! Opens a store and prints all it holds, one line per fact; the parent compares.
//!
//! Every entry is read and compared with the text that its place and term call for, so a line about
//! it says no more than its index and term. A refusal to open goes to standard error with a failing
//! exit code.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use flotilla_storage::Storage;
use flotilla_storage::probe::Probe;

use crate::child::{GROUPS, identity, snapshot_data, text};

pub(crate) fn print(folder: &Path) -> anyhow::Result<()> {
    let storage = Storage::open(folder, identity()).context("the store")?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    for group in GROUPS {
        let mut probe = Probe::open(&storage, group).context("a group")?;
        let contents = runtime.block_on(probe.contents())?;
        if let Some(term) = contents.vote {
            writeln!(output, "{group} vote {term}")?;
        }
        if let Some((term, index)) = contents.purged {
            writeln!(output, "{group} purged {index} {term}")?;
        }
        let end = contents
            .entries
            .last()
            .map(|entry| (entry.term, entry.index));
        let end = end.or(contents.purged);
        ensure!(
            contents.last == end,
            "the log says it ends at {:?}, not {end:?}",
            contents.last
        );
        for entry in &contents.entries {
            let expected = text(group, entry.index, entry.term);
            ensure!(
                entry.text == expected,
                "the text of entry {} is not its own",
                entry.index
            );
            writeln!(output, "{group} entry {} {}", entry.index, entry.term)?;
        }
        if let Some(mut snapshot) = probe.snapshots().load()? {
            let number: u64 = std::str::from_utf8(&snapshot.meta)?.parse()?;
            let mut data = Vec::new();
            snapshot.data.read_to_end(&mut data)?;
            ensure!(
                data == snapshot_data(number),
                "the data of snapshot {number} is not its own"
            );
            writeln!(output, "{group} snapshot {number}")?;
        }
    }
    output.flush()?;
    Ok(())
}
