//! What a provider gave, for as long as it said; and that it gave nothing, for a short while.

use std::{collections::HashMap, time::Duration};

use kubefledged_image::ImageRef;
use serde::Deserialize;
use tokio::time::Instant;

use super::Logins;

/// Answers that are kept of one provider; each is a few KiB.
const MOST: usize = 256;
/// How long a provider is not asked again that failed.
const FAILED: Duration = Duration::from_secs(10);
/// The same for one that did not answer within its minute, for whatever image: one that hangs would
/// cost every image a minute.
const SILENT: Duration = Duration::from_secs(60);

/// For which other images an answer holds too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum KeyType {
    /// Only for this repository.
    Image,
    /// For all of its registry.
    Registry,
    /// For all.
    Global,
}

impl KeyType {
    fn key(self, image: &ImageRef) -> (Self, String) {
        let key = match self {
            Self::Image => format!("{}/{}", image.registry(), image.repository()),
            Self::Registry => image.registry().to_owned(),
            Self::Global => String::new(),
        };
        (self, key)
    }
}

/// Answers of one provider.
#[derive(Debug, Default)]
pub struct Cache(HashMap<(KeyType, String), (Answer, Instant)>);

/// What it gave, or why it gave nothing.
type Answer = Result<Logins, String>;

impl Cache {
    /// What holds for an image: what was given for it before what was given for all.
    pub fn get(&mut self, image: &ImageRef, now: Instant) -> Option<Answer> {
        self.0.retain(|_, (_, until)| *until > now);
        let keys = [KeyType::Image, KeyType::Registry, KeyType::Global];
        keys.iter().find_map(|kind| {
            let (answer, _) = self.0.get(&kind.key(image))?;
            Some(answer.clone())
        })
    }

    /// Keeps an answer. Without a duration, or with zero, it is not kept.
    pub fn put(
        &mut self,
        kind: KeyType,
        image: &ImageRef,
        logins: &Logins,
        keep: Option<Duration>,
        now: Instant,
    ) {
        if let Some(keep) = keep.filter(|keep| !keep.is_zero()) {
            self.keep(kind.key(image), Ok(logins.clone()), now, keep);
        }
    }

    /// Keeps a failure for a short while; one for all images is one of a provider that is silent.
    pub fn failed(&mut self, kind: KeyType, image: &ImageRef, why: &str, now: Instant) {
        let pause = if kind == KeyType::Global {
            SILENT
        } else {
            FAILED
        };
        self.keep(kind.key(image), Err(why.to_owned()), now, pause);
    }

    fn keep(&mut self, key: (KeyType, String), answer: Answer, now: Instant, keep: Duration) {
        if self.0.len() >= MOST
            && let Some(first) = self.0.iter().min_by_key(|(_, (_, until))| *until)
        {
            let first = first.0.clone();
            self.0.remove(&first);
        }
        // A provider may say any number.
        if let Some(until) = now.checked_add(keep) {
            self.0.insert(key, (answer, until));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_its_kind_of_key_and_for_its_time() {
        let image = |name: &str| ImageRef::parse(name).unwrap();
        let (a, b, c) = (
            image("r.test/a:1"),
            image("r.test/b:1"),
            image("s.test/a:1"),
        );
        let minute = Some(Duration::from_secs(60));
        for (kind, holds) in [
            (KeyType::Image, [true, false, false]),
            (KeyType::Registry, [true, true, false]),
            (KeyType::Global, [true, true, true]),
        ] {
            let mut cache = Cache::default();
            let start = Instant::now();
            cache.put(kind, &a, &Vec::new(), minute, start);
            let held = [&a, &b, &c].map(|image| cache.get(image, start).is_some());
            assert_eq!(held, holds, "{kind:?}");
            assert!(
                cache.get(&image("r.test/a:2"), start).is_some(),
                "whatever the tag"
            );
            assert!(cache.get(&a, start + Duration::from_secs(60)).is_none());
        }
        let mut cache = Cache::default();
        cache.put(KeyType::Global, &a, &Vec::new(), None, Instant::now());
        cache.put(
            KeyType::Global,
            &a,
            &Vec::new(),
            Some(Duration::ZERO),
            Instant::now(),
        );
        assert!(cache.get(&a, Instant::now()).is_none());
    }

    #[test]
    fn a_failure_is_kept_for_a_short_while_and_a_silence_for_all_images() {
        let (a, b) = (
            ImageRef::parse("r.test/a").unwrap(),
            ImageRef::parse("s.test/b").unwrap(),
        );
        let start = Instant::now();
        let mut cache = Cache::default();
        cache.failed(KeyType::Image, &a, "no", start);
        assert_eq!(cache.get(&a, start), Some(Err("no".to_owned())));
        assert!(cache.get(&b, start).is_none());
        assert!(cache.get(&a, start + FAILED).is_none());
        cache.failed(KeyType::Global, &a, "silent", start);
        assert_eq!(cache.get(&b, start), Some(Err("silent".to_owned())));
        assert!(cache.get(&b, start + SILENT).is_none());
    }

    #[test]
    fn many_images_do_not_fill_the_memory() {
        let mut cache = Cache::default();
        let now = Instant::now();
        for i in 0..1000 {
            let image = ImageRef::parse(&format!("r.test/i{i}:1")).unwrap();
            cache.put(
                KeyType::Image,
                &image,
                &Vec::new(),
                Some(Duration::from_secs(60)),
                now,
            );
        }
        assert_eq!(cache.0.len(), MOST);
    }
}
