//! Image names as small numbers. Two spellings of one image are one number.

use std::{collections::BTreeMap, sync::Arc};

use kubefledged_image::ImageRef;

/// An image, whatever its spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub u32);

impl ImageId {
    /// Into a bit set or a vector.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of an image by its name alone.
#[derive(Debug)]
pub struct Image {
    /// Host of its registry; batches are homogeneous in it.
    pub registry: Arc<str>,
    /// No tag or `:latest`.
    pub floating: bool,
    /// Why the name does not parse.
    pub invalid: Option<String>,
}

/// All images ever named. It only grows: names are few, and a number must not change its meaning.
#[derive(Debug, Default)]
pub struct Images {
    ids: BTreeMap<Arc<str>, ImageId>,
    images: Vec<Image>,
}

impl Images {
    /// The number of a name.
    pub fn intern(&mut self, name: &str) -> ImageId {
        let (key, image) = match ImageRef::parse(name) {
            Ok(parsed) => (
                parsed.normalized(),
                Image {
                    registry: parsed.registry().into(),
                    floating: parsed.is_floating(),
                    invalid: None,
                },
            ),
            Err(error) => (
                name.to_owned(),
                Image {
                    registry: "".into(),
                    floating: false,
                    invalid: Some(error.to_string()),
                },
            ),
        };
        if let Some(id) = self.ids.get(key.as_str()) {
            return *id;
        }
        let id = ImageId(u32::try_from(self.images.len()).unwrap_or(u32::MAX));
        self.ids.insert(key.into(), id);
        self.images.push(image);
        id
    }

    /// What is known of an image.
    pub fn get(&self, id: ImageId) -> &Image {
        &self.images[id.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_image_are_one_and_a_bad_name_is_remembered_as_such() {
        let mut images = Images::default();
        let a = images.intern("nginx");
        assert_eq!(a, images.intern("docker.io/library/nginx:latest"));
        assert_ne!(a, images.intern("nginx:1.27"));
        assert!(images.get(a).floating);
        let bad = images.intern("UPPER/case:x");
        assert!(images.get(bad).invalid.is_some());
    }
}
