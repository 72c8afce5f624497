//! Refuses unknown keys by name, warns of LiveKit's that have no effect, and lays environment
//! variables over the file. Works on the YAML tree, before it becomes a typed value.

use serde_norway::{Mapping, Value};

use super::ConfigError;
use super::keys::{IGNORED, KEYS, Shape, ignored_because};

/// A key of LiveKit's that has no effect here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ignored {
    /// Its path.
    pub path: String,
    /// Why.
    pub because: &'static str,
}

/// Walks the tree; the first unknown key is an error.
///
/// # Errors
/// `UnknownKey` with the nearest known key, or `NotAMap` if the whole is not a map.
pub fn check(root: &Value) -> Result<Vec<Ignored>, ConfigError> {
    let mut ignored = Vec::new();
    match root {
        Value::Null => {}
        Value::Mapping(map) => walk("", map, &mut ignored)?,
        _ => return Err(ConfigError::NotAMap),
    }
    Ok(ignored)
}

fn walk(prefix: &str, map: &Mapping, ignored: &mut Vec<Ignored>) -> Result<(), ConfigError> {
    for (key, value) in map {
        let name = match key {
            Value::String(name) => name.clone(),
            other => serde_norway::to_string(other)
                .unwrap_or_default()
                .trim()
                .to_owned(),
        };
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        if IGNORED.contains(&path.as_str()) {
            ignored.push(Ignored {
                because: ignored_because(&path),
                path,
            });
        } else if KEYS.iter().any(|key| key.path == path) {
            // A leaf; its type is checked by the typed structures.
        } else if is_section(&path) {
            match value {
                Value::Mapping(inner) => walk(&path, inner, ignored)?,
                Value::Null => {}
                _ => {
                    return Err(ConfigError::Value {
                        path,
                        reason: "a map of keys is expected here".into(),
                    });
                }
            }
        } else {
            return Err(ConfigError::UnknownKey {
                nearest: nearest(&path),
                path,
            });
        }
    }
    Ok(())
}

fn is_section(path: &str) -> bool {
    let is_below = |known: &str| {
        known
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    KEYS.iter().any(|key| is_below(key.path)) || IGNORED.iter().any(|known| is_below(known))
}

/// The known key that looks most like it; `None` if nothing comes near.
#[must_use]
pub fn nearest(path: &str) -> Option<String> {
    let last = |text: &str| text.rsplit('.').next().unwrap_or(text).to_owned();
    let name = last(path);
    KEYS.iter()
        .map(|key| key.path)
        .chain(IGNORED.iter().copied())
        .map(|known| {
            // The right name in the wrong section is as good a hint as a slip in the right one.
            let whole = strsim::jaro_winkler(path, known);
            let leaf = strsim::jaro_winkler(&name, &last(known)) - 0.02;
            (whole.max(leaf), known)
        })
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_owned())
}

/// Lays variables over the tree: `LIVEKIT_RTC_UDP_PORT` and `FLOTILLA_RTC_UDP_PORT` set
/// `rtc.udp_port`. The second form wins.
pub fn overlay(root: &mut Value, lookup: impl Fn(&str) -> Option<String>) {
    for prefix in ["LIVEKIT_", "FLOTILLA_"] {
        for key in KEYS.iter().filter(|key| key.shape == Shape::Scalar) {
            let name = format!("{prefix}{}", key.path.replace('.', "_").to_uppercase());
            if let Some(text) = lookup(&name) {
                set(root, key.path, scalar(&text));
            }
        }
    }
}

/// A scalar as YAML reads it; text stays text.
#[must_use]
pub fn scalar(text: &str) -> Value {
    match serde_norway::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// Sets one key, building the sections on the way.
pub fn set(root: &mut Value, path: &str, value: Value) {
    if !root.is_mapping() {
        *root = Value::Mapping(Mapping::new());
    }
    let Value::Mapping(map) = root else { return };
    match path.split_once('.') {
        None => {
            map.insert(Value::String(path.to_owned()), value);
        }
        Some((section, rest)) => {
            let key = Value::String(section.to_owned());
            let mut inner = map.remove(&key).unwrap_or(Value::Null);
            set(&mut inner, rest, value);
            map.insert(key, inner);
        }
    }
}
