//! Which images the containers of a node use: the one that a container runs from, and those that it mounts as
//! volumes. Only `ContainerStatus` shows the latter.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, stream};
use kubefledged_proto::cri::{
    Container as CriContainer, ContainerStatusRequest, ImageSpec, ListContainersRequest,
    StreamContainersRequest,
};
use kubefledged_queue::Container;
use tonic::{Code, Status};

use crate::cri::{Cri, collect, whole};

/// Calls of `ContainerStatus` at the same time.
const PARALLEL: usize = 8;

/// Images that containers mount, by the container's id. A container's mounts never change, so each container is
/// asked about once, however many images are removed. Clones share the knowledge.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Arc<Mutex<HashMap<String, Vec<String>>>>);

impl Mounts {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cri {
    /// Lists all containers in any state, with everything that the runtime says of their images: ids, references
    /// and names, also of the images that they mount.
    pub async fn containers(&self) -> Result<Vec<Container>, Status> {
        let containers = self.list_containers().await?;
        let mounted = self.mounted(&containers).await?;
        let used = containers.into_iter().map(|container| {
            let mounts = mounted.get(&container.id);
            let mut image = said(container.image.unwrap_or_default());
            image.extend([container.image_ref, container.image_id]);
            image.extend(mounts.into_iter().flatten().cloned());
            Container { image }
        });
        Ok(used.collect())
    }

    /// The mounted images of these containers, and of no other.
    async fn mounted(
        &self,
        containers: &[CriContainer],
    ) -> Result<HashMap<String, Vec<String>>, Status> {
        let ids: HashSet<&String> = containers.iter().map(|container| &container.id).collect();
        let new: Vec<String> = {
            let mut known = self.mounts.known();
            known.retain(|id, _| ids.contains(id));
            let new = ids.into_iter().filter(|id| !known.contains_key(*id));
            new.cloned().collect()
        };
        let answers: Vec<(String, Result<Vec<String>, Status>)> = stream::iter(new)
            .map(|id| async move {
                let mounts = self.mounts_of(id.clone()).await;
                (id, mounts)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut failed = Vec::new();
        {
            let mut known = self.mounts.known();
            for (id, answer) in answers {
                match answer {
                    Ok(mounts) => drop(known.insert(id, mounts)),
                    Err(status) if status.code() == Code::NotFound => {}
                    Err(status) => failed.push((id, status)),
                }
            }
        }
        self.still_there(failed).await?;
        Ok(self.mounts.known().clone())
    }

    /// Not every runtime says `NotFound` of a container that has gone meanwhile.
    async fn still_there(&self, failed: Vec<(String, Status)>) -> Result<(), Status> {
        if failed.is_empty() {
            return Ok(());
        }
        let left = self.list_containers().await?;
        let there = |id: &String| left.iter().any(|container| container.id == *id);
        match failed.into_iter().find(|(id, _)| there(id)) {
            Some((_, status)) => Err(status),
            None => Ok(()),
        }
    }

    async fn mounts_of(&self, container_id: String) -> Result<Vec<String>, Status> {
        let request = ContainerStatusRequest { container_id };
        let answer = self.runtime.clone().container_status(request).await?;
        let mounts = answer.into_inner().status.unwrap_or_default().mounts;
        let images = mounts.into_iter().filter_map(|mount| mount.image);
        Ok(images.flat_map(said).collect())
    }

    async fn list_containers(&self) -> Result<Vec<CriContainer>, Status> {
        if self.streams() {
            let request = StreamContainersRequest {};
            match collect(self.runtime.clone().stream_containers(request), |page| {
                page.containers
            })
            .await
            {
                Err(status) if status.code() == Code::Unimplemented => self.no_streams(),
                answer => return answer,
            }
        }
        let request = ListContainersRequest {};
        let answer = self.runtime.clone().list_containers(request).await;
        Ok(whole(answer, "containers")?.into_inner().containers)
    }
}

/// What a runtime says of an image: containerd the id and the user's name, CRI-O the bare id.
fn said(spec: ImageSpec) -> Vec<String> {
    let texts = [spec.image, spec.user_specified_image, spec.image_ref];
    texts.into_iter().filter(|text| !text.is_empty()).collect()
}
