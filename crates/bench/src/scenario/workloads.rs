//! Images from workloads: 10,000 Deployments and 100,000 Pods that one `ImageCache` each follows.

use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kubefledged_api_types::{
    CacheSpecEntry, ImageCache, ImageCacheSpec, ImageSource, WorkloadSource,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{report::Row, world::World};

/// Flags that let the controller read workloads.
pub const FLAGS: [&str; 1] = ["--workloads"];
const DEPLOYMENTS: usize = 10_000;
const PODS: usize = 100_000;
/// Names of the applications' images; every twentieth of them is the number of side-cars.
const APPLICATIONS: usize = 2_000;
const SIDE_CARS: usize = 20;
/// Objects that are created at a time.
const PARALLEL: usize = 32;
/// Pods that come and go in a second, and for how many seconds.
const CHURN: (usize, u64) = (100, 30);
/// What the workloads may cost, in MiB.
const MOST_MEMORY: f64 = 150.0;
/// A change must be taken up within so long.
const MOST_DELAY: Duration = Duration::from_secs(1);
/// CPU while Pods come and go, of a core.
const MOST_CPU: f64 = 0.2;

impl World {
    pub(super) async fn workloads(&mut self) -> anyhow::Result<Vec<Row>> {
        self.create_workloads().await?;
        let names = APPLICATIONS + SIDE_CARS;
        let base = self.controller()?.usage()?.rss;
        let deployments = Box::pin(self.followed("deployments", "Deployment", DEPLOYMENTS));
        let what = "10,000 Deployments with 2 containers are read, and their images pulled";
        let mut rows = vec![self.measure(what, names, deployments).await?];
        self.quiet().await;
        let pods = Box::pin(self.followed("pods", "Pod", PODS));
        let what = "100,000 Pods with the same images are read";
        let mut row = self.measure(what, names, pods).await?;
        self.quiet().await;
        let more = self.controller()?.usage()?.rss - base;
        row.note = format!("{more:.0} MiB more than before both");
        rows.push(row);
        anyhow::ensure!(more <= MOST_MEMORY, "the workloads take {more:.0} MiB");

        let change = Box::pin(self.changed("deployments"));
        let row = self.measure("the image of one Deployment changes", names, change);
        rows.push(row.await?);
        self.quiet().await;
        let churn = Box::pin(self.churn());
        let what = "100 Pods a second come, and as many go";
        let mut row = self.measure(what, names, churn).await?;
        let share = row.controller_cpu / row.seconds;
        row.note = format!("{:.1} % of a core", share * 100.0);
        rows.push(row);
        anyhow::ensure!(share <= MOST_CPU, "{:.0} % of a core", share * 100.0);
        self.delete("deployments").await?;
        self.delete("pods").await?;
        Ok(rows)
    }

    /// They stay: the API server needs minutes to remove so many at once, and no other scenario reads them.
    async fn create_workloads(&self) -> anyhow::Result<()> {
        let client = self.cluster.client();
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        // No controller-manager runs here, which would make it.
        let applied = PatchParams::apply("kubefledged-bench");
        accounts
            .patch("default", &applied, &Patch::Apply(account))
            .await?;
        let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
        create(&deployments, (0..DEPLOYMENTS).map(deployment)).await?;
        let pods: Api<Pod> = Api::default_namespaced(client);
        create(&pods, (0..PODS).map(pod)).await
    }

    /// Creates a cache that follows a kind, and waits until all of it is read and every node holds the images.
    async fn followed(&self, name: &str, kind: &str, count: usize) -> anyhow::Result<String> {
        let workloads = WorkloadSource {
            kinds: vec![kind.to_owned()],
            ..WorkloadSource::default()
        };
        let list = CacheSpecEntry {
            images_from: vec![ImageSource {
                workloads: Some(workloads),
            }],
            ..CacheSpecEntry::default()
        };
        let spec = ImageCacheSpec {
            cache_spec: vec![list],
            ..ImageCacheSpec::default()
        };
        self.cluster.create(name, spec).await?;
        let read = move |cache: &ImageCache| {
            let status = cache.status.as_ref();
            let source = status.and_then(|status| status.sources.first());
            source.is_some_and(|source| usize::try_from(source.workloads) == Ok(count))
        };
        self.cluster.wait(name, self.limit, read).await?;
        self.wait_ready(name, self.nodes).await?;
        Ok(String::new())
    }

    /// Time from the write of a Deployment until its new image is recorded in the status.
    async fn changed(&self, name: &str) -> anyhow::Result<String> {
        let deployments: Api<Deployment> = Api::default_namespaced(self.cluster.client());
        let image = "registry.example/workloads/new:1.0";
        let containers = json!([{"name": "app", "image": image}]);
        let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        let written = Instant::now();
        let params = PatchParams::default();
        deployments
            .patch("app-0", &params, &Patch::Strategic(patch))
            .await?;
        let recorded = |cache: &ImageCache| {
            let status = cache.status.as_ref();
            let mut names = status.into_iter().flat_map(|status| &status.applied_images);
            names.any(|applied| applied.name == image)
        };
        self.cluster.wait(name, self.limit, recorded).await?;
        let took = written.elapsed();
        anyhow::ensure!(
            took <= MOST_DELAY,
            "the new image is recorded after {took:?}"
        );
        self.wait_ready(name, self.nodes).await?;
        Ok(format!("recorded after {took:.2?}"))
    }

    async fn churn(&self) -> anyhow::Result<String> {
        let pods: Api<Pod> = Api::default_namespaced(self.cluster.client());
        let (each, seconds) = CHURN;
        let start = Instant::now();
        for second in 0..seconds {
            let first = usize::try_from(second)? * each;
            let new = PODS + first..PODS + first + each;
            let gone = async {
                let now = DeleteParams::default().grace_period(0);
                stream::iter(first..first + each)
                    .map(|at| {
                        let (pods, now, name) = (pods.clone(), now.clone(), pod_name(at));
                        async move { pods.delete(&name, &now).await }
                    })
                    .buffer_unordered(PARALLEL)
                    .try_for_each(|_| async { Ok(()) })
                    .await
                    .context("cannot delete a Pod")
            };
            tokio::try_join!(create(&pods, new.map(pod)), gone)?;
            tokio::time::sleep_until(start + Duration::from_secs(second + 1)).await;
        }
        Ok(String::new())
    }
}

async fn create<K>(api: &Api<K>, objects: impl Iterator<Item = Value>) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    stream::iter(objects)
        .map(|object| {
            let api = api.clone();
            async move {
                let object: K = serde_json::from_value(object)?;
                match api.create(&PostParams::default(), &object).await {
                    Ok(_) => Ok(()),
                    Err(kube::Error::Api(error)) if error.is_already_exists() => Ok(()),
                    Err(error) => {
                        Err(anyhow::Error::from(error).context("cannot create a workload"))
                    }
                }
            }
        })
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

/// Pod spec of an application: with as much beside the images as people write.
fn spec(application: usize) -> Value {
    let environment: Vec<Value> = (0..10)
        .map(|at| json!({"name": format!("SETTING_{at}"), "value": "some value of a usual length"}))
        .collect();
    let resources = json!({"requests": {"cpu": "100m", "memory": "128Mi"}});
    let image =
        |name: &str, number: usize| format!("registry.example/workloads/{name}{number}:1.0");
    json!({
        "automountServiceAccountToken": false,
        "containers": [
            {
                "name": "app", "image": image("app", application % APPLICATIONS), "env": environment,
                "resources": resources,
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}},
            },
            {
                "name": "side-car", "image": image("side-car", application % SIDE_CARS), "env": environment,
                "resources": resources,
            },
        ],
    })
}

fn deployment(at: usize) -> Value {
    let labels = json!({"app": format!("app-{at}")});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": format!("app-{at}"), "labels": labels},
        "spec": {
            "replicas": 10, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec(at)},
        },
    })
}

fn pod_name(at: usize) -> String {
    format!("app-{}-5d4f8c7b9-{at}", at % DEPLOYMENTS)
}

/// A Pod of a Deployment, as its `ReplicaSet` makes it.
fn pod(at: usize) -> Value {
    let application = at % DEPLOYMENTS;
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod_name(at), "labels": {
            "app": format!("app-{application}"), "pod-template-hash": "5d4f8c7b9",
        }},
        "spec": spec(application),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_what_the_api_has() {
        serde_json::from_value::<Deployment>(deployment(7)).unwrap();
        let pod: Pod = serde_json::from_value(pod(7)).unwrap();
        assert_eq!(pod.spec.unwrap().containers.len(), 2);
    }
}
