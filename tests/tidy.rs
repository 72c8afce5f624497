//! Holds the architecture: which crate may depend on which, what a pure core may name, and that
//! every module says what it is and is reachable. The table is the one of `docs/architecture.md`.
//!
//! Reads the sources as text; `cargo test --package testkit --test tidy`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A crate's folder, the crates of ours it may use, and whether it is a pure core.
struct Layer {
    folder: &'static str,
    ours: &'static [&'static str],
    outside: Outside,
    pure: bool,
}

/// Dependencies from outside: a closed list for the cores, a list of the forbidden for the rest.
enum Outside {
    Only(&'static [&'static str]),
    Not(&'static [&'static str]),
}

const LAYERS: &[Layer] = &[
    Layer {
        folder: "src/model",
        ours: &[],
        outside: Outside::Only(&["serde", "thiserror", "postcard", "sha2"]),
        pure: true,
    },
    Layer {
        folder: "src/signal",
        ours: &["flotilla-model"],
        outside: Outside::Not(&["tokio", "axum", "openraft", "sled", "tonic", "webrtc"]),
        pure: true,
    },
    Layer {
        folder: "src/media",
        ours: &["flotilla-model"],
        outside: Outside::Not(&[
            "tokio",
            "axum",
            "openraft",
            "sled",
            "tonic",
            "prost",
            "livekit-protocol",
            "webrtc",
        ]),
        pure: true,
    },
    Layer {
        folder: "storage",
        ours: &[],
        outside: Outside::Not(&["tonic", "axum", "webrtc", "prost"]),
        pure: false,
    },
    Layer {
        folder: "raft",
        ours: &["flotilla-model", "flotilla-storage"],
        outside: Outside::Not(&["axum", "webrtc", "sled", "livekit-protocol"]),
        pure: false,
    },
    Layer {
        folder: "src/node",
        ours: &[
            "flotilla-model",
            "flotilla-signal",
            "flotilla-media",
            "flotilla-raft",
            "flotilla-storage",
        ],
        outside: Outside::Not(&["openraft", "sled", "webrtc"]),
        pure: false,
    },
    Layer {
        folder: "tests/sim",
        ours: &[
            "flotilla-model",
            "flotilla-signal",
            "flotilla-media",
            "flotilla-raft",
            "flotilla-node",
        ],
        outside: Outside::Not(&["openraft", "sled", "axum", "tonic", "rand", "webrtc"]),
        pure: false,
    },
    Layer {
        folder: "jepsen",
        ours: &["testkit"],
        outside: Outside::Not(&["openraft", "sled"]),
        pure: false,
    },
];

/// Names that a pure core must not contain outside of comments, each with the reason.
const IMPURE: &[(&str, &str)] = &[
    ("Instant::now", "time is an argument"),
    ("SystemTime::now", "time is an argument"),
    ("std::thread", "threads belong to the shell"),
    ("std::net::UdpSocket", "sockets belong to the shell"),
    ("std::net::Tcp", "sockets belong to the shell"),
    ("std::sync::Mutex", "state has one owner"),
    ("std::sync::RwLock", "state has one owner"),
    ("thread_rng", "randomness is an argument"),
    ("rand::rng()", "randomness is an argument"),
    ("rand::random", "randomness is an argument"),
    ("std::env::", "configuration is an argument"),
    ("std::fs::", "files belong to the shell"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("folder of the repository is readable") {
            let path = entry.expect("entry is readable").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                let nested_crate = path.join("Cargo.toml").exists();
                if !nested_crate && !["node_modules", "target", "page", ".venv"].contains(&&*name) {
                    open.push(path);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn crates_depend_only_downwards() {
    let mut breaches = Vec::new();
    for layer in LAYERS {
        let manifest = fs::read_to_string(root().join(layer.folder).join("Cargo.toml"))
            .expect("every layer has a manifest");
        for name in dependencies(&manifest) {
            let ours = name.starts_with("flotilla-") || name == "testkit" || name == "jepsen";
            let allowed = if ours {
                layer.ours.contains(&&*name)
            } else {
                match layer.outside {
                    Outside::Only(list) => list.contains(&&*name),
                    Outside::Not(list) => !list.contains(&&*name),
                }
            };
            if !allowed {
                breaches.push(format!("{} must not depend on {name}", layer.folder));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn pure_cores_name_no_clock_socket_thread_or_lock() {
    let mut breaches = Vec::new();
    for layer in LAYERS.iter().filter(|layer| layer.pure) {
        for path in sources(&root().join(layer.folder)) {
            let shown = path.display().to_string();
            if shown.contains("/benches/")
                || shown.contains("/tests/")
                || shown.ends_with("tests.rs")
            {
                continue;
            }
            let text = fs::read_to_string(&path).expect("source is readable");
            let body = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default();
            for (number, line) in body.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for (name, reason) in IMPURE {
                    if code.contains(name) {
                        breaches.push(format!("{shown}:{}: {name}: {reason}", number + 1));
                    }
                }
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let mut breaches = Vec::new();
    for folder in [
        "src/model",
        "src/signal",
        "src/media",
        "src/node",
        "storage",
        "raft",
        "tests",
        "tests/sim",
        "jepsen",
    ] {
        for path in sources(&root().join(folder)) {
            let text = fs::read_to_string(&path).expect("source is readable");
            if !text.starts_with("//!") {
                breaches.push(format!("{}: does not open with //!", path.display()));
            }
            if text.lines().count() > 900 {
                breaches.push(format!("{}: over 900 lines", path.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn no_file_is_dead() {
    let mut breaches = Vec::new();
    for layer in LAYERS {
        let files = sources(&root().join(layer.folder));
        let all: String = files
            .iter()
            .map(|path| fs::read_to_string(path).expect("source is readable"))
            .collect::<Vec<_>>()
            .join("\n");
        let manifest = fs::read_to_string(root().join(layer.folder).join("Cargo.toml"))
            .expect("every layer has a manifest");
        for path in files {
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
            let name = if stem == "mod" {
                folder.to_string_lossy().into_owned()
            } else {
                stem.clone()
            };
            let entry = ["lib", "main", "build"].contains(&&*stem)
                || manifest.contains(&format!("{stem}.rs"));
            let named =
                all.contains(&format!("mod {name};")) || all.contains(&format!("mod {name} {{"));
            let standalone = path.components().any(|part| {
                ["benches", "examples", "tests"].contains(&&*part.as_os_str().to_string_lossy())
            });
            if !entry && !named && !standalone {
                breaches.push(format!("{}: no `mod` names it", path.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn nothing_ties_the_repository_to_one_machine() {
    let mut breaches = Vec::new();
    let folders = ["src", "storage", "raft", "tests", "jepsen", "docs"];
    for folder in folders {
        for path in sources(&root().join(folder)) {
            if path.ends_with("tidy.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("source is readable");
            for mark in ["/root/", "/work/", "/home/"] {
                if text.contains(mark) {
                    breaches.push(format!("{}: names {mark}", path.display()));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}
