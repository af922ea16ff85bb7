//! What became of a removal, in our words.

use kubefledged_api_types::names::failure;

use crate::{CallError, RemoveResult, classify};

pub fn kept(reason: &str, message: String) -> RemoveResult {
    RemoveResult::Kept {
        reason: reason.to_owned(),
        message,
    }
}

pub fn pinned() -> RemoveResult {
    kept(failure::PINNED, "somebody else pinned it".to_owned())
}

pub fn failed(message: &str) -> RemoveResult {
    RemoveResult::Failed {
        reason: failure::REMOVE_FAILED.to_owned(),
        message: classify::tidy(message),
    }
}

/// CRI-O and Docker say so themselves when a container started between our list of containers and the removal.
pub fn refused(error: &CallError) -> RemoveResult {
    const IN_USE: [&str; 4] = [
        "in use by a container",
        // Of an image that a container mounts as a volume.
        "the image is in use by ",
        "is using its referenced image",
        "image is being used by",
    ];
    if IN_USE.iter().any(|words| error.message.contains(words)) {
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
