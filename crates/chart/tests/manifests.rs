//! What the chart renders, over `kubefledged_chart::matrix`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use clap::Parser as _;
use kubefledged_chart::{NAMESPACE, matrix, render, strict};
use serde_json::{Value, json};

const CLUSTER_SCOPED: [&str; 7] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "FlowSchema",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

fn each(mut look: impl FnMut(&str, &[Value])) {
    for (name, values) in matrix() {
        look(name, &render(&values).unwrap());
    }
}

fn name(manifest: &Value) -> &str {
    manifest["metadata"]["name"].as_str().unwrap()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Pods: of workloads, of Jobs, and bare ones.
fn pods(manifests: &[Value]) -> impl Iterator<Item = (&str, &Value, &Value)> {
    manifests.iter().filter_map(|one| {
        let template = if one["kind"] == "Pod" {
            one
        } else {
            &one["spec"]["template"]
        };
        (!template["spec"]["containers"].is_null()).then(|| {
            (
                name(one),
                &template["metadata"]["labels"],
                &template["spec"],
            )
        })
    })
}

fn exists(manifests: &[Value], kind: &str, wanted: &str) -> bool {
    manifests
        .iter()
        .any(|one| one["kind"] == kind && name(one) == wanted)
}

#[test]
fn kube_fledgeds_labels_stand_on_what_its_users_select_and_in_no_selector() {
    each(|case, manifests| {
        for manifest in manifests {
            let labels = &manifest["metadata"]["labels"];
            let component = labels["app.kubernetes.io/component"].as_str();
            let Some(component @ ("controller" | "webhook-server")) = component else {
                continue;
            };
            let familiar = format!("kubefledged-{component}");
            let template = &manifest["spec"]["template"]["metadata"]["labels"];
            for labels in [labels, template]
                .into_iter()
                .filter(|labels| labels.is_object())
            {
                assert_eq!(labels["app"], "kubefledged", "{case}: {}", name(manifest));
                assert_eq!(
                    labels["kubefledged"],
                    familiar,
                    "{case}: {}",
                    name(manifest)
                );
            }
            let spec = &manifest["spec"];
            for selector in [&spec["selector"]["matchLabels"], &spec["selector"]] {
                assert_eq!(selector["app"], Value::Null, "{case}: {}", name(manifest));
            }
        }
    });
}

#[test]
fn the_api_understands_every_field() {
    each(|case, manifests| {
        assert!(manifests.len() > 3, "{case}");
        for manifest in manifests {
            let read = strict::check(manifest);
            let kind = &manifest["kind"];
            assert!(
                read.is_ok(),
                "{case}: {kind} {}: {}",
                name(manifest),
                read.unwrap_err()
            );
        }
    });
}

#[test]
fn an_object_is_in_the_release_s_namespace_and_carries_the_usual_labels() {
    each(|case, manifests| {
        for manifest in manifests {
            let kind = manifest["kind"].as_str().unwrap();
            if name(manifest).ends_with("-extra") {
                continue;
            }
            let labels = &manifest["metadata"]["labels"];
            for label in [
                "name",
                "instance",
                "component",
                "part-of",
                "version",
                "managed-by",
            ] {
                let label = format!("app.kubernetes.io/{label}");
                assert!(
                    labels[&label].is_string(),
                    "{case}: {kind} {} has no {label}",
                    name(manifest)
                );
            }
            if case == "everything" {
                assert_eq!(labels["team"], "platform", "{kind} {}", name(manifest));
            }
            let namespace = &manifest["metadata"]["namespace"];
            if CLUSTER_SCOPED.contains(&kind) {
                assert!(namespace.is_null(), "{case}: {kind}");
            } else if !name(manifest).ends_with("-pull-secrets") {
                let wanted = if case == "other names" {
                    "elsewhere"
                } else {
                    NAMESPACE
                };
                assert_eq!(namespace, wanted, "{case}: {kind} {}", name(manifest));
            }
        }
    });
}

#[test]
fn the_binaries_know_every_flag_that_the_chart_gives_them() {
    each(|case, manifests| {
        for (workload, _, spec) in pods(manifests) {
            for container in items(spec, "containers") {
                let args = items(container, "args").map(|arg| arg.as_str().unwrap());
                let args = std::iter::once("program").chain(args);
                let wrong = match container["name"].as_str().unwrap() {
                    "controller" => kubefledged_controller::args::Cli::try_parse_from(args).err(),
                    "webhook-server" => kubefledged_webhook::args::Args::try_parse_from(args).err(),
                    _ => {
                        let args = args.chain(["--node-name=n1"]);
                        kubefledged_puller::args::Args::try_parse_from(args).err()
                    }
                };
                assert!(wrong.is_none(), "{case}: {workload}: {}", wrong.unwrap());
            }
        }
    });
}

#[test]
fn what_a_manifest_refers_to_is_there() {
    each(|case, manifests| {
        for (workload, labels, spec) in pods(manifests) {
            let account = spec["serviceAccountName"].as_str().unwrap();
            assert!(
                account == "given" || exists(manifests, "ServiceAccount", account),
                "{case}: {workload}: no ServiceAccount {account}"
            );
            let volumes: Vec<_> = items(spec, "volumes")
                .map(|volume| &volume["name"])
                .collect();
            for container in items(spec, "containers") {
                for mount in items(container, "volumeMounts") {
                    assert!(
                        volumes.contains(&&mount["name"]),
                        "{case}: {workload}: {mount}"
                    );
                }
                let ports: Vec<_> = items(container, "ports")
                    .map(|port| &port["name"])
                    .collect();
                for probe in ["livenessProbe", "readinessProbe"] {
                    let port = &container[probe]["httpGet"]["port"];
                    assert!(
                        port.is_null() || ports.contains(&port),
                        "{case}: {workload}: {port}"
                    );
                }
            }
            assert!(
                labels["app.kubernetes.io/component"].is_string(),
                "{case}: {workload}"
            );
        }
        for one in manifests {
            let role = &one["roleRef"];
            if let (Some(kind), Some(wanted)) = (role["kind"].as_str(), role["name"].as_str()) {
                assert!(
                    exists(manifests, kind, wanted),
                    "{case}: no {kind} {wanted}"
                );
                for subject in items(one, "subjects") {
                    let account = subject["name"].as_str().unwrap();
                    assert!(
                        account == "given" || exists(manifests, "ServiceAccount", account),
                        "{case}: no {account}"
                    );
                }
            }
        }
    });
}

#[test]
fn a_selector_finds_pods_and_a_service_s_ports_are_theirs() {
    each(|case, manifests| {
        for one in manifests {
            let spec = &one["spec"];
            let selector = match one["kind"].as_str().unwrap() {
                "Service" => &spec["selector"],
                "Deployment" | "DaemonSet" | "PodDisruptionBudget" => {
                    &spec["selector"]["matchLabels"]
                }
                "NetworkPolicy" => &spec["podSelector"]["matchLabels"],
                _ => continue,
            };
            let selector = selector.as_object().unwrap();
            let found: Vec<_> = pods(manifests)
                .filter(|(_, labels, _)| selector.iter().all(|(key, value)| labels[key] == *value))
                .collect();
            assert!(
                !found.is_empty(),
                "{case}: {} {} finds no pod",
                one["kind"],
                name(one)
            );
            for port in items(spec, "ports").map(|port| &port["targetPort"]) {
                // What runs once serves nothing.
                let serving = found
                    .iter()
                    .filter(|(_, _, spec)| spec["restartPolicy"].is_null());
                for (pod, _, spec) in serving {
                    let mut ports = items(spec, "containers").flat_map(|one| items(one, "ports"));
                    assert!(
                        ports.any(|one| one["name"] == *port),
                        "{case}: {pod} has no port {port}"
                    );
                }
            }
        }
    });
}

#[test]
fn no_container_may_do_more_than_it_must() {
    each(|case, manifests| {
        for (workload, _, spec) in pods(manifests) {
            let profile = &spec["securityContext"]["seccompProfile"]["type"];
            assert_eq!(profile, "RuntimeDefault", "{case}: {workload}");
            for container in items(spec, "containers") {
                let context = &container["securityContext"];
                assert_eq!(
                    context["capabilities"]["drop"],
                    json!(["ALL"]),
                    "{case}: {workload}"
                );
                assert_eq!(
                    context["allowPrivilegeEscalation"], false,
                    "{case}: {workload}"
                );
                assert_eq!(
                    context["readOnlyRootFilesystem"], true,
                    "{case}: {workload}"
                );
                assert!(context["privileged"].is_null(), "{case}: {workload}");
                assert!(
                    !container["resources"]["limits"]["memory"].is_null(),
                    "{case}: {workload}"
                );
                assert!(
                    container["resources"]["limits"]["cpu"].is_null(),
                    "{case}: {workload}"
                );
            }
            let token = &spec["automountServiceAccountToken"];
            assert_eq!(
                token,
                &json!(!workload.ends_with("-puller")),
                "{case}: {workload}"
            );
        }
    });
}

#[test]
fn the_chart_never_renders_a_ca_bundle() {
    each(|case, manifests| {
        for one in manifests {
            for webhook in items(one, "webhooks") {
                assert!(webhook["clientConfig"]["caBundle"].is_null(), "{case}");
            }
        }
    });
}

#[test]
fn the_custom_resource_definition_stays_only_if_asked_to() {
    each(|case, manifests| {
        let crd = manifests
            .iter()
            .find(|one| one["kind"] == "CustomResourceDefinition");
        let policy = crd.map(|one| &one["metadata"]["annotations"]["helm.sh/resource-policy"]);
        match case {
            "only the workloads" => assert!(crd.is_none()),
            "other names" => assert!(policy.unwrap().is_null()),
            _ => assert_eq!(policy.unwrap(), "keep", "{case}"),
        }
    });
}

#[test]
fn critical_pods_get_their_quota() {
    each(|case, manifests| {
        let quota = manifests.iter().find(|one| one["kind"] == "ResourceQuota");
        let classes =
            quota.map(|one| &one["spec"]["scopeSelector"]["matchExpressions"][0]["values"]);
        match case {
            "only the workloads" => assert!(quota.is_none()),
            "everything" => {
                let both = json!(["system-cluster-critical", "system-node-critical"]);
                assert_eq!(classes, Some(&both));
            }
            _ => assert_eq!(classes, Some(&json!(["system-node-critical"])), "{case}"),
        }
    });
}
