//! Ways by a third node: this router's own while a direct one is cut, and those of others that lead
//! by here.

use std::time::Instant;

use flotilla_model::id::NodeId;

use crate::discard::Discard;
use crate::forward::Wire;
use crate::forward::router::{Router, RouterConfig};
use crate::relay::keys::End;
use crate::relay::link::Link;
use crate::relay::transit::{self, Detour, Passage};

impl Router {
    /// Another node asks to send a packet on, because its way to a third one is cut.
    pub(super) fn pass_on<W: Wire>(
        &mut self,
        bytes: &mut [u8],
        wire: &mut W,
    ) -> Result<(), Discard> {
        let (course, _) = transit::head(bytes)?;
        let known = |node| {
            let link = self.links.get(&node).filter(|link| !link.is_removed);
            link.ok_or(Discard::UnknownLink)
        };
        let (from, target) = (known(course.from)?.remote, known(course.target)?);
        if course.from == course.target || target.detour.is_some() {
            return Err(Discard::UnknownLink);
        }
        let local = self.local_end();
        let RouterConfig {
            relay_secret,
            shard,
            ..
        } = &self.config;
        let new = || Passage::new(relay_secret, *shard, from, local, course.target);
        let passage = self.passages.entry(course).or_insert_with(new);
        if passage.boot != from.boot {
            *passage = new();
        }
        let inside = passage.open(bytes)?;
        wire.send_relay(target.address, |buffer| {
            let Some(room) = buffer.get_mut(..inside.len()) else {
                return 0;
            };
            room.copy_from_slice(inside);
            inside.len()
        });
        self.packets_passed_on += 1;
        Ok(())
    }

    /// Packets to `node` go by way of `via` from now on, or directly again. Nothing changes if a
    /// node is not known.
    pub fn set_detour(&mut self, now: Instant, node: NodeId, via: Option<NodeId>) {
        let way = via.and_then(|via| {
            let link = self.links.get(&via).filter(|link| !link.is_removed)?;
            (via != node).then_some((link.remote, link.address))
        });
        let local = self.local_end();
        let counter = self.counter_from(now);
        let RouterConfig {
            relay_secret,
            shard,
            ..
        } = &self.config;
        if let Some(link) = self.links.get_mut(&node) {
            let used = link.detour.as_ref();
            if used.map(|detour| (detour.via, detour.address)) == way {
                return;
            }
            link.detour =
                way.map(|way| Detour::new(relay_secret, *shard, local, way, node, counter));
        }
        self.timers.hurry();
    }

    /// A node is reached elsewhere or has started anew: so are the detours by it.
    pub(super) fn renew_detours(&mut self, now: Instant, via: NodeId) {
        let concerned = |link: &&Link| {
            let detour = link.detour.as_ref();
            detour.is_some_and(|detour| detour.via.node == via)
        };
        let nodes: Vec<_> = self.links.values().filter(concerned).collect();
        let nodes: Vec<_> = nodes.iter().map(|link| link.remote.node).collect();
        for node in nodes {
            self.set_detour(now, node, Some(via));
        }
    }

    /// Counters that have not been used: a packet takes longer than a nanosecond.
    pub(super) fn counter_from(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.epoch).as_nanos();
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        self.config.counters_from.saturating_add(age)
    }

    pub(super) fn local_end(&self) -> End {
        End {
            node: self.config.node,
            boot: self.config.boot,
        }
    }
}
