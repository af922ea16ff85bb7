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

    /// What follows from an answer. `protected`: globs of names that always stay.
    pub fn answered(&mut self, answer: Answer, runtime: Runtime, protected: &[String]) -> Next {
        match (std::mem::replace(&mut self.step, Step::Begin), answer) {
            (Step::Looking(_), Answer::Inspected(Ok(None))) => Next::Finish(RemoveResult::Absent),
            (Step::Looking(id), Answer::Inspected(Ok(Some(image)))) => {
                self.step = Step::Asking(id, image);
                Next::Call(Call::Containers)
            }
            (Step::Asking(id, image), Answer::Containers(Ok(containers))) => {
                match self.target(&image, &containers, runtime, protected) {
                    Ok(target) => {
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
        runtime: Runtime,
        protected: &[String],
    ) -> Result<String, RemoveResult> {
        let (name, normal) = &self.names[self.at];
        let all = || image.tags.iter().chain(&image.digests).chain([name]);
        if let Some(pattern) = protected
            .iter()
            .find(|pattern| all().any(|name| glob::matches(pattern, name)))
        {
            return Err(kept(
                failure::IN_USE,
                format!("protected by --protected-images {pattern}"),
            ));
        }
        if containers.iter().any(|container| uses(container, image)) {
            return Err(kept(
                failure::IN_USE,
                "a container on the node uses it".to_owned(),
            ));
        }
        if image.pinned {
            return Err(kept(failure::PINNED, "somebody else pinned it".to_owned()));
        }
        let free = |other: &String| {
            !self.wanted.contains(other)
                && (other == normal
                    || self.releasable.contains(other)
                    || self.names.iter().any(|(_, name)| name == other))
        };
        let other = image
            .tags
            .iter()
            .map(|tag| normalized(tag))
            .find(|tag| !free(tag));
        match (runtime, other) {
            (Runtime::Crio, Some(_)) => Ok(self.runtime_name()),
            (_, Some(other)) => Err(kept(failure::SHARED_IMAGE, format!("it is also {other}"))),
            (Runtime::Crio, None) => Ok(bare(&image.id).to_owned()),
            (Runtime::Containerd | Runtime::Docker, None) => Ok(image.id.clone()),
        }
    }
}

fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

fn uses(container: &Container, image: &Image) -> bool {
    container
        .image
        .iter()
        .filter(|said| !said.is_empty())
        .any(|said| {
            bare(said) == bare(&image.id)
                || image.digests.contains(said)
                || image
                    .tags
                    .iter()
                    .any(|tag| normalized(tag) == normalized(said))
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
        message: classify::cut(message),
    }
}

/// CRI-O says so itself when a container came between our look and the removal.
fn refused(error: &CallError) -> RemoveResult {
    if error.message.contains("in use by a container") {
        return kept(failure::IN_USE, classify::cut(&error.message));
    }
    if error.code == "Unavailable" {
        return RemoveResult::Failed {
            reason: failure::RUNTIME_UNAVAILABLE.to_owned(),
            message: classify::cut(&error.message),
        };
    }
    failed(&error.message)
}
