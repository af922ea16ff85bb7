//! `status`: one `ImageCache` on one screen. The object is enough; with the right to forward ports to the controller the
//! slowest nodes are shown too.

mod screen;

use kubefledged_proto::debug::{CacheNodeImage, GetCacheResponse, StreamCacheNodesRequest};

use crate::{
    access::{Access, Controller, controller::Matrix},
    exit::{Exit, Failure},
    output::{Out, quantities::now},
    states::Shown,
};

/// Nodes that are shown with their worst image.
const SLOWEST: usize = 5;

/// What only the controller knows.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    /// The `ImageCache` as the controller sees it.
    pub cache: GetCacheResponse,
    /// The slowest nodes: name, images that it lacks, images that it should hold, and the worst pair.
    pub slowest: Vec<(String, usize, usize, Option<CacheNodeImage>)>,
}

/// Shows the screen. The exit code says whether the `ImageCache` is ready.
pub async fn run(access: &Access, out: Out, name: &str) -> Result<Exit, Failure> {
    let cache = access.cache(name).await?;
    let inside = look_inside(access, &cache.namespace(), name).await;
    let screen = screen::screen(&cache, &inside, now());
    let full = format!("imagecache.kubefledged.io/{name}");
    out.one(&screen, &full, &screen.to_string())?;
    Ok(Exit::of(screen.is_good()))
}

/// Without the right to do so nothing is wrong: a tenant sees the object.
async fn look_inside(access: &Access, namespace: &str, name: &str) -> Result<Inside, Failure> {
    let mut controller = Controller::connect(access).await?;
    let cache = controller.cache(namespace, name).await?;
    let matrix = controller.matrix(namespace, name).await?;
    let mut slowest = Vec::new();
    for (node, lacking, desired) in worst(&matrix) {
        let request = StreamCacheNodesRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.clone(),
            ..StreamCacheNodesRequest::default()
        };
        let pairs = controller.pairs(request).await?;
        let worst = pairs.into_iter().min_by_key(|pair| Shown::of(pair.state()));
        slowest.push((node, lacking, desired, worst));
    }
    Ok(Inside { cache, slowest })
}

/// Nodes with the most images that they lack, how many these are, and of how many.
fn worst(matrix: &Matrix) -> Vec<(String, usize, usize)> {
    let count = |row: &(String, Vec<Shown>)| {
        let desired = row.1.iter().filter(|state| **state != Shown::Out);
        let lacking = desired
            .clone()
            .filter(|state| **state != Shown::Ready)
            .count();
        (row.0.clone(), lacking, desired.count())
    };
    let mut nodes: Vec<_> = matrix.rows.iter().map(count).collect();
    nodes.retain(|(_, lacking, _)| *lacking > 0);
    nodes.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    nodes.truncate(SLOWEST);
    nodes
}
