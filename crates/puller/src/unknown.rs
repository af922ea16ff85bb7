//! Error texts of the runtime that the table of known texts does not have, kept whole so that people can
//! report them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use kubefledged_queue::{Answer, Call, classify, without_signatures};

/// Maximum number of different texts. The one that was seen least recently goes first.
const TEXTS: usize = 32;
/// Maximum length of one text, in bytes.
const LENGTH: usize = 16 << 10;

/// One text.
#[derive(Clone, Debug)]
pub struct UnknownError {
    /// The image whose pull failed with it last.
    pub image: String,
    /// gRPC code of the answer.
    pub code: String,
    /// What the runtime said, without the queries of URLs.
    pub message: String,
    /// How often it was seen.
    pub count: u64,
    /// When it was seen last.
    pub last: Instant,
}

/// The texts. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct UnknownErrors(Arc<Mutex<VecDeque<UnknownError>>>);

impl UnknownErrors {
    /// Notes the answer to a call if it is a failed pull whose text is unknown. Returns the gRPC code of such
    /// an answer.
    pub fn note<'a>(&self, call: &Call, answer: &'a Answer) -> Option<&'a str> {
        let (Call::Pull(image, ..), Answer::Pulled(Err(error))) = (call, answer) else {
            return None;
        };
        if classify(error, image).known {
            return None;
        }
        let message = without_signatures(&error.message, LENGTH);
        // Two texts that differ in the image's name alone are one.
        let general = |message: &str, image: &str| message.replace(image, "");
        let text = general(&message, image);
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = texts.iter().position(|known| {
            known.code == error.code && general(&known.message, &known.image) == text
        });
        let count = same
            .and_then(|at| texts.remove(at))
            .map_or(0, |known| known.count);
        texts.truncate(TEXTS - 1);
        texts.push_front(UnknownError {
            image: image.clone(),
            code: error.code.clone(),
            message,
            count: count + 1,
            last: Instant::now(),
        });
        Some(&error.code)
    }

    /// Returns the texts, the one that was seen last first.
    pub fn list(&self) -> Vec<UnknownError> {
        let texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        texts.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use kubefledged_queue::{CallError, Sharing};

    use super::*;

    fn failed(unknown: &UnknownErrors, image: &str, code: &str, message: &str) -> bool {
        let answer = Answer::Pulled(Err(CallError {
            code: code.to_owned(),
            message: message.to_owned(),
        }));
        let call = Call::Pull(image.to_owned(), None, Sharing::default());
        unknown.note(&call, &answer).is_some()
    }

    #[test]
    fn a_text_that_the_table_knows_is_not_kept() {
        let unknown = UnknownErrors::default();
        assert!(!failed(
            &unknown,
            "r.test/a:1",
            "Unknown",
            "429 Too Many Requests"
        ));
        assert!(!failed(
            &unknown,
            "r.test/a:1",
            "NotFound",
            "it is not there"
        ));
        assert!(unknown.list().is_empty());
    }

    #[test]
    fn an_unknown_text_is_kept_whole_once_for_all_images_without_what_opens_a_blob() {
        let unknown = UnknownErrors::default();
        let long = "x".repeat(5000);
        for image in ["r.test/a:1", "r.test/b:1", "r.test/a:1"] {
            let text = format!("{image}: GET https://blobs.test/1?sig=secret turned purple {long}");
            assert!(failed(&unknown, image, "Unknown", &text));
        }
        let list = unknown.list();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].count, &*list[0].image), (3, "r.test/a:1"));
        assert!(list[0].message.ends_with(&long));
        assert!(!list[0].message.contains("secret"), "{}", list[0].message);
    }

    #[test]
    fn the_newest_texts_are_kept_and_none_is_endless() {
        let unknown = UnknownErrors::default();
        for i in 0..TEXTS + 5 {
            assert!(failed(
                &unknown,
                "r.test/a:1",
                "Unknown",
                &format!("trouble {i}")
            ));
        }
        assert!(failed(
            &unknown,
            "r.test/a:1",
            "Unknown",
            &"y".repeat(1 << 20)
        ));
        let list = unknown.list();
        assert_eq!(list.len(), TEXTS);
        assert_eq!(list[0].message.len(), LENGTH);
        assert_eq!(list[1].message, format!("trouble {}", TEXTS + 4));
    }
}
