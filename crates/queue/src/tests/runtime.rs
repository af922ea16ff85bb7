//! The runtime of the tests' node: a model of a few lines.

use super::*;

impl Node {
    pub(super) fn answer_one(&mut self, at: usize) {
        let (id, call) = self.calls.remove(at);
        let cancelled = self.cancelled.remove(&id);
        let answer = match call {
            Call::Inspect(name) => {
                let by_id = self.images.values().find(|image| image.id == name);
                let name = self.aliases.get(&name).unwrap_or(&name);
                let crio = self.runtime == Runtime::Crio;
                let image = self.images.get(name);
                let tagged = image.filter(|image| !crio || image.tags.contains(name));
                let image = tagged.or(by_id);
                Answer::Inspected(self.inspections.clone().map(|()| image.cloned()))
            }
            Call::Pull(..) if cancelled => {
                Answer::Pulled(Err(error("Cancelled", "context canceled")))
            }
            Call::Pull(name, credential, _) => match self.broken.get(&name) {
                Some(error) if credential != Some(CredentialId(7)) => {
                    Answer::Pulled(Err(error.clone()))
                }
                _ => {
                    self.hold(&name);
                    Answer::Pulled(Ok(self.sources))
                }
            },
            Call::Containers => Answer::Containers(Ok(self.containers.clone())),
            Call::Remove(target) => {
                let answer = self.removals.clone();
                if answer.is_ok() {
                    self.let_go(&target);
                }
                Answer::Removed(answer)
            }
            Call::Untag(Untag { name, .. }) => self.untag(&name),
            Call::FsInfo => Answer::Disk(self.disk.clone()),
            Call::Pins => {
                let answer = self.pins_answer.clone();
                Answer::Pins(answer.map(|()| self.ours.iter().cloned().collect()))
            }
            Call::Mark(name) => {
                self.marked.insert(name);
                Answer::Marked(Ok(()))
            }
            Call::Trace(name) => Answer::Traced(Ok(self.marked.contains(&name))),
            Call::Pin(id, on) => {
                self.pin(&id, on);
                Answer::Pinned(Ok(()))
            }
            Call::Progress(_) => {
                let bytes = self.bytes.iter();
                let seen = bytes.map(|(name, bytes)| (name.clone(), (*bytes).into()));
                Answer::Progress(Ok(seen.collect()))
            }
            Call::Credentials(_) => {
                let (given, trouble) = self.provided.clone();
                Answer::Credentials(given, trouble)
            }
        };
        self.handle(Event::Answered(id, answer));
    }

    /// The runtime has taken in all labels.
    pub(super) fn show_pins(&mut self) {
        let (ours, images) = (&self.ours, self.images.values_mut());
        for image in images.filter(|image| ours.contains(&image.id)) {
            image.pinned = true;
        }
    }

    /// containerd's own interface removes a name, and the other names of its id stay.
    fn untag(&mut self, name: &str) -> Answer {
        self.images.remove(name);
        for image in self.images.values_mut() {
            image.tags.retain(|tag| tag != name);
        }
        Answer::Removed(Ok(()))
    }

    /// CRI-O removes a name, and the image with its id.
    pub(super) fn let_go(&mut self, target: &str) {
        let tagged = |image: &&mut Image| image.tags.iter().any(|tag| tag == target);
        match self.images.values_mut().find(tagged) {
            Some(image) if self.runtime == Runtime::Crio => {
                image.tags.retain(|tag| tag != target);
            }
            _ => {
                let gone = |id: &str| id == target || id.strip_prefix("sha256:") == Some(target);
                self.images
                    .retain(|name, image| name != target && !gone(&image.id));
            }
        }
        self.ours.remove(target);
    }

    pub(super) fn pin(&mut self, id: &str, on: bool) {
        let images = self.images.values_mut().filter(|image| image.id == id);
        for image in images.filter(|_| !self.pins_late) {
            image.pinned = on && self.pins_work;
        }
        if on {
            self.ours.insert(id.to_owned());
        } else {
            self.ours.remove(id);
        }
    }
}
