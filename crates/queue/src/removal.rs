//! One removal: name by name, and each name only if nothing speaks against it.

use std::collections::BTreeSet;

use kubefledged_api_types::names::failure;
use kubefledged_image::{ImageRef, glob};

use crate::{
    Answer, Authority, Call, CallError, CallId, Container, Image, RemoveResult, Runtime, StreamId,
    classify,
};

/// Where the current name stands.
#[derive(Clone, Debug)]
pub enum Step {
    /// Not begun.
    Begin,
    /// The runtime is asked whether the name is there.
    Looking(CallId),
    /// The runtime is asked who uses it.
    Asking(CallId, Image),
    /// The runtime removes it.
    Removing(CallId),
    /// The runtime is asked whether it is gone.
    Verifying(CallId),
}

/// One request.
#[derive(Debug)]
pub struct Removal {
    /// Where outcomes go, while somebody listens.
    pub stream: Option<StreamId>,
    /// Whose request.
    pub authority: Authority,
    /// As written, and normalized.
    pub names: Vec<(String, String)>,
    /// Normalized.
    pub wanted: BTreeSet<String>,
    /// Normalized.
    pub releasable: BTreeSet<String>,
    /// Which name is at hand.
    pub at: usize,
    /// Where it stands.
    pub step: Step,
    /// While the runtime removes: all names that may go, normalized. No pull of one may begin.
    pub held: BTreeSet<String>,
}

/// What else decides about a name.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// How removals work here.
    pub runtime: Runtime,
    /// Globs of names that always stay.
    pub protected: &'a [String],
    /// Names that a pull of ours is about to make or has made since, normalized.
    pub claimed: &'a BTreeSet<String>,
}

/// What follows for the name at hand.
#[derive(Debug)]
pub enum Next {
    /// This call.
    Call(Call),
    /// Its outcome.
    Finish(RemoveResult),
}

/// One form for all spellings; what does not parse stands for itself.
pub fn normalized(name: &str) -> String {
    ImageRef::parse(name).map_or_else(|_| name.to_owned(), |image| image.normalized())
}

impl Removal {
    /// The call under way.
    pub fn call(&self) -> Option<CallId> {
        match self.step {
            Step::Begin => None,
            Step::Looking(id) | Step::Asking(id, _) | Step::Removing(id) | Step::Verifying(id) => {
                Some(id)
            }
        }
    }

    /// What follows from an answer.
    pub fn answered(&mut self, answer: Answer, around: &Circumstances<'_>) -> Next {
        match (std::mem::replace(&mut self.step, Step::Begin), answer) {
            (Step::Looking(_), Answer::Inspected(Ok(None))) => Next::Finish(RemoveResult::Absent),
            (Step::Looking(id), Answer::Inspected(Ok(Some(image)))) => {
                self.step = Step::Asking(id, image);
                Next::Call(Call::Containers)
            }
            (Step::Asking(id, image), Answer::Containers(Ok(containers))) => {
                match self.target(&image, &containers, around) {
                    Ok(target) => {
                        let names = image.tags.iter().chain(&image.digests);
                        self.held = names.map(|name| normalized(name)).collect();
                        self.held.insert(self.names[self.at].1.clone());
                        self.step = Step::Removing(id);
                        Next::Call(Call::Remove(target))
                    }
                    Err(kept) => Next::Finish(kept),
                }
            }
            (Step::Removing(id), Answer::Removed(Ok(()))) => {
                self.step = Step::Verifying(id);
                Next::Call(Call::Inspect(self.runtime_name()))
            }
            (Step::Verifying(_), Answer::Inspected(Ok(None))) => {
                Next::Finish(RemoveResult::Removed)
            }
            (Step::Verifying(_), Answer::Inspected(Ok(Some(_)))) => {
                Next::Finish(failed("the runtime removed the image and still has it"))
            }
            (
                _,
                Answer::Inspected(Err(error))
                | Answer::Containers(Err(error))
                | Answer::Removed(Err(error))
                | Answer::Pulled(Err(error)),
            ) => Next::Finish(refused(&error)),
            (_, _) => Next::Finish(failed("the runtime answered another question")),
        }
    }

    /// The call that [`Removal::answered`] asked for.
    pub fn called(&mut self, id: CallId) {
        self.step = match std::mem::replace(&mut self.step, Step::Begin) {
            Step::Asking(_, image) => Step::Asking(id, image),
            Step::Removing(_) => Step::Removing(id),
            Step::Begin | Step::Looking(_) | Step::Verifying(_) => Step::Verifying(id),
        };
    }

    /// The runtime removes, or has removed, the name at hand.
    pub fn acting(&self) -> bool {
        matches!(self.step, Step::Removing(_) | Step::Verifying(_))
    }

    /// On to the next name.
    pub fn next(&mut self) {
        self.at += 1;
        self.step = Step::Begin;
        self.held.clear();
    }

    /// What the runtime is asked about.
    pub fn runtime_name(&self) -> String {
        let name = &self.names[self.at].0;
        ImageRef::parse(name).map_or_else(|_| name.clone(), |image| image.runtime_name())
    }

    /// What to remove, or why not.
    fn target(
        &self,
        image: &Image,
        containers: &[Container],
        around: &Circumstances<'_>,
    ) -> Result<String, RemoveResult> {
        let (name, normal) = &self.names[self.at];
        let all = image.tags.iter().chain(&image.digests).chain([name]);
        let protects = |pattern: &&String| all.clone().any(|name| glob::matches(pattern, name));
        if let Some(pattern) = around.protected.iter().find(protects) {
            let why = format!("protected by --protected-images {pattern}");
            return Err(kept(failure::IN_USE, why));
        }
        if containers.iter().any(|container| uses(container, image)) {
            let why = "a container on the node uses it".to_owned();
            return Err(kept(failure::IN_USE, why));
        }
        if image.pinned {
            return Err(kept(failure::PINNED, "somebody else pinned it".to_owned()));
        }
        let shared = |other: &str| Err(kept(failure::SHARED_IMAGE, format!("it is also {other}")));
        if self.wanted.contains(normal) {
            let why = "another image cache wants it".to_owned();
            return Err(kept(failure::SHARED_IMAGE, why));
        }
        let by_digest = normal.contains('@');
        match (around.runtime, self.other_name(image, normal, around)) {
            // Only the name goes there; but a digest is no name that could go alone.
            (Runtime::Crio, Some(other)) if by_digest => shared(&other),
            (Runtime::Crio, Some(_)) => Ok(self.runtime_name()),
            (Runtime::Crio, None) => Ok(bare(&image.id).to_owned()),
            (Runtime::Containerd | Runtime::Docker, Some(other)) => shared(&other),
            (Runtime::Containerd | Runtime::Docker, None) => Ok(image.id.clone()),
        }
    }

    /// Another name of the image that is not ours to remove.
    fn other_name(
        &self,
        image: &Image,
        normal: &str,
        around: &Circumstances<'_>,
    ) -> Option<String> {
        let ours = |other: &str| {
            let kept = self.wanted.contains(other) || around.claimed.contains(other);
            let free =
                self.releasable.contains(other) || self.names.iter().any(|(_, name)| name == other);
            other == normal || (free && !kept)
        };
        let tags: Vec<String> = image.tags.iter().map(|tag| normalized(tag)).collect();
        if let Some(tag) = tags.iter().find(|tag| !ours(tag)) {
            return Some(tag.clone());
        }
        // Each tag brings a digest of its repository along, which is nobody's own. One of another
        // repository was pulled by digest; CRI-O lists it after its tag has gone, too.
        let known = tags.iter().map(String::as_str).chain([normal]).chain(
            self.releasable
                .iter()
                .chain(self.names.iter().map(|(_, name)| name))
                .map(String::as_str),
        );
        image
            .digests
            .iter()
            .map(|digest| normalized(digest))
            .find(|digest| {
                self.wanted.contains(digest)
                    || around.claimed.contains(digest)
                    || (around.runtime != Runtime::Crio
                        && !known
                            .clone()
                            .any(|name| repository(name) == repository(digest)))
            })
    }
}

/// A normalized name without tag and digest.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    name[path..]
        .find(':')
        .map_or(name, |colon| &name[..path + colon])
}

fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

fn uses(container: &Container, image: &Image) -> bool {
    let mut said = container.image.iter().filter(|said| !said.is_empty());
    said.any(|said| {
        // cri-dockerd writes docker://id and docker-pullable://name@digest.
        let said = said
            .split_once("://")
            .map_or(said.as_str(), |(_, said)| said);
        let mut names = image.tags.iter().chain(&image.digests);
        bare(said) == bare(&image.id)
            || names.any(|name| name == said || normalized(name) == normalized(said))
    })
}

fn kept(reason: &str, message: String) -> RemoveResult {
    RemoveResult::Kept {
        reason: reason.to_owned(),
        message,
    }
}

fn failed(message: &str) -> RemoveResult {
    RemoveResult::Failed {
        reason: failure::REMOVE_FAILED.to_owned(),
        message: classify::tidy(message),
    }
}

/// CRI-O says so itself when a container came between our look and the removal.
fn refused(error: &CallError) -> RemoveResult {
    if error.message.contains("in use by a container") {
        return kept(failure::IN_USE, classify::tidy(&error.message));
    }
    if error.code == "Unavailable" {
        return RemoveResult::Failed {
            reason: failure::RUNTIME_UNAVAILABLE.to_owned(),
            message: classify::tidy(&error.message),
        };
    }
    failed(&error.message)
}
