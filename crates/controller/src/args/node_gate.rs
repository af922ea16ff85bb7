//! Flags of the node gate.

use kubefledged_api_types::{GoDuration, node_gate::TIMEOUTS};
use std::sync::Arc;

/// Keys of taints that Kubernetes and autoscalers set for reasons of their own.
const FOREIGN: [&str; 4] = [
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "node-role.kubernetes.io/",
    "karpenter.sh/",
];

/// Parses the time-out.
pub fn timeout(text: &str) -> Result<GoDuration, String> {
    super::between(text, *TIMEOUTS.start(), *TIMEOUTS.end())
}

/// Parses the key of a taint: a qualified name, as Kubernetes calls it.
pub fn taint_key(text: &str) -> Result<Arc<str>, String> {
    let (prefix, name) = text.split_once('/').unwrap_or(("", text));
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let parts = |text: &str, extra: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
        let ends = alphanumeric(text.chars().next()) && alphanumeric(text.chars().last());
        ends && text.chars().all(known)
    };
    let named = parts(name, "-_.") && name.len() <= 63;
    let prefixed = !text.contains('/')
        || (parts(prefix, "-.") && prefix.len() <= 253 && prefix == prefix.to_ascii_lowercase());
    if !named || !prefixed {
        return Err(
            "it must be the key of a taint, such as kubefledged.io/images-not-cached".to_owned(),
        );
    }
    if let Some(foreign) = FOREIGN.iter().find(|foreign| text.starts_with(**foreign)) {
        return Err(format!(
            "taints that begin with {foreign} have a meaning of their own: use another key"
        ));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_none_or_belongs_to_somebody_else_is_refused() {
        for key in [
            "kubefledged.io/images-not-cached",
            "startup-taint.cluster-autoscaler.kubernetes.io/images",
            "readiness.k8s.io/images",
            "warm_Up.1",
        ] {
            assert_eq!(taint_key(key).as_deref(), Ok(key));
        }
        for key in [
            "",
            "/a",
            "a/",
            "a/b/c",
            "-a",
            "a b",
            "A.io/b",
            "node.kubernetes.io/not-ready",
        ] {
            assert!(taint_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn a_time_out_has_bounds_that_the_message_names() {
        assert!(timeout("10m").is_ok());
        assert_eq!(timeout("0s").unwrap_err(), "it must be from 1s to 24h");
    }
}
