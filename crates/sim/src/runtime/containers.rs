//! Containers: the image that each runs from, and images that they mount as volumes.

use kubefledged_queue::{Container, Runtime as Kind};

use super::Runtime;

impl Runtime {
    /// All containers, in the words of the runtime. What they mount is in their status alone, which pullers ask for
    /// each of them.
    pub fn list_containers(&self) -> Vec<Container> {
        let runs = self.containers.iter().map(|id| self.said(id));
        let sandbox = self.containers.first();
        let mounts = self.mounts.iter().map(|id| {
            let mut image = sandbox.map(|own| self.said(own)).unwrap_or_default();
            image.extend(self.said(id));
            image
        });
        runs.chain(mounts)
            .map(|image| Container { image })
            .collect()
    }

    fn said(&self, id: &String) -> Vec<String> {
        let tag = self.images.get(id).and_then(|held| held.tags.first());
        match (self.kind, tag) {
            (Kind::Docker, _) => vec![format!("docker://sha256:{id}")],
            (Kind::Crio, Some(tag)) => vec![id.clone(), tag.clone()],
            (Kind::Crio, None) => vec![id.clone()],
            (Kind::Containerd, _) => vec![format!("sha256:{id}")],
        }
    }

    /// Does a container run from it?
    pub fn used(&self, id: &str) -> bool {
        self.containers.iter().any(|used| used == id)
    }

    /// Does a container mount it?
    pub fn mounted(&self, id: &str) -> bool {
        self.mounts.iter().any(|mounted| mounted == id)
    }

    /// A container mounts an image, if it is there and the runtime can mount images.
    pub fn mount(&mut self, target: &str) {
        if let Some(id) = self.resolve(target)
            && self.kind != Kind::Docker
        {
            self.mounts.push(id);
        }
    }

    /// All containers but the sandbox end.
    pub fn stop_containers(&mut self) {
        self.containers.truncate(1);
        self.mounts.clear();
    }
}
