//! Values of the configuration file that YAML has no type for.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration with its unit, as Go writes it: `50ms`, `1.5s`, `2m`, `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Period(pub(super) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "`{text}` is not a duration; write for example 50ms, 5s or 2m"
            ))
        })
    }
}

/// Reads a duration; `None` if it is none.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

/// One port, or the first and last of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PortRange {
    pub(super) first: u16,
    pub(super) last: Option<u16>,
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;
        impl Visitor<'_> for PortVisitor {
            type Value = PortRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 7882, or a range such as \"7882-7885\"")
            }

            fn visit_u64<E: de::Error>(self, port: u64) -> Result<PortRange, E> {
                let first = u16::try_from(port)
                    .map_err(|_| E::custom(format!("{port} is not a port number")))?;
                Ok(PortRange { first, last: None })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
                let parse = |part: &str| {
                    part.trim()
                        .parse::<u16>()
                        .map_err(|_| E::custom(format!("`{text}` is not a port or a range")))
                };
                match text.split_once('-') {
                    None => Ok(PortRange {
                        first: parse(text)?,
                        last: None,
                    }),
                    Some((first, last)) => Ok(PortRange {
                        first: parse(first)?,
                        last: Some(parse(last)?),
                    }),
                }
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}
