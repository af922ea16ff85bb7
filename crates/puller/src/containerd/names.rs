//! Removal of one name where one id stands for several images. CRI's `RemoveImage` removes all names of an id.

use kubefledged_image::ImageRef;
use kubefledged_proto::containerd::images::{
    DeleteImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use tonic::{Code, Status};

use super::{Containerd, within};

impl Containerd {
    /// Removes a name, and the name with its digest if that has no other tag of its repository and is not wanted.
    pub async fn untag(&self, name: &str, wanted: &[String]) -> Result<(), Status> {
        let Some(image) = self.image(name.to_owned()).await? else {
            return Ok(());
        };
        let target = image.target.clone().unwrap_or_default();
        self.delete(image).await?;
        let Some(repository) = repository(name).filter(|_| !name.contains('@')) else {
            return Ok(());
        };
        let by_digest = format!("{repository}@{}", target.digest);
        let filters = vec![format!("target.digest==\"{}\"", target.digest)];
        let request = within(ListImagesRequest { filters });
        let left = self.images.clone().list(request).await?.into_inner().images;
        let tag = |image: &Image| {
            image.name != by_digest && self::repository(&image.name).as_ref() == Some(&repository)
        };
        if wanted.contains(&by_digest) || left.iter().any(tag) {
            return Ok(());
        }
        match left.into_iter().find(|image| image.name == by_digest) {
            Some(image) => self.delete(image).await,
            None => Ok(()),
        }
    }

    /// Points an id to the image of one of its names, so that the content of a removed one is not held by it.
    pub async fn point(&self, id: String, name: String) -> Result<(), Status> {
        let (Some(known), Some(image)) = (self.image(id).await?, self.image(name).await?) else {
            return Ok(());
        };
        if known.target == image.target {
            return Ok(());
        }
        let request = within(UpdateImageRequest {
            image: Some(Image {
                target: image.target,
                ..known
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["target".to_owned()],
            }),
        });
        self.images.clone().update(request).await.map(drop)
    }

    async fn delete(&self, Image { name, target, .. }: Image) -> Result<(), Status> {
        let request = within(DeleteImageRequest { name, target });
        match self.images.clone().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status),
        }
    }
}

/// A name without tag and digest. `None`: it is an id.
fn repository(name: &str) -> Option<String> {
    let image = ImageRef::parse(name).ok().filter(|_| name.contains('/'))?;
    Some(format!("{}/{}", image.registry(), image.repository()))
}
