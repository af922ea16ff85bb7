//! The images of the fake runtime, and what pulls and removals do to them.

use kubefledged_proto::cri::{AuthConfig, Image};
use tonic::Status;

use super::{Native, State, bare, digest, normalized};
use crate::{
    removal::{Effect, Removal, Target},
    sha256,
};

impl State {
    /// Returns the image as CRI shows it.
    pub(super) fn seen(&self, at: usize, native: Native) -> Image {
        let mut image = self.images[at].clone();
        let label = self.labels.get(&image.id);
        let label = label.and_then(|labels| labels.get("io.cri-containerd.pinned"));
        let labelled = self.labelled.get(&image.id);
        let shown = labelled.is_none_or(|at| at.elapsed() >= self.labels_late);
        let label = label.filter(|value| shown && *value == "pinned");
        image.pinned |= native == Native::WithPins && label.is_some();
        image
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        let normal = normalized(name);
        self.images.iter().position(|image| {
            bare(&image.id) == bare(name)
                || image.repo_tags.contains(&normal)
                || image.repo_digests.contains(&normal)
        })
    }

    pub(super) fn add(&mut self, name: &str, removal: Removal) {
        if self.find(name).is_some() {
            return;
        }
        let normal = normalized(name);
        let hex = match self.moved.get(&normal) {
            Some(moves) => digest(&format!("{normal} {moves}")),
            None => digest(&normal),
        };
        let (tags, digests) = if normal.contains('@') {
            (Vec::new(), vec![normal])
        } else {
            let repository = normal
                .rsplit_once(':')
                .map_or(normal.as_str(), |(path, _)| path);
            let manifest = format!("{repository}@sha256:{}", digest(&hex));
            (vec![normal], vec![manifest])
        };
        self.images.push(Image {
            id: match removal {
                Removal::Name => hex,
                Removal::Whole | Removal::Id => format!("sha256:{hex}"),
            },
            repo_tags: tags,
            repo_digests: digests,
            size: 4_323_737,
            pinned: false,
        });
    }

    pub(super) fn add_artifact(&mut self, name: &str) {
        let id = sha256(b"{}");
        let normal = normalized(name);
        let repository = normal
            .rsplit_once(':')
            .map_or(normal.as_str(), |(path, _)| path);
        let manifest = format!("sha256:{}", digest(&normal));
        let by_digest = format!("{repository}@{manifest}");
        for name in [&normal, &by_digest, &id] {
            self.point(name, &manifest);
        }
        let at = self.find(&id).unwrap_or_else(|| {
            self.images.push(Image {
                id,
                ..Image::default()
            });
            self.images.len() - 1
        });
        self.images[at].repo_tags.push(normal);
        self.images[at].repo_digests.push(by_digest);
    }

    /// containerd's own interface removes a name alone.
    pub(crate) fn untag(&mut self, name: &str) {
        for image in &mut self.images {
            image.repo_tags.retain(|tag| tag != name);
            image.repo_digests.retain(|digest| digest != name);
        }
    }

    /// Removes a moved tag from its previous image.
    pub(super) fn leave(&mut self, normal: &str) {
        let id = self
            .moved
            .get(normal)
            .map(|moves| digest(&format!("{normal} {moves}")));
        for image in &mut self.images {
            if id.as_ref().is_some_and(|id| bare(&image.id) != id) {
                image.repo_tags.retain(|tag| tag != normal);
            }
        }
    }

    /// Checks the conditions of a successful pull.
    pub(super) fn refusal(&mut self, name: &str, auth: Option<&AuthConfig>) -> Option<Status> {
        let normal = normalized(name);
        if let Some(failures) = self.failing.get_mut(&normal)
            && !failures.is_empty()
        {
            let (code, message) = failures.remove(0);
            return Some(Status::new(code, message));
        }
        let login = self.private.get(&normal)?;
        let given = auth.map(|auth| (auth.username.as_str(), auth.password.as_str()));
        (given != Some((login.username.as_str(), login.password.as_str()))).then(|| {
            Status::unknown(format!(
                "failed to pull and unpack image \"{name}\": failed to resolve image: unexpected \
                 status from HEAD request to http://registry.test/v2/: 401 Unauthorized"
            ))
        })
    }

    pub(super) fn remove(&mut self, target: &str, removal: Removal) -> Result<(), Status> {
        if let Some(refusal) = removal.refusal(target) {
            return Err(Status::unknown(refusal));
        }
        let Some(at) = self.find(target) else {
            return Ok(());
        };
        let (normal, image) = (normalized(target), &self.images[at]);
        let mut mounted = self.mounts.values();
        if mounted.any(|id| bare(id) == bare(&image.id))
            && let Some(refusal) = removal.refusal_of_mounted()
        {
            return Err(Status::unknown(refusal));
        }
        let effect = removal.effect(Target {
            by_id: !target.contains('/') && target.len() >= 64,
            last_name: image.repo_tags == [normal.as_str()],
            used: self
                .containers
                .iter()
                .any(|c| bare(&c.image_ref) == bare(&image.id)),
        });
        match effect {
            Effect::Image => {
                let gone = self.images.remove(at);
                self.labels.remove(&gone.id);
                self.store.roots.remove(&gone.id);
                self.store.collect_garbage();
            }
            Effect::Name => self.images[at].repo_tags.retain(|tag| *tag != normal),
            Effect::Nothing => {}
            Effect::Refused(why) => return Err(Status::unknown(why)),
        }
        Ok(())
    }
}
