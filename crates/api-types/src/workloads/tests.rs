use super::*;
use crate::validation::violations;

fn spec(list: &serde_json::Value) -> ImageCacheSpec {
    serde_json::from_value(serde_json::json!({"cacheSpec": [list]})).unwrap()
}

fn texts(list: &serde_json::Value) -> Vec<String> {
    violations(&spec(list))
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_list_may_take_all_its_images_from_workloads() {
    let list = serde_json::json!({"imagesFrom": [{"workloads": {}}], "keepPrevious": 2, "retainFor": "24h"});
    assert_eq!(texts(&list), Vec::<String>::new());
    let spec = spec(&list);
    let source = spec.cache_spec[0].workloads().next().unwrap();
    let kinds: Vec<String> = source
        .parsed_kinds()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(kinds, ["Deployment", "StatefulSet", "DaemonSet", "CronJob"]);
}

#[test]
fn a_kind_of_a_group_has_a_path_and_other_texts_are_refused_with_what_to_write() {
    let kind = WorkloadKind::parse(
        "ray.io/RayCluster",
        Some(".spec.workerGroupSpecs[*].template"),
    );
    let Ok(WorkloadKind::Other { path, .. }) = &kind else {
        panic!("{kind:?}");
    };
    assert_eq!(path.to_string(), "spec.workerGroupSpecs[*].template");
    assert_eq!(path.steps().len(), 4);
    for wrong in [
        "deployment",
        "Rollout",
        "/Rollout",
        "argoproj.io/",
        "argoproj.io/rollout",
        "a/b/C",
        "Argo.io/X",
    ] {
        let list = serde_json::json!({"imagesFrom": [{"workloads": {"kinds": [wrong]}}]});
        let texts = texts(&list);
        assert!(
            texts[0].contains("imagesFrom[0].workloads.kinds"),
            "{texts:?}"
        );
        assert!(texts[0].contains("argoproj.io/Rollout"), "{texts:?}");
    }
    for wrong in [
        "",
        "spec..template",
        "spec.template[0]",
        "spec.'a'",
        "$.spec",
    ] {
        let error = WorkloadKind::parse("a.b/C", Some(wrong)).unwrap_err();
        assert_eq!(error.field(), "podTemplatePath", "{wrong}");
    }
}

#[test]
fn fields_that_would_do_nothing_are_refused() {
    let list = serde_json::json!({"images": ["a:1"], "keepPrevious": 1, "retainFor": "1h"});
    let found = texts(&list);
    assert!(
        found[0].contains("keepPrevious: it has an effect only with imagesFrom"),
        "{found:?}"
    );
    assert!(found[1].contains("retainFor"), "{found:?}");
    let list =
        serde_json::json!({"imagesFrom": [{"workloads": {"podTemplatePath": "spec.template"}}]});
    assert!(texts(&list)[0].contains("podTemplatePath: no kind of this source"));
    assert!(texts(&serde_json::json!({"imagesFrom": [{}]}))[0].contains("the source is empty"));
    let list = serde_json::json!({"imagesFrom": [{"workloads": {}}], "retainFor": "721h"});
    assert!(texts(&list)[0].contains("at most 720h"));
}

#[test]
fn only_chosen_namespaces_may_read_the_workloads_of_others() {
    let access = WorkloadAccess::enabled("kube-fledged", ["platform".into()]);
    let own = spec(&serde_json::json!({"imagesFrom": [{"workloads": {}}]}));
    let all = spec(&serde_json::json!({"imagesFrom": [{"workloads": {"namespaceSelector": {}}}]}));
    assert!(access.violations("shop", &own).is_empty());
    for allowed in ["kube-fledged", "platform"] {
        assert!(access.violations(allowed, &all).is_empty(), "{allowed}");
    }
    let found = access.violations("shop", &all);
    assert_eq!(
        found[0].field,
        "spec.cacheSpec[0].imagesFrom[0].workloads.namespaceSelector"
    );
    assert!(
        found[0].message.contains("kube-fledged, platform"),
        "{found:?}"
    );
    let off = WorkloadAccess::default().violations("shop", &own);
    assert!(off[0].message.contains("workloads.enabled"), "{off:?}");
}

#[test]
fn a_selector_compares_labels_as_a_deployment_does() {
    let of = |json: serde_json::Value| -> LabelSelector { serde_json::from_value(json).unwrap() };
    let labels = BTreeMap::from([("app", "web"), ("tier", "front")]);
    let matches = |json| of(json).matches(|key| labels.get(key).copied());
    assert!(matches(serde_json::json!({})));
    assert!(matches(serde_json::json!({"matchLabels": {"app": "web"}})));
    assert!(!matches(
        serde_json::json!({"matchLabels": {"app": "web", "x": "y"}})
    ));
    for (operator, key, values, holds) in [
        ("In", "app", vec!["web", "api"], true),
        ("In", "none", vec!["web"], false),
        ("NotIn", "app", vec!["web"], false),
        ("NotIn", "none", vec!["web"], true),
        ("Exists", "tier", vec![], true),
        ("DoesNotExist", "tier", vec![], false),
    ] {
        let json = serde_json::json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        assert_eq!(matches(json), holds, "{operator} {key}");
    }
}

#[test]
fn containers_are_chosen_by_place_and_name() {
    use ImagePlace::{Container, InitContainer, Volume};

    let chosen = |json: serde_json::Value, place, name| {
        let selection: ContainerSelection = serde_json::from_value(json).unwrap();
        selection.selects(place, name)
    };
    let none = serde_json::json!({});
    for place in [Container, InitContainer, Volume] {
        assert!(chosen(none.clone(), place, "a"), "{place}");
    }
    assert!(!chosen(
        serde_json::json!({"initContainers": false}),
        InitContainer,
        "a"
    ));
    assert!(!chosen(
        serde_json::json!({"imageVolumes": false}),
        Volume,
        "a"
    ));
    assert!(!chosen(
        serde_json::json!({"exclude": ["istio-proxy"]}),
        Container,
        "istio-proxy"
    ));
    assert!(!chosen(
        serde_json::json!({"names": ["web"]}),
        Container,
        "b"
    ));
}
