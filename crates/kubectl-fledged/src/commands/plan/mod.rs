//! `plan`: what an `ImageCache` would pull, on which nodes, how much, and whether it fits. It writes nothing.

mod fit;
mod registry;

use std::collections::BTreeSet;

use kubefledged_proto::debug::SpecNode;

use crate::{
    access::{Access, Controller},
    args::Plan,
    exit::{Exit, Failure},
    manifests,
    output::{Out, note},
};

/// Images of one platform.
type Wanted = BTreeSet<(String, String)>;

/// Plans. Sizes come from the registries, with the pull secrets of the spec or the user's docker config; where a registry
/// cannot be asked, from a node that holds the image.
pub async fn run(access: &Access, out: Out, args: &Plan) -> Result<Exit, Failure> {
    let wanted = manifests::parse(&manifests::read(&args.filename)?)?;
    let spec = serde_json::to_string(&wanted.spec);
    let spec = spec.map_err(|error| Failure::Failed(error.to_string()))?;
    let mut controller = Controller::connect(access).await?;
    let nodes = controller.spec(&spec).await?;
    let namespace = wanted.namespace.as_deref().unwrap_or(&access.namespace);
    let secrets = registry::secrets(access, namespace, &wanted.spec).await;
    let registry = registry::Registries::new(&args.plain_http, secrets);
    let sizes = registry.sizes(&images(&nodes)).await;
    let plan = fit::plan(&nodes, &sizes);
    for unknown in &plan.unknown {
        note(unknown);
    }
    out.one(&plan, "plan", &plan.to_string())?;
    Ok(plan.exit())
}

/// All images of the nodes with their platforms: also those that are held, because their layers need no pull.
fn images(nodes: &[SpecNode]) -> Wanted {
    let of_node = |node: &SpecNode| {
        let held = node.held.iter().map(|held| held.image.clone());
        let all = node.missing.iter().cloned().chain(held);
        let platform = node.architecture.clone();
        all.map(|image| (image, platform.clone()))
            .collect::<Vec<_>>()
    };
    // A node that lacks nothing needs no sizes.
    let lacking = nodes.iter().filter(|node| !node.missing.is_empty());
    lacking.flat_map(of_node).collect()
}
