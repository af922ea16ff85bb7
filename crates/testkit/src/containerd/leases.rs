//! Leases of the fake containerd.

use kubefledged_proto::containerd::leases::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, Lease, ListRequest,
    ListResponse, leases_server::Leases,
};
use tonic::{Request, Response, Status};

use super::{check, store};
use crate::runtime::Shared;

#[tonic::async_trait]
impl Leases for Shared {
    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<CreateResponse>, Status> {
        check(&request)?;
        let CreateRequest { id, labels } = request.into_inner();
        let mut state = self.state();
        if state.store.leases.contains_key(&id) {
            return Err(Status::already_exists(format!("lease {id:?}")));
        }
        let lease = store::Lease {
            labels: labels.clone().into_iter().collect(),
            ..store::Lease::default()
        };
        state.store.leases.insert(id.clone(), lease);
        let lease = Some(Lease { id, labels });
        Ok(Response::new(CreateResponse { lease }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        check(&request)?;
        let id = request.into_inner().id;
        let mut state = self.state();
        if state.store.leases.remove(&id).is_none() {
            return Err(Status::not_found(format!("lease {id:?}")));
        }
        state.store.collect_garbage();
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        check(&request)?;
        let state = self.state();
        let leases = state.store.leases.iter().map(|(id, lease)| Lease {
            id: id.clone(),
            labels: lease.labels.clone().into_iter().collect(),
        });
        Ok(Response::new(ListResponse {
            leases: leases.collect(),
        }))
    }

    async fn add_resource(
        &self,
        request: Request<AddResourceRequest>,
    ) -> Result<Response<()>, Status> {
        check(&request)?;
        let AddResourceRequest { id, resource } = request.into_inner();
        let resource = resource.unwrap_or_default();
        if resource.r#type != "content" {
            return Err(Status::unimplemented(resource.r#type));
        }
        let mut state = self.state();
        let lease = state.store.leases.get_mut(&id);
        let lease = lease.ok_or_else(|| Status::not_found(format!("lease {id:?}")))?;
        lease.content.insert(resource.id);
        Ok(Response::new(()))
    }
}
