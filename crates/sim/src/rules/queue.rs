//! What must hold of each call of a queue to its runtime, and of its replies.

use std::collections::BTreeSet;

use kubefledged_queue::{Answer, Call, Event as QueueEvent, Policy, Runtime as Kind, StreamId};

use super::PARALLEL;
use crate::{
    node::Removal,
    registry::{PAUSE, normalized},
    world::World,
};

impl World {
    /// Notes what a puller is asked for.
    pub fn requested(&mut self, node: usize, event: &QueueEvent) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let seen = &mut process.seen;
        if let QueueEvent::Pull(stream, authority, _)
        | QueueEvent::Remove {
            stream, authority, ..
        }
        | QueueEvent::Cancel(stream, authority, _) = event
            && authority.term < seen.term
        {
            seen.replaced.insert(*stream);
        }
        match event {
            QueueEvent::Pull(stream, authority, images) if authority.term >= seen.term => {
                seen.term = authority.term;
                seen.waiting.asked(*stream, images);
                for image in images {
                    let newest = seen.pulls.entry(normalized(&image.reference)).or_default();
                    *newest = (*newest).max((authority.term, authority.seq));
                    debug_assert!(matches!(
                        image.policy,
                        Policy::Always | Policy::IfNotPresent
                    ));
                }
            }
            QueueEvent::Remove {
                stream,
                authority,
                references,
                desired: wanted,
                releasable,
                ..
            } if authority.term >= seen.term => {
                seen.term = authority.term;
                let names = references.iter().chain(releasable);
                let removal = Removal {
                    order: (authority.term, authority.seq),
                    names: references.iter().map(|name| normalized(name)).collect(),
                    free: names.map(|name| normalized(name)).collect(),
                    wanted: wanted.iter().map(|name| normalized(name)).collect(),
                };
                seen.removals.insert(*stream, removal);
            }
            QueueEvent::Cancel(_, authority, _) => seen.term = seen.term.max(authority.term),
            _ => {}
        }
    }

    /// A puller replies. A leader that was replaced is refused, and nothing else.
    pub fn check_reply(&mut self, node: usize, stream: StreamId, refused: bool) {
        let process = self.nodes[node].process.as_ref();
        let replaced = process.is_some_and(|known| known.seen.replaced.contains(&stream));
        if replaced != refused {
            let told = format!("n{node}: stream {}, refused: {refused}", stream.0);
            self.broken("one leader's work", told);
        }
    }

    /// Notes what a puller saw.
    pub fn looked(&mut self, node: usize, answer: &Answer) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        match answer {
            Answer::Inspected(Ok(Some(image))) => {
                let id = image.id.trim_start_matches("sha256:").to_owned();
                process.seen.images.insert(id, image.clone());
            }
            Answer::Containers(Ok(containers)) => {
                let said = containers.iter().flat_map(|c| &c.image);
                let bare = said.map(|said| said.rsplit(':').next().unwrap_or(said).to_owned());
                process.seen.used = bare.collect();
            }
            _ => {}
        }
    }

    /// A puller calls its runtime.
    pub fn check_call(&mut self, node: usize, call: &Call) {
        let told = match call {
            Call::Pull(name, ..) => self.wrong_pull(node, &normalized(name)),
            Call::Remove(target) => self.wrong_removal(node, target),
            _ => None,
        };
        if let Some((rule, detail)) = told {
            self.broken(rule, format!("n{node}: {detail}"));
        }
    }

    fn wrong_pull(&self, node: usize, name: &str) -> Option<(&'static str, String)> {
        let process = self.nodes[node].process.as_ref()?;
        let mut running = 0;
        for known in process.calls.values() {
            match &known.call {
                Call::Pull(other, ..) if normalized(other) == name => {
                    return Some(("one pull of a name at a time", name.to_owned()));
                }
                Call::Pull(..) => running += 1,
                Call::Remove(target) if self.last_names(node, target).contains(name) => {
                    return Some(("no pull during a removal", name.to_owned()));
                }
                _ => {}
            }
        }
        // Two more for images that others would hold up: the queue's own tests say when.
        (running >= PARALLEL + 2).then(|| ("parallel pulls", format!("{} at once", running + 1)))
    }

    fn wrong_removal(&self, node: usize, target: &str) -> Option<(&'static str, String)> {
        let process = self.nodes[node].process.as_ref()?;
        let seen = &process.seen;
        let bare = target.trim_start_matches("sha256:");
        let by_id = seen.images.contains_key(bare);
        let id = if by_id {
            bare.to_owned()
        } else {
            let name = normalized(target);
            let mut images = seen.images.iter();
            images
                .find(|(_, image)| image.tags.iter().any(|tag| normalized(tag) == name))
                .map_or_else(String::new, |(id, _)| id.clone())
        };
        let takes_all = by_id || self.nodes[node].runtime.kind != Kind::Crio;
        if seen.mounted.contains(&id) {
            return Some(("no removal of what a container mounts", target.to_owned()));
        }
        if takes_all && seen.used.contains(&id) {
            return Some(("no removal of what a container uses", target.to_owned()));
        }
        if takes_all && seen.images.get(&id).is_some_and(|image| image.pinned) {
            return Some(("no removal of what is pinned", target.to_owned()));
        }
        let taken = self.last_names(node, target);
        if taken.contains(PAUSE) {
            return Some(("no removal of the sandbox image", target.to_owned()));
        }
        let may = seen.removals.values().any(|removal| {
            taken.iter().all(|name| {
                let newest = seen.pulls.get(name).copied().unwrap_or_default();
                removal.free.contains(name)
                    && !removal.wanted.contains(name)
                    && newest < removal.order
            })
        });
        if !may {
            let removals = &seen.removals;
            let told = format!("{target} takes {taken:?}, asked for {removals:?}");
            return Some(("no removal of what nobody gave up", told));
        }
        let pulled = process.calls.values().find(
            |known| matches!(&known.call, Call::Pull(name, ..) if taken.contains(&normalized(name))),
        );
        pulled.map(|known| ("no removal during a pull", format!("{:?}", known.call)))
    }

    /// Names that a removal of this target takes away, as far as the puller could see.
    fn last_names(&self, node: usize, target: &str) -> BTreeSet<String> {
        let bare = target.trim_start_matches("sha256:");
        let process = self.nodes[node].process.as_ref();
        let image = process.and_then(|process| process.seen.images.get(bare));
        match image {
            Some(image) => image.tags.iter().map(|tag| normalized(tag)).collect(),
            None => [normalized(target)].into(),
        }
    }
}
