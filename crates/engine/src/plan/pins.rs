//! Pins: protection of images from the kubelet's garbage collection, for caches with `spec.retention: Pinned`.

use std::{collections::BTreeSet, sync::Arc};

use super::context::{NodeContext, NodeView};
use crate::ids::ImageId;

/// An image id without the name of its hash. Runtimes report ids with and without it.
pub fn bare_id(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

impl NodeView<'_> {
    /// Must an image be pinned here, and can it be pinned now?
    pub fn pin_due(&self, image: ImageId, context: &NodeContext) -> bool {
        let runtime = &self.node.runtime;
        context.pin_desired.contains(image)
            && !self.node.observed.is_pinned(image)
            && runtime.can_pin != Some(false)
            && !runtime.disk_full
            && runtime.may_pin(self.now)
    }

    /// Pins of ours that no cache needs. Ids do not tell names, so the answer is "none" until every image that
    /// must be pinned was observed and none of them is in flight.
    pub fn unneeded_pins(&self, context: &NodeContext) -> Vec<Arc<str>> {
        let runtime = &self.node.runtime;
        if runtime.pins.is_empty() {
            return Vec::new();
        }
        let observed = &self.node.observed;
        let mut needed: BTreeSet<&str> = BTreeSet::new();
        for image in context.pin_desired.iter() {
            if self.model.names.images.get(image).invalid.is_some() {
                continue;
            }
            if context.pulling.contains(image) {
                return Vec::new();
            }
            match runtime.ids.get(&image) {
                Some(id) => {
                    needed.insert(id);
                }
                None if observed.get(image).checked.is_none() || observed.holds(image) => {
                    return Vec::new();
                }
                None => {}
            }
        }
        let pins = runtime.pins.iter();
        pins.filter(|id| !needed.contains(bare_id(id)))
            .cloned()
            .collect()
    }
}
