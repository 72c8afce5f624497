//! An ordered map whose copies share what they have in common: a B+ tree behind `Arc`s.
//!
//! [`crate::State`] is copied once per applied entry, so that readers keep a consistent snapshot
//! while the next entry is applied. A copy of this map costs one reference count; a change copies
//! only the few nodes on its path that a snapshot still holds, and nothing when none does. It
//! otherwise behaves and serialises like `BTreeMap`.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most entries in a node. Wider nodes make look-ups and iteration faster and copies on change
/// dearer; 32 entries of a pointer and a short key copy in about the time of one allocation.
const WIDTH: usize = 32;

/// An ordered map with cheap copies.
pub struct Map<K, V> {
    root: Option<Arc<Node<K, V>>>,
    len: usize,
}

type Child<K, V> = (K, Arc<Node<K, V>>);

#[derive(Clone)]
enum Node<K, V> {
    /// Entries in order.
    Leaf(Vec<(K, V)>),
    /// Children in order, each with a key that is not above any of its keys and above all keys of
    /// the child before; the first child's is not looked at.
    Inner(Vec<(K, Arc<Self>)>),
}

impl<K, V> Map<K, V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries in key order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        let mut iter = Iter {
            path: Vec::new(),
            leaf: [].iter(),
            left: self.len,
        };
        if let Some(root) = &self.root {
            iter.descend(root);
        }
        iter
    }

    /// Keys in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Values in key order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The entry with the lowest key.
    #[must_use]
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// Whether both are the same copy: cheap, and certain if true.
    #[must_use]
    pub fn shares_all_with(&self, other: &Self) -> bool {
        match (&self.root, &other.root) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl<K: Ord, V> Map<K, V> {
    /// The value under `key`.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Inner(children) => node = &children[child_of(children, key)].1,
                Node::Leaf(entries) => {
                    let found = entries.binary_search_by(|(at, _)| at.borrow().cmp(key));
                    return found.ok().map(|index| &entries[index].1);
                }
            }
        }
    }

    /// Whether there is a value under `key`.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    /// The value under `key`, to be changed; copies what other maps share on the way to it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        let mut node = Arc::make_mut(self.root.as_mut()?);
        loop {
            match node {
                Node::Inner(children) => {
                    let child = child_of(children, key);
                    node = Arc::make_mut(&mut children[child].1);
                }
                Node::Leaf(entries) => {
                    let found = entries.binary_search_by(|(at, _)| at.borrow().cmp(key));
                    return found.ok().map(|index| &mut entries[index].1);
                }
            }
        }
    }

    /// Puts `value` under `key` and returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(vec![(key, value)])));
            self.len = 1;
            return None;
        };
        let (before, split) = Arc::make_mut(root).insert(key.clone(), value);
        if let Some(right) = split {
            let left = Arc::clone(root);
            *root = Arc::new(Node::Inner(vec![(key, left), right]));
        }
        if before.is_none() {
            self.len += 1;
        }
        before
    }

    /// Takes the value under `key` out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        let root = self.root.as_mut()?;
        let removed = Arc::make_mut(root).remove(key);
        self.len -= 1;
        while let Some(root) = &self.root {
            match &**root {
                Node::Leaf(entries) if entries.is_empty() => self.root = None,
                Node::Inner(children) if children.len() == 1 => {
                    self.root = Some(Arc::clone(&children[0].1));
                }
                Node::Leaf(_) | Node::Inner(_) => break,
            }
        }
        removed
    }

    /// Takes out every entry that `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let refused: Vec<K> = self
            .iter()
            .filter(|(key, value)| !keep(key, value))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &refused {
            self.remove(key);
        }
    }
}

/// Index of the child under which `key` belongs.
fn child_of<K: Borrow<Q>, Q: Ord + ?Sized, C>(children: &[(K, C)], key: &Q) -> usize {
    children
        .partition_point(|(at, _)| at.borrow() <= key)
        .saturating_sub(1)
}

/// What came of putting a value into a node: the value before, and a new right sibling.
type Inserted<K, V> = (Option<V>, Option<Child<K, V>>);

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn insert(&mut self, key: K, value: V) -> Inserted<K, V> {
        match self {
            Self::Leaf(entries) => match entries.binary_search_by(|(at, _)| at.cmp(&key)) {
                Ok(index) => {
                    let before = std::mem::replace(&mut entries[index].1, value);
                    (Some(before), None)
                }
                Err(index) => {
                    entries.insert(index, (key, value));
                    (
                        None,
                        split(entries, index).map(|(at, right)| (at, Arc::new(Self::Leaf(right)))),
                    )
                }
            },
            Self::Inner(children) => {
                let index = child_of(children, &key);
                let (before, right) = Arc::make_mut(&mut children[index].1).insert(key, value);
                let Some(right) = right else {
                    return (before, None);
                };
                children.insert(index + 1, right);
                let right = split(children, index + 1);
                (
                    before,
                    right.map(|(at, right)| (at, Arc::new(Self::Inner(right)))),
                )
            }
        }
    }

    /// Removes a key that is known to be there.
    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Leaf(entries) => {
                let index = entries
                    .binary_search_by(|(at, _)| at.borrow().cmp(key))
                    .ok()?;
                Some(entries.remove(index).1)
            }
            Self::Inner(children) => {
                let index = child_of(children, key);
                let removed = Arc::make_mut(&mut children[index].1).remove(key);
                if children[index].1.len() == 0 {
                    children.remove(index);
                } else if children[index].1.len() < WIDTH / 4 {
                    merge(children, index);
                }
                removed
            }
        }
    }

    /// Appends the entries of the node to the right, whose keys are not below `bound`.
    fn append(&mut self, bound: K, right: Self) {
        match (self, right) {
            (Self::Leaf(entries), Self::Leaf(more)) => entries.extend(more),
            (Self::Inner(children), Self::Inner(mut more)) => {
                if let Some(first) = more.first_mut() {
                    first.0 = bound;
                }
                children.extend(more);
            }
            (Self::Leaf(_), Self::Inner(_)) | (Self::Inner(_), Self::Leaf(_)) => {
                unreachable!("siblings are equally deep")
            }
        }
    }
}

/// Splits off the right part of an overfull node. A node that grew at its end keeps all but the
/// newest entry: keys that arrive in order leave full nodes behind.
fn split<K: Clone, T>(entries: &mut Vec<(K, T)>, grown: usize) -> Option<(K, Vec<(K, T)>)> {
    if entries.len() <= WIDTH {
        return None;
    }
    let at = if grown + 1 == entries.len() {
        grown
    } else {
        entries.len() / 2
    };
    let right = entries.split_off(at);
    Some((right[0].0.clone(), right))
}

/// Joins the small child at `index` with a neighbour if both fit well into one node.
fn merge<K: Ord + Clone, V: Clone>(children: &mut Vec<Child<K, V>>, index: usize) {
    let fits = |left: usize| {
        children
            .get(left + 1)
            .is_some_and(|right| children[left].1.len() + right.1.len() <= WIDTH * 3 / 4)
    };
    let left = match index.checked_sub(1) {
        Some(left) if fits(left) => left,
        _ if fits(index) => index,
        _ => return,
    };
    let (bound, right) = children.remove(left + 1);
    Arc::make_mut(&mut children[left].1).append(bound, Arc::unwrap_or_clone(right));
}

/// Entries of a [`Map`] in key order.
pub struct Iter<'a, K, V> {
    path: Vec<std::slice::Iter<'a, Child<K, V>>>,
    leaf: std::slice::Iter<'a, (K, V)>,
    left: usize,
}

impl<'a, K, V> Iter<'a, K, V> {
    fn descend(&mut self, mut node: &'a Node<K, V>) {
        loop {
            match node {
                Node::Leaf(entries) => {
                    self.leaf = entries.iter();
                    return;
                }
                Node::Inner(children) => {
                    let mut children = children.iter();
                    let first = children.next().expect("inner nodes are never empty");
                    self.path.push(children);
                    node = &first.1;
                }
            }
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                self.left -= 1;
                return Some((key, value));
            }
            let child = self.path.last_mut()?.next();
            match child {
                Some((_, child)) => self.descend(child),
                None => drop(self.path.pop()),
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, K, V> {}

impl<'a, K, V> IntoIterator for &'a Map<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            len: self.len,
        }
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && (self.shares_all_with(other) || self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for Map<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for Map<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for Map<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for Map<K, V> {
    type Output = V;

    /// Panics if there is no value under `key`, as every map does.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry under this key")
    }
}

impl<K: Serialize, V: Serialize> Serialize for Map<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len))?;
        for (key, value) in self {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, K, V> Deserialize<'de> for Map<K, V>
where
    K: Deserialize<'de> + Ord + Clone,
    V: Deserialize<'de> + Clone,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<K, V>(PhantomData<(K, V)>);

        impl<'de, K, V> Visitor<'de> for Entries<K, V>
        where
            K: Deserialize<'de> + Ord + Clone,
            V: Deserialize<'de> + Clone,
        {
            type Value = Map<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = access.next_entry()? {
                    map.insert(key, value);
                }
                Ok(map)
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_what_a_copy_saw() {
        let mut map: Map<u32, u32> = (0..1000).map(|key| (key, key)).collect();
        let copy = map.clone();
        for key in 0..1000 {
            map.remove(&key);
        }
        assert!(map.is_empty());
        assert!(map.first_key_value().is_none());
        assert_eq!(copy.len(), 1000);
        assert!(copy.iter().all(|(key, value)| key == value));
    }

    #[test]
    fn shares_a_copy_until_it_changes() {
        let mut map: Map<u32, u32> = (0..100).map(|key| (key, key)).collect();
        let copy = map.clone();
        assert!(map.shares_all_with(&copy));
        assert_eq!(map.get_mut(&1000), None);
        assert_eq!(map.remove(&1000), None);
        assert!(map.shares_all_with(&copy), "a miss copies nothing");
        map.insert(5, 6);
        assert!(!map.shares_all_with(&copy));
        assert_eq!((map[&5], copy[&5]), (6, 5));
    }

    proptest! {
        #[test]
        fn behaves_like_a_btree_map(
            steps in prop::collection::vec((0u8..4, 0u16..300, any::<u8>()), 0..2000),
        ) {
            let mut map = Map::new();
            let mut model = BTreeMap::new();
            let mut copies = Vec::new();
            for (step, (what, key, value)) in steps.into_iter().enumerate() {
                match what {
                    0 | 1 => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    2 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    _ => {
                        let (one, other) = (map.get_mut(&key), model.get_mut(&key));
                        prop_assert_eq!(&one, &other);
                        if let (Some(one), Some(other)) = (one, other) {
                            *one = value;
                            *other = value;
                        }
                    }
                }
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.get(&key), model.get(&key));
                if step % 200 == 0 {
                    copies.push((map.clone(), model.clone()));
                }
            }
            copies.push((map, model));
            for (map, model) in copies {
                prop_assert!(map.iter().eq(model.iter()));
                let bytes = postcard::to_stdvec(&map).expect("encodes");
                prop_assert_eq!(&bytes, &postcard::to_stdvec(&model).expect("encodes"));
                prop_assert_eq!(postcard::from_bytes::<Map<u16, u8>>(&bytes).expect("decodes"), map);
            }
        }
    }
}
