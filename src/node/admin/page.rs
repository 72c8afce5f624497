//! Long lists in parts that fit into a gRPC message.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;
use tonic::Status;

use super::proto;

/// Entries in a page that names no size.
const ENTRIES_DEFAULT: usize = 1000;
/// Most entries in a page.
const ENTRIES_MAX: usize = 10_000;
/// A page ends before it grows over this. gRPC clients take 4 MiB by default; an entry alone has at
/// most half of that.
pub(super) const BYTES_MAX: usize = 2 * 1024 * 1024;
/// Between the parts of a key; no name contains it, and if one did only a page's border would move.
const SEPARATOR: char = '\u{0}';

/// Which part of a list is asked for.
pub(super) struct Pager {
    entries_max: usize,
    after: Option<Vec<String>>,
}

impl Pager {
    pub(super) fn new(page: Option<&proto::Page>) -> Result<Self, Status> {
        let (size, token) = page.map_or((0, ""), |page| (page.size, page.token.as_str()));
        let entries_max = match usize::try_from(size).unwrap_or(ENTRIES_MAX) {
            0 => ENTRIES_DEFAULT,
            size => size.min(ENTRIES_MAX),
        };
        let after = (!token.is_empty()).then(|| decode(token)).transpose()?;
        Ok(Self { entries_max, after })
    }

    /// Whether an entry lies after where the page begins. Keys must come in ascending order.
    pub(super) fn is_after(&self, key: &[&str]) -> bool {
        let Some(after) = &self.after else {
            return true;
        };
        key.iter()
            .copied()
            .cmp(after.iter().map(String::as_str))
            .is_gt()
    }

    /// The page, and the token of the next one; empty if this is the last. Entries are made only
    /// as far as they are needed.
    pub(super) fn take<T: Message>(
        &self,
        entries: impl Iterator<Item = (Vec<String>, T)>,
    ) -> (Vec<T>, String) {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let mut last: Option<Vec<String>> = None;
        for (key, entry) in entries {
            bytes += entry.encoded_len();
            let is_full = taken.len() == self.entries_max || bytes > BYTES_MAX;
            if let Some(last) = last.as_ref().filter(|_| is_full) {
                return (taken, encode(last));
            }
            taken.push(entry);
            last = Some(key);
        }
        (taken, String::new())
    }
}

fn encode(key: &[String]) -> String {
    URL_SAFE_NO_PAD.encode(key.join(&SEPARATOR.to_string()))
}

fn decode(token: &str) -> Result<Vec<String>, Status> {
    let wrong = || Status::invalid_argument("the page token is not one that this service gave out");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    Ok(text.split(SEPARATOR).map(str::to_owned).collect())
}

/// Reads what says which page is asked for, and follows the tokens to the end: for the fuzz target
/// `admin_page`. The first byte says how many entries there are.
///
/// # Panics
/// If an entry after the beginning is left out, or comes twice or out of order.
#[cfg(feature = "fuzzing")]
pub fn check_page(bytes: &[u8]) {
    let Some((count, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(page) = proto::Page::decode(bytes) else {
        return;
    };
    let Ok(first) = Pager::new(Some(&page)) else {
        return;
    };
    let names: Vec<String> = (0..*count).map(|n| format!("{:02x}", n / 2)).collect();
    let keys = || {
        names
            .iter()
            .enumerate()
            .map(|(n, name)| vec![name.clone(), format!("{n:03}")])
    };
    let parts = |key: &[String]| [key[0].clone(), key[1].clone()];
    let wanted: Vec<_> = keys()
        .filter(|key| first.is_after(&[&key[0], &key[1]]))
        .map(|key| parts(&key))
        .collect();
    let (mut listed, mut pager) = (Vec::new(), first);
    loop {
        let rest = keys().filter(|key| pager.is_after(&[&key[0], &key[1]]));
        let rest = rest.map(|key| {
            let room = proto::Room {
                name: key[0].clone(),
                sid: key[1].clone(),
                ..proto::Room::default()
            };
            (key, room)
        });
        let (taken, token) = pager.take(rest);
        assert!(
            token.is_empty() || !taken.is_empty(),
            "no page is empty but the last"
        );
        listed.extend(taken.into_iter().map(|room| [room.name, room.sid]));
        if token.is_empty() {
            break;
        }
        let next = proto::Page {
            size: page.size,
            token,
        };
        pager = Pager::new(Some(&next)).expect("our own token");
    }
    assert_eq!(listed, wanted);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[String]) -> Vec<(Vec<String>, proto::Room)> {
        names
            .iter()
            .map(|name| {
                let room = proto::Room {
                    name: name.clone(),
                    metadata: "x".repeat(100_000),
                    ..proto::Room::default()
                };
                (vec![name.clone()], room)
            })
            .collect()
    }

    fn pages(names: &[String], size: u32) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut token = String::new();
        loop {
            let pager = Pager::new(Some(&proto::Page { size, token })).expect("is valid");
            let rest = entries(names)
                .into_iter()
                .filter(|(key, _)| pager.is_after(&[key[0].as_str()]));
            let (page, next) = pager.take(rest);
            pages.push(page.into_iter().map(|room| room.name).collect());
            if next.is_empty() {
                return pages;
            }
            token = next;
        }
    }

    #[test]
    fn pages_have_every_entry_once() {
        let names: Vec<String> = (0..50).map(|number| format!("room {number:02}")).collect();
        for size in [1, 7, 50] {
            let pages = pages(&names, size);
            assert!(pages.iter().all(|page| page.len() <= size as usize));
            assert_eq!(pages.concat(), names);
        }
        // By size alone: 20 entries of 100 kB fit.
        assert_eq!(pages(&names, 0).len(), 3);
        assert_eq!(pages(&[], 0), [Vec::<String>::new()]);
    }

    #[test]
    fn a_token_of_somebody_else_is_refused() {
        let page = proto::Page {
            size: 0,
            token: "not a token!".to_owned(),
        };
        assert!(Pager::new(Some(&page)).is_err());
    }
}
