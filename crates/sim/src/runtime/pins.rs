//! Pins: who sets them, and when the runtime shows them.

use kubefledged_queue::CallError;

use super::{Flavor, Held, Runtime};

impl Runtime {
    /// Is it protected from garbage collection, as far as the runtime shows that now?
    pub fn pinned(&self, held: &Held, now: u64) -> bool {
        held.pinned || (self.flavor == Flavor::Containerd2 && held.shows_label(now))
    }

    /// Somebody else pins an image, if it is there.
    pub fn pin(&mut self, target: &str) {
        if let Some(id) = self.resolve(target)
            && let Some(held) = self.images.get_mut(&id)
        {
            held.pinned = true;
        }
    }

    /// Puts our label on an id, or takes it off. containerd's CRI takes that in asynchronously: it shows from `shown`
    /// on, or earlier if it was so already.
    pub fn label(&mut self, id: &str, on: bool, now: u64, shown: u64) -> Result<(), CallError> {
        if !self.flavor.has_more() {
            return Err(CallError {
                code: "Unimplemented".to_owned(),
                message: "unknown service containerd.services.images.v1.Images".to_owned(),
            });
        }
        let bare = id.strip_prefix("sha256:").unwrap_or(id);
        match self.images.get_mut(bare) {
            Some(held) if held.labelled == on => Ok(()),
            Some(held) => {
                held.shown = Some((held.shows_label(now), shown));
                held.labelled = on;
                Ok(())
            }
            None => Err(CallError {
                code: "NotFound".to_owned(),
                message: format!("image {id:?}: not found"),
            }),
        }
    }

    /// Ids that carry our label.
    pub fn labelled(&self) -> Vec<String> {
        let images = self.images.iter().filter(|(_, held)| held.labelled);
        images.map(|(id, _)| format!("sha256:{id}")).collect()
    }
}

impl Held {
    fn shows_label(&self, now: u64) -> bool {
        let before = self.shown.filter(|(_, until)| now < *until);
        before.map_or(self.labelled, |(shown, _)| shown)
    }
}
