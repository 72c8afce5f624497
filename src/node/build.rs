//! Compiles the gRPC contracts of this crate without `protoc`, and embeds the built demo page.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use prost::Message as _;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (file, include) in [("mesh.proto", "proto"), ("admin.proto", "proto")] {
        let path = PathBuf::from(include).join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        if path.exists() {
            let descriptors = protox::compile([&path], [include])?;
            let stored = out.join(file).with_extension("bin");
            std::fs::write(stored, descriptors.encode_to_vec())?;
            tonic_prost_build::configure()
                .bytes(".")
                .compile_fds(descriptors)?;
        }
    }
    embed_page(&out)
}

/// Writes a table of the files in `page/dist`; an empty one if the page has not been built.
fn embed_page(out: &Path) -> Outcome {
    let dist = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("page/dist");
    println!("cargo::rerun-if-changed={}", dist.display());
    let mut files = Vec::new();
    if dist.is_dir() {
        collect(&dist, &mut files)?;
    }
    files.sort();
    let mut table = String::from("pub(super) static FILES: &[(&str, &[u8])] = &[\n");
    for file in files {
        let name = file
            .strip_prefix(&dist)?
            .to_string_lossy()
            .replace('\\', "/");
        writeln!(
            table,
            "    ({name:?}, include_bytes!({:?})),",
            file.display().to_string()
        )?;
    }
    table.push_str("];\n");
    std::fs::write(out.join("page.rs"), table)?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Outcome {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
