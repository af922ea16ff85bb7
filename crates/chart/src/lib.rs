//! Renders charts/kubefledged with the pinned helm of `hack/tool`, without a cluster, and parses
//! what comes out into the types of the Kubernetes API, strictly.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use serde_json::{Value, json};

pub mod strict;

/// The namespace that everything is rendered for.
pub const NAMESPACE: &str = "kube-fledged";

/// A file of the repository.
pub fn file(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

/// A YAML file of the repository.
pub fn yaml(path: &str) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file(path)).with_context(|| path.to_owned())?;
    Ok(parse(&text)?.into_iter().next().unwrap_or_default())
}

/// The documents of a YAML text, without empty ones.
pub fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    // As Kubernetes reads them: 0400 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    Ok(documents.into_iter().filter(|one| !one.is_null()).collect())
}

/// What `helm template` makes of these values, hooks included; or what it says against them.
pub fn render(values: &Value) -> anyhow::Result<Vec<Value>> {
    parse(&render_text(values, &[])?)
}

/// The same as text, with more arguments for `helm template`.
pub fn render_text(values: &Value, args: &[&str]) -> anyhow::Result<String> {
    let mut child = Command::new(file("hack/tool"))
        .args(["helm", "template", "kubefledged"])
        .arg(file("charts/kubefledged"))
        .args(["--namespace", NAMESPACE, "--kube-version", "1.30.0"])
        .args(["--values", "-"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run hack/tool")?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(values.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// What NOTES.txt says with these values: `helm template` does not show it, so an extra object that
/// holds it is rendered.
pub fn notes(values: &Value) -> anyhow::Result<String> {
    notes_with(values, &[])
}

/// The same, with more arguments for `helm template`.
pub fn notes_with(values: &Value, args: &[&str]) -> anyhow::Result<String> {
    let name = "rendered-notes";
    let holder = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  \
         notes: {{{{ include \"kubefledged.notes\" . | quote }}}}\n"
    );
    let values = merged(values, &json!({ "extraObjects": [holder] }));
    let rendered = parse(&render_text(&values, args)?)?;
    let holder = rendered
        .iter()
        .find(|one| one["metadata"]["name"] == name)
        .context("the notes were not rendered")?;
    let notes = holder["data"]["notes"].as_str();
    Ok(notes.context("the notes are no text")?.to_owned())
}

/// Values over values, as Helm merges: maps key by key, everything else as a whole.
pub fn merged(under: &Value, over: &Value) -> Value {
    let (Value::Object(under), Value::Object(over)) = (under, over) else {
        return over.clone();
    };
    let mut all = under.clone();
    for (key, value) in over {
        let below = all.get(key).cloned().unwrap_or(json!({}));
        all.insert(key.clone(), merged(&below, value));
    }
    Value::Object(all)
}

/// `{"a": {"b": value}}` for `a.b`.
pub fn at(path: &str, value: &Value) -> Value {
    path.rsplit('.')
        .fold(value.clone(), |inner, key| json!({ key: inner }))
}

/// The value at a path with dots.
pub fn get<'a>(values: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(values, |inner, key| &inner[key])
}

/// Every leaf of a tree of maps by its path. An empty map is a leaf.
pub fn leaves(tree: &Value) -> BTreeMap<String, Value> {
    fn walk(path: &str, tree: &Value, found: &mut BTreeMap<String, Value>) {
        match tree {
            // A key with a dot, such as a label's, belongs to its map.
            Value::Object(map) if !map.is_empty() && map.keys().all(|key| !key.contains('.')) => {
                for (key, inner) in map {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    walk(&path, inner, found);
                }
            }
            leaf => {
                found.insert(path.to_owned(), leaf.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", tree, &mut found);
    found
}

/// Values that render everything the chart has, as far as it goes together.
pub fn everything() -> Value {
    json!({
        "commonLabels": {"team": "platform"},
        "imagePullSecrets": [{"name": "regcred"}],
        "global": {"imageRegistry": "mirror.example.com:5000"},
        "rbac": {"secretAccess": "namespaces", "secretNamespaces": ["team-a", "team-b"]},
        "controller": component(&json!({"replicas": 3, "priorityClassName": "system-cluster-critical"})),
        "webhook": component(&json!({"hostNetwork": true})),
        "puller": component(&json!({"criSocketPath": "/run/k3s/containerd/containerd.sock"})),
        "metrics": {
            "podMonitor": {"enabled": true, "interval": "30s", "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": true},
            "dashboard": {"enabled": true, "annotations": {"grafana_folder": "Images"}},
        },
        "networkPolicy": {
            "enabled": true,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "pullerEgress": [{"ports": [{"port": 443}]}],
        },
        "flowControl": {"enabled": true},
        "nodeGate": {"condition": {"enabled": true}, "taint": {"enabled": true}},
        "workloads": {
            "enabled": true,
            "clusterScopeNamespaces": ["platform"],
            "extraRules": [{"apiGroups": ["argoproj.io"], "resources": ["rollouts"], "verbs": ["list", "watch"]}],
        },
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-extra"}},
        ],
    })
}

fn component(more: &Value) -> Value {
    let shape = json!({
        "image": {"digest": format!("sha256:{}", "0".repeat(64))},
        "serviceAccount": {"annotations": {"example.com/role": "images"}},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "kubefledged"}},
        }],
        "podLabels": {"sidecar": "none"},
        "podAnnotations": {"example.com/note": "1"},
        "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    });
    merged(&shape, more)
}

/// Sets of values that between them take every branch of the templates.
pub fn matrix() -> Vec<(&'static str, Value)> {
    vec![
        ("defaults", json!({})),
        ("everything", everything()),
        (
            "a service monitor",
            json!({"metrics": {"serviceMonitor": {"enabled": true, "relabelings": [{"action": "drop"}]}}}),
        ),
        (
            "cert-manager",
            json!({"certificates": {"mode": "certManager"}}),
        ),
        (
            "certificates of one's own",
            json!({"certificates": {"mode": "provided"}}),
        ),
        ("no webhook", json!({"webhook": {"enabled": false}})),
        (
            "the node's network",
            json!({
                "controller": {"hostNetwork": true},
                "webhook": {"hostNetwork": true},
                "puller": {"hostNetwork": true},
            }),
        ),
        (
            "the node's credentials on EKS",
            json!({"puller": {"credentialProviders": {"preset": "eks"}, "imageFsPath": "/mnt/images"}}),
        ),
        (
            "the node's credentials, as said",
            json!({"puller": {"credentialProviders": {
                "config": "/etc/kubelet/providers.yaml",
                "binDir": "/opt/providers",
                "caBundle": "/etc/ssl/certs/ca-certificates.crt",
                "files": ["/etc/kubernetes/cloud.conf"],
            }}}),
        ),
        (
            "only the workloads",
            json!({
                "crds": {"enabled": false},
                "rbac": {"create": false, "userRoles": false},
                "controller": {"serviceAccount": {"create": false, "name": "given"}},
                "webhook": {"serviceAccount": {"create": false, "name": "given"}, "replicas": 1},
                "puller": {"serviceAccount": {"create": false, "name": "given"}, "priorityClassName": ""},
            }),
        ),
        (
            "other names",
            json!({"fullnameOverride": "images", "namespaceOverride": "elsewhere", "crds": {"keep": false}}),
        ),
        (
            "kube-fledged's own defaults",
            yaml("crates/chart/testdata/kube-fledged-values.yaml").unwrap_or_default(),
        ),
    ]
}
