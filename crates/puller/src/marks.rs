//! Names that we pulled, on nodes whose runtime keeps no labels for us: in memory, and in a file if the puller has
//! a directory for it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tonic::Status;

/// Maximum number of names. What is pulled beyond them is not remembered, and so stays on the node.
const MOST: usize = 20_000;

/// The names, each with the id of the image that we pulled. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    names: Arc<Mutex<BTreeMap<String, String>>>,
    file: Option<Arc<Path>>,
}

impl Marks {
    /// Reads what an earlier puller of this node remembered. A file that cannot be read is replaced at the next
    /// pull.
    pub fn load(directory: Option<&Path>) -> Self {
        let Some(directory) = directory else {
            return Self::default();
        };
        let file: PathBuf = directory.join("pulled.json");
        let names = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "cannot read which images were pulled: they will stay on this node");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "cannot read which images were pulled: they will stay on this node");
                BTreeMap::new()
            }
        };
        Self {
            names: Arc::new(Mutex::new(names)),
            file: Some(file.into()),
        }
    }

    /// Remembers an image under a name.
    pub fn add(&self, name: String, id: String) -> Result<(), Status> {
        let mut names = self.names();
        if names.len() >= MOST && !names.contains_key(&name) {
            return Ok(());
        }
        if names.insert(name, id.clone()) == Some(id) {
            return Ok(());
        }
        let Some(file) = &self.file else {
            return Ok(());
        };
        // Replaced as a whole: a crash leaves the old or the new one.
        let new = file.with_extension("new");
        let written = serde_json::to_vec(&*names).map_err(std::io::Error::from);
        written
            .and_then(|text| std::fs::write(&new, text))
            .and_then(|()| std::fs::rename(&new, file))
            .map_err(|error| Status::internal(format!("cannot write {}: {error}", file.display())))
    }

    /// Returns whether this image was pulled under this name.
    pub fn has(&self, name: &str, id: &str) -> bool {
        self.names().get(name).is_some_and(|known| known == id)
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pulled_is_known_to_the_next_puller_and_another_image_of_the_name_is_not_ours() {
        let directory =
            std::env::temp_dir().join(format!("kubefledged-marks-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let marks = Marks::load(Some(&directory));
        marks.add("r.test/a:1".to_owned(), "1".to_owned()).unwrap();
        marks.add("r.test/a:1".to_owned(), "2".to_owned()).unwrap();
        let next = Marks::load(Some(&directory));
        assert!(next.has("r.test/a:1", "2") && !next.has("r.test/a:1", "1"));
        std::fs::write(directory.join("pulled.json"), "no json").unwrap();
        assert!(!Marks::load(Some(&directory)).has("r.test/a:1", "2"));
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(marks.add("r.test/b:1".to_owned(), "3".to_owned()).is_err());
        assert!(!Marks::load(None).has("r.test/b:1", "3"));
    }
}
