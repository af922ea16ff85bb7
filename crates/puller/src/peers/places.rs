//! Places for uploads: a few for the whole node, and fewer for one layer, so that no uplink is shared by many.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::locked;

/// Uploads of one layer at a time.
const OF_ONE_LAYER: usize = 2;

/// The places of a node, shared by its clones.
#[derive(Clone, Debug)]
pub struct Places {
    most: usize,
    taken: Arc<Mutex<HashMap<String, usize>>>,
}

/// A place. It is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    layer: String,
}

impl Places {
    /// So many for the node; 0: it hands on nothing.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        locked(&self.taken)
    }

    /// Takes a place for a layer, if there is one.
    pub fn take(&self, layer: &str) -> Option<Place> {
        let mut taken = self.taken();
        let all: usize = taken.values().sum();
        let known = taken.get(layer).copied().unwrap_or_default();
        if all >= self.most || known >= OF_ONE_LAYER {
            return None;
        }
        taken.insert(layer.to_owned(), known + 1);
        Some(Place {
            places: self.clone(),
            layer: layer.to_owned(),
        })
    }

    /// Number of places that are taken.
    pub fn count(&self) -> usize {
        self.taken().values().sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(known) = taken.get_mut(&self.layer) {
            *known -= 1;
            if *known == 0 {
                taken.remove(&self.layer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_two_places_and_the_node_as_many_as_its_flag_says() {
        let places = Places::new(3);
        let (one, two) = (places.take("a").unwrap(), places.take("a").unwrap());
        assert!(places.take("a").is_none());
        let three = places.take("b").unwrap();
        assert!(places.take("c").is_none());
        assert_eq!(places.count(), 3);
        drop(one);
        assert!(places.take("a").is_some());
        drop((two, three));
        assert_eq!(places.count(), 0);
        assert!(Places::new(0).take("a").is_none());
    }
}
