//! What a kubelet asks of pods whose image it did not pull itself (KEP-2535), read from its own configuration with the rights of the user:
//! `get` on `nodes/proxy`. The controller does not have this right, because it also allows to run commands in every container of the node.

use futures::StreamExt as _;
use kube::Client;
use tokio::time::timeout;

use super::PATIENCE;
use crate::exit::Failure;

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 8;

/// Must a pod under this policy have a pull secret, and the registry answer, although the image is cached?
pub fn verifies(policy: &str) -> bool {
    ["AlwaysVerify", "NeverVerifyAllowlistedImages"].contains(&policy)
}

/// `imagePullCredentialsVerificationPolicy` of a node's kubelet. None: the kubelet knows none.
pub async fn policy(client: &Client, node: &str) -> Result<Option<String>, Failure> {
    let path = format!("/api/v1/nodes/{node}/proxy/configz");
    let request = http::Request::get(path).body(Vec::new());
    let request = request.map_err(|error| Failure::Usage(format!("node {node}: {error}")))?;
    let config = timeout(PATIENCE, client.request::<serde_json::Value>(request)).await;
    let silent = |_| {
        Failure::Failed(format!(
            "the kubelet of {node} does not answer within {PATIENCE:?}"
        ))
    };
    let config = config
        .map_err(silent)?
        .map_err(|error| Failure::of_kube("not checked", &error))?;
    let policy = &config["kubeletconfig"]["imagePullCredentialsVerificationPolicy"];
    Ok(policy.as_str().map(ToOwned::to_owned))
}

/// The policies of several nodes, in their order; an error only if none could be read.
pub async fn policies(
    client: &Client,
    nodes: &[String],
) -> Result<Vec<(String, Option<String>)>, Failure> {
    let asked = nodes
        .iter()
        .map(async |node| Ok((node.clone(), policy(client, node).await?)));
    let answers: Vec<Result<_, Failure>> = futures::stream::iter(asked)
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut found = Vec::new();
    let mut failure = None;
    for answer in answers {
        match answer {
            Ok(policy) => found.push(policy),
            Err(why) => failure = Some(why),
        }
    }
    match failure {
        Some(why) if found.is_empty() => Err(why),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kube::client::Body;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_kubelet_that_does_not_answer_is_not_waited_for() {
        let silent = tower::service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, Infallible>>()
        });
        let said = policy(&Client::new(silent, "shop"), "n2").await;
        let said = said.unwrap_err().to_string();
        assert!(said.contains("kubelet of n2 does not answer"), "{said}");
    }
}
