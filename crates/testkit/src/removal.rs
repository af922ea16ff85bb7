//! How container runtimes remove images: one model for the fakes, of what was seen on containerd 1.6, 2.2 and
//! 2.4, on CRI-O 1.34 and, from its documents, on cri-dockerd.

/// How a runtime removes images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// containerd: removing any name or the id removes the image with all its names, even if it is in use.
    Whole,
    /// CRI-O: removing a tag removes only this tag, removing the id removes the image; `name@digest` does
    /// nothing.
    Name,
    /// cri-dockerd: removing the id removes the image with all its names. A name is not found, which is not an
    /// error. A pull continues when its caller goes away.
    Id,
}

/// What is removed, as the runtime finds it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The request has the id of the image, and not a name.
    pub by_id: bool,
    /// The image has no other tag.
    pub last_name: bool,
    /// A container uses the image.
    pub used: bool,
}

/// What a removal does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The image goes, with all its names.
    Image,
    /// The name goes. The image stays, also without a name.
    Name,
    /// Nothing, and that is no error.
    Nothing,
    /// An error with this text.
    Refused(String),
}

impl Removal {
    /// The error for a target that cannot be looked up; `None`: it can.
    pub fn refusal(self, target: &str) -> Option<String> {
        (self == Self::Name && target.starts_with("sha256:")).then(|| {
            format!(
                "short-name {target:?} did not resolve to an alias and no unqualified-search registries are defined"
            )
        })
    }

    /// The error for an image that a container mounts as a volume; `None`: the runtime removes it all the same.
    pub fn refusal_of_mounted(self) -> Option<String> {
        (self == Self::Name).then(|| "the image is in use by 0123".to_owned())
    }

    /// What the removal of an image does that is there.
    pub fn effect(self, target: Target) -> Effect {
        let Target {
            by_id,
            last_name,
            used,
        } = target;
        match self {
            Self::Name if used && (last_name || by_id) => {
                Effect::Refused("image used by 0123: image is in use by a container".to_owned())
            }
            Self::Name if !by_id => Effect::Name,
            Self::Id if !by_id => Effect::Nothing,
            Self::Id if used => Effect::Refused(
                "Error response from daemon: conflict: unable to delete 0123 (cannot be forced) - \
                 image is being used by running container 4567"
                    .to_owned(),
            ),
            Self::Whole | Self::Name | Self::Id => Effect::Image,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(removal: Removal, by_id: bool, last_name: bool, used: bool) -> Effect {
        removal.effect(Target {
            by_id,
            last_name,
            used,
        })
    }

    #[test]
    fn of_a_mounted_image_crio_refuses_every_name_and_containerd_nothing() {
        assert!(Removal::Name.refusal_of_mounted().is_some());
        assert!(Removal::Whole.refusal_of_mounted().is_none());
    }

    #[test]
    fn containerd_removes_whole_images_also_under_a_container() {
        assert_eq!(effect(Removal::Whole, false, false, true), Effect::Image);
        assert_eq!(effect(Removal::Whole, true, true, true), Effect::Image);
    }

    #[test]
    fn crio_removes_names_and_refuses_the_last_one_of_an_image_in_use() {
        assert_eq!(effect(Removal::Name, false, true, false), Effect::Name);
        assert_eq!(effect(Removal::Name, false, false, true), Effect::Name);
        assert_eq!(effect(Removal::Name, true, false, false), Effect::Image);
        let refused = effect(Removal::Name, false, true, true);
        assert!(matches!(refused, Effect::Refused(_)));
        assert!(Removal::Name.refusal("sha256:00").is_some());
        assert_eq!(Removal::Whole.refusal("sha256:00"), None);
    }

    #[test]
    fn docker_removes_ids_alone() {
        assert_eq!(effect(Removal::Id, false, true, false), Effect::Nothing);
        assert_eq!(effect(Removal::Id, true, true, false), Effect::Image);
        let refused = effect(Removal::Id, true, true, true);
        assert!(matches!(refused, Effect::Refused(_)));
    }
}
