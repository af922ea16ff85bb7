//! Where kubefledged is installed, and which of its controllers leads.

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};

use crate::exit::Failure;

/// The namespace of the documentation.
const USUAL: &str = "kube-fledged";
/// The Lease of a release that is called as in the documentation.
const LEASE: &str = "kubefledged-controller";
/// Our pods, of any release.
const OURS: &str = "app.kubernetes.io/part-of=kubefledged";

/// An installation of kubefledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Its namespace.
    pub namespace: String,
    /// The pod of the leading controller; `None`: none leads.
    pub leader: Option<String>,
}

impl Installation {
    /// Finds it: in the namespace of `given`, or in the usual one, or in any.
    pub async fn find(client: &Client, given: Option<&str>) -> Result<Self, Failure> {
        if let Some(namespace) = given {
            return Self::at(client, namespace).await;
        }
        let leases: Api<Lease> = Api::namespaced(client.clone(), USUAL);
        match leases.get_opt(LEASE).await {
            Ok(Some(lease)) => Ok(Self::of(USUAL, &lease)),
            Ok(None) => Self::search(client).await,
            Err(error) => Err(Failure::of_kube(
                "cannot find the leading controller (--installation names its namespace)",
                &error,
            )),
        }
    }

    /// In a namespace that is not the usual one the Lease may have another name too.
    async fn at(client: &Client, namespace: &str) -> Result<Self, Failure> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let list = leases.list(&ListParams::default()).await;
        let list = list.map_err(|error| Failure::of_kube("cannot list Leases", &error))?;
        let mut ours = list.items.iter();
        let ours = ours.find(|lease| lease.name_any().ends_with("-controller"));
        ours.map(|lease| Self::of(namespace, lease))
            .ok_or_else(|| Failure::Failed(format!("kubefledged is not installed in {namespace}")))
    }

    async fn search(client: &Client) -> Result<Self, Failure> {
        let pods: Api<Pod> = Api::all(client.clone());
        let controllers = format!("{OURS},app.kubernetes.io/component=controller");
        let controllers = ListParams::default().labels(&controllers);
        let list = pods.list_metadata(&controllers).await;
        let list = list.map_err(|error| {
            Failure::of_kube(
                "cannot search the installation (--installation names its namespace)",
                &error,
            )
        })?;
        let mut namespaces: Vec<_> = list.iter().filter_map(ResourceExt::namespace).collect();
        namespaces.sort();
        namespaces.dedup();
        match &namespaces[..] {
            [] => Err(Failure::Failed("kubefledged is not installed".to_owned())),
            [one] => Self::at(client, one).await,
            many => Err(Failure::Usage(format!(
                "kubefledged is installed in {}: choose one with --installation",
                many.join(" and ")
            ))),
        }
    }

    fn of(namespace: &str, lease: &Lease) -> Self {
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        Self {
            namespace: namespace.to_owned(),
            leader: holder.and_then(pod),
        }
    }
}

/// The pod of an identity, which has a part behind it that every process has its own of.
fn pod(identity: &str) -> Option<String> {
    let (pod, _) = identity.rsplit_once('_')?;
    (!pod.is_empty()).then(|| pod.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_the_lease_names_the_pod() {
        assert_eq!(
            pod("kubefledged-controller-1_00ff"),
            Some("kubefledged-controller-1".into())
        );
        assert_eq!(pod(""), None);
    }
}
