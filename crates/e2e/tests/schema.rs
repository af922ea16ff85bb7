//! What the API server refuses by itself, before any webhook, and that its messages say what to
//! write. And that objects of kube-fledged's time stay editable.

use kubefledged_e2e::Cluster;
use serde_json::{Value, json};

const NAMESPACE: &str = "schema";

fn entry(more: Value) -> Value {
    let mut entry = json!({"images": ["a:1"]});
    merge(&mut entry, more);
    json!({ "cacheSpec": [entry] })
}

fn spec(more: Value) -> Value {
    let mut spec = json!({"cacheSpec": [{"images": ["a:1"]}]});
    merge(&mut spec, more);
    spec
}

fn merge(into: &mut Value, more: Value) {
    let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) else {
        return;
    };
    into.extend(more);
}

fn requirement(operator: &str, values: &[&str]) -> Value {
    let requirement = json!({"key": "a", "operator": operator, "values": values});
    entry(json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [requirement]}
    ]}}}))
}

fn refused(cluster: &Cluster, spec: &Value, words: &[&str]) {
    let verb = "create --dry-run=server";
    let error = match cluster.feed(verb, NAMESPACE, "x", spec) {
        Ok(_) => unreachable!("{spec} was accepted"),
        Err(error) => error.to_string(),
    };
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

/// A spec, its wrong field, and what the error says about it.
type Wrong = (Value, &'static str, &'static str);

const DURATION: &str = "write a duration with units, such as 30s, 5m, 1h30m or 0s";
const SHARE: &str = "write an integer, or a percentage from \"0%\" to \"100%\"";

/// What is wrong in a list of images.
fn wrong_lists() -> Vec<Wrong> {
    vec![
        (
            entry(json!({"pullDeadline": "5"})),
            "spec.cacheSpec[0].pullDeadline",
            DURATION,
        ),
        (
            entry(json!({"priority": 1001})),
            "spec.cacheSpec[0].priority",
            "less than or equal to 1000",
        ),
        (
            entry(json!({"imagePullPolicy": "Never"})),
            "spec.cacheSpec[0].imagePullPolicy",
            "supported values: \"IfNotPresent\", \"Always\"",
        ),
        (
            requirement("In", &[]),
            "matchExpressions[0].values",
            "In and NotIn need at least one value",
        ),
        (
            requirement("Exists", &["x"]),
            "matchExpressions[0].values",
            "remove them",
        ),
        (
            requirement("Gt", &["four"]),
            "matchExpressions[0].values",
            "exactly one value, an integer",
        ),
    ]
}

/// What is wrong beside the lists.
fn wrong_objects() -> Vec<Wrong> {
    vec![
        (
            spec(json!({"refresh": {"interval": "soon"}})),
            "spec.refresh.interval",
            DURATION,
        ),
        (
            spec(json!({"refresh": {"interval": "59s"}})),
            "spec.refresh.interval",
            "write at least 1m, or 0s to switch refreshes off",
        ),
        (
            spec(json!({"maxConcurrentNodes": "ten"})),
            "spec.maxConcurrentNodes",
            SHARE,
        ),
        (
            spec(json!({"minReadyNodes": "101%"})),
            "spec.minReadyNodes",
            SHARE,
        ),
        (
            spec(json!({"minReadyNodes": -1})),
            "spec.minReadyNodes",
            "greater than or equal to 0",
        ),
        (
            spec(json!({"retention": "pinned"})),
            "spec.retention",
            "supported values: \"Default\", \"Pinned\"",
        ),
        (
            spec(json!({"nodeGate": "Yes"})),
            "spec.nodeGate",
            "supported values: \"Required\", \"Ignored\"",
        ),
        (
            spec(json!({"nodeGateTimeout": "soon"})),
            "spec.nodeGateTimeout",
            DURATION,
        ),
        (
            spec(json!({"nodeGateTimeout": "0s"})),
            "spec.nodeGateTimeout",
            "to hold no node, write nodeGate: Ignored",
        ),
        (
            spec(json!({"deletionPolicy": "Delete"})),
            "spec.deletionPolicy",
            "supported values: \"Retain\", \"Purge\"",
        ),
    ]
}

#[test]
fn a_wrong_value_is_refused_by_its_field_with_what_to_write() {
    let cluster = Cluster::default();
    let _ = cluster.kubectl(&format!("create namespace {NAMESPACE}"));
    for (spec, field, words) in wrong_lists().into_iter().chain(wrong_objects()) {
        refused(&cluster, &spec, &[field, words]);
    }
}

#[test]
fn every_new_field_at_its_limits_is_accepted() -> anyhow::Result<()> {
    let cluster = Cluster::default();
    let _ = cluster.kubectl(&format!("create namespace {NAMESPACE}"));
    for spec in [
        spec(json!({"maxConcurrentNodes": "10%", "minReadyNodes": 0, "suspend": true})),
        spec(json!({"maxConcurrentNodes": 1, "minReadyNodes": "100%"})),
        spec(json!({"refresh": {"interval": "0s"}})),
        spec(json!({"refresh": {"interval": "1m"}})),
        spec(json!({"refresh": {"interval": "1h30m"}})),
        spec(json!({"refresh": {"interval": null}, "maxConcurrentNodes": null})),
        spec(json!({"retention": "Pinned", "deletionPolicy": "Purge"})),
        spec(json!({"nodeGate": "Required", "nodeGateTimeout": "1s"})),
        spec(json!({"nodeGate": "Ignored", "nodeGateTimeout": "24h"})),
        entry(json!({"priority": -1000, "pullDeadline": "1.5h"})),
        requirement("Lt", &["-4"]),
        requirement("DoesNotExist", &[]),
        entry(json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
        ]}}})),
    ] {
        cluster.feed("create --dry-run=server", NAMESPACE, "x", &spec)?;
    }
    Ok(())
}

#[test]
fn an_object_stored_before_there_were_rules_stays_editable() -> anyhow::Result<()> {
    let cluster = Cluster::default();
    let namespace = "schema-old";
    let _ = cluster.kubectl(&format!("create namespace {namespace}"));
    // Nobody looks there: the object is stored as kube-fledged's would be.
    let label = "kubefledged.io/disable-validation";
    cluster.kubectl(&format!(
        "label namespace {namespace} --overwrite {label}=true"
    ))?;
    let suspended = |lists: Value| json!({"cacheSpec": lists, "suspend": true});
    let stored = json!([{"images": ["a:1", "a:1", "UPPER/case:x"]}, {"images": []}]);
    cluster.feed("apply", namespace, "old", &suspended(stored))?;
    cluster.kubectl(&format!("label namespace {namespace} {label}-"))?;

    let edited = json!([{"images": ["a:1", "a:1", "UPPER/case:x", "b:1"]}, {"images": []}]);
    cluster.feed("apply", namespace, "old", &suspended(edited))?;
    for (lists, words) in [
        (
            json!([{"images": ["a:1", "a:1", "b:1", "b:1"]}, {"images": []}]),
            "Duplicate image names within image list: b:1",
        ),
        (
            json!([{"images": ["a:1"]}, {"images": []}, {"images": []}]),
            "No images specified within image list",
        ),
        (
            json!([{"images": ["a:1", "UPPER/other:x"]}]),
            "spec.cacheSpec[0].images[1]",
        ),
    ] {
        let error = cluster.feed("apply", namespace, "old", &suspended(lists));
        let error = error.err().map(|error| error.to_string());
        assert!(
            error.as_ref().is_some_and(|e| e.contains(words)),
            "{error:?}"
        );
    }
    // On CREATE every rule holds.
    let broken = suspended(json!([{"images": ["a:1", "a:1"]}]));
    assert!(cluster.create(namespace, "new", &broken).is_err());
    cluster.kubectl(&format!("delete namespace {namespace} --wait=false"))?;
    Ok(())
}
