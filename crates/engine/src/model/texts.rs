//! Texts that many rows have in common: labels of nodes, messages of failures.

use std::{collections::BTreeSet, sync::Arc};

/// Maximum length of the message of a failure, in bytes.
const LONGEST_MESSAGE: usize = 256;

/// Texts, each kept once. Texts that nothing has any more are dropped now and then, because an autoscaler adds
/// nodes with new names all day.
#[derive(Debug, Default)]
pub struct Texts {
    known: BTreeSet<Arc<str>>,
    sweep_at: usize,
}

impl Texts {
    /// The text; the same memory for the same text.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(1024) {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        let text: Arc<str> = text.into();
        self.known.insert(text.clone());
        text
    }

    /// The message of a failure. The beginning and the end of a long one are kept: runtimes write first what
    /// they did, and last what went wrong.
    pub fn share_message(&mut self, message: &str) -> Arc<str> {
        if message.len() <= LONGEST_MESSAGE {
            return self.share(message);
        }
        let boundary = |at: &usize| message.is_char_boundary(*at);
        let head = LONGEST_MESSAGE / 3;
        let head = (0..=head).rev().find(boundary).unwrap_or_default();
        let tail = message.len() - (LONGEST_MESSAGE - head - 3);
        let tail = (tail..message.len()).find(boundary);
        let tail = tail.map_or("", |at| &message[at..]);
        self.share(&format!("{}...{tail}", &message[..head]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_nothing_has_any_more_are_dropped() {
        let mut texts = Texts::default();
        for name in 0..10_000 {
            drop(texts.share(&name.to_string()));
        }
        assert!(texts.known.len() < 2100, "{}", texts.known.len());
    }

    #[test]
    fn the_same_message_of_many_nodes_is_kept_once_with_its_beginning_and_its_end() {
        let mut texts = Texts::default();
        let long = format!("failed to pull{}: connection refused", " ü".repeat(500));
        let (one, two) = (texts.share_message(&long), texts.share_message(&long));
        assert!(Arc::ptr_eq(&one, &two));
        assert!(one.len() <= LONGEST_MESSAGE, "{}", one.len());
        assert!(one.starts_with("failed to pull") && one.ends_with("connection refused"));
        assert_eq!(&*texts.share_message("short"), "short");
    }
}
