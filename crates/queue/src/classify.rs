//! What a failed pull means: one table from the runtime's words to ours. Runtimes give hardly any
//! usable code (containerd's `NotFound` is the exception), so text decides: by its structure, which
//! no name can change, and by phrases at their place in it.

mod table;
mod text;

use kubefledged_api_types::{names::failure, one_line};

use crate::CallError;

pub use table::REFUSED_ARTIFACT;
use text::Text;

/// What may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing that this node could do: the controller decides when to try again.
    None,
    /// Another credential.
    NextCredential,
    /// The same call once more, after a pause: it concerned this node only.
    Repeat,
    /// The same call once more: the runtime dropped it, and nobody here had asked for that.
    RepeatAtOnce,
}

/// A failed call in our words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// One word of `names::failure`.
    pub reason: &'static str,
    /// What may help.
    pub remedy: Remedy,
    /// Whether the code or the text decided. `false`: the table has nothing that fits.
    pub known: bool,
}

/// Longest message that is passed on, in bytes.
pub const MOST_MESSAGE: usize = 1024;

/// In our words, of a pull of this name.
pub fn classify(error: &CallError, name: &str) -> Class {
    let text = Text::new(&error.message, name);
    let decided = table::look_up(&text);
    // It speaks of a pull, and not of the way to the runtime's socket.
    let of_a_pull = || text.any(|segment| segment.starts_with("failed to "));
    let (reason, remedy) = match (error.code.as_str(), decided) {
        // Whatever was under way in the runtime, nobody waits for it any more.
        ("Cancelled", _) => (failure::NO_PROGRESS, Remedy::RepeatAtOnce),
        // The socket, not the registry: connecting to it is refused with the same words.
        ("Unavailable", Some(known)) if of_a_pull() => known,
        ("Unavailable", _) => (failure::RUNTIME_UNAVAILABLE, Remedy::Repeat),
        (_, Some(known)) => known,
        ("NotFound", None) => (failure::IMAGE_NOT_FOUND, Remedy::None),
        ("DeadlineExceeded", None) => (failure::DEADLINE_EXCEEDED, Remedy::None),
        ("Unauthenticated" | "PermissionDenied", None) => {
            (failure::UNAUTHORIZED, Remedy::NextCredential)
        }
        _ => (failure::ERR_IMAGE_PULL, Remedy::None),
    };
    let known = reason != failure::ERR_IMAGE_PULL || decided.is_some();
    Class {
        reason,
        remedy,
        known,
    }
}

/// A message that may be passed on: one line of at most [`MOST_MESSAGE`] bytes, without signatures.
pub fn tidy(message: &str) -> String {
    without_signatures(message, MOST_MESSAGE)
}

/// One line of at most `most` bytes, and without the query of a URL, where blob stores put the signature that
/// opens the blob.
pub fn without_signatures(message: &str, most: usize) -> String {
    let mut clean = String::with_capacity(message.len().min(most));
    let mut rest = message;
    while let Some(at) = rest.find("://") {
        let end = rest[at..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>'))
            .map_or(rest.len(), |end| at + end);
        let (url, after) = rest.split_at(end);
        match url[at..].find('?') {
            Some(query) => {
                clean.push_str(&url[..=at + query]);
                clean.push_str("...");
            }
            None => clean.push_str(url),
        }
        rest = after;
    }
    clean.push_str(rest);
    one_line(&clean, most)
}

#[cfg(test)]
mod tests;
