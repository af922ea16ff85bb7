//! The rights of our `ServiceAccounts` and of people: the tables of docs/security.md, held against what
//! the API server says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{collections::BTreeSet, time::Duration};

use kubefledged_e2e::{
    Cluster,
    document::{table, words},
    fleet::OURS,
};
use serde_json::{Value, json};

/// API group, resource, name (empty: any) and verb.
type Right = (String, String, String, String);

/// What `kubectl auth can-i --list` asks, as JSON: all that an account may do in a namespace.
fn granted(cluster: &Cluster, account: &str, namespace: &str) -> BTreeSet<Right> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    });
    let args = [
        "kubectl",
        "create",
        "--raw",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        "-f",
        "-",
        "--as",
        &format!("system:serviceaccount:{account}"),
    ];
    let said = cluster.run(&args, &review.to_string()).unwrap();
    let review: Value = serde_json::from_str(&said).unwrap();
    let rules = review["status"]["resourceRules"].as_array().unwrap();
    rules.iter().flat_map(rights).collect()
}

fn rights(rule: &Value) -> Vec<Right> {
    let list = |field: &str| -> Vec<String> {
        let values = rule[field].as_array().into_iter().flatten();
        values
            .filter_map(|value| Some(value.as_str()?.to_owned()))
            .collect()
    };
    let (groups, resources, names, verbs) = (
        list("apiGroups"),
        list("resources"),
        list("resourceNames"),
        list("verbs"),
    );
    product(&groups, &resources, &names, &verbs)
}

fn product(
    groups: &[String],
    resources: &[String],
    names: &[String],
    verbs: &[String],
) -> Vec<Right> {
    let any = [String::new()];
    let names = if names.is_empty() { &any } else { names };
    let mut rights = Vec::new();
    for group in groups {
        for resource in resources {
            for name in names {
                let right =
                    |verb: &String| (group.clone(), resource.clone(), name.clone(), verb.clone());
                rights.extend(verbs.iter().map(right));
            }
        }
    }
    rights
}

/// The rows of a table that hold everywhere, or in our own namespace.
fn documented(rows: &[Vec<String>], place: &str) -> BTreeSet<Right> {
    let own =
        |cell: &str| -> Vec<String> { words(cell).into_iter().map(ToOwned::to_owned).collect() };
    let rows = rows.iter().filter(|row| row[0] == place);
    let rights = rows.flat_map(|row| {
        assert!(!row[5].is_empty(), "a right without a reason: {row:?}");
        let group = match row[1].as_str() {
            "core" => vec![String::new()],
            cell => own(cell),
        };
        product(&group, &own(&row[2]), &own(&row[3]), &own(&row[4]))
    });
    rights.collect()
}

/// What every account may do.
fn common(cluster: &Cluster) -> BTreeSet<Right> {
    granted(cluster, "default:nobody-in-particular", "default")
}

#[test]
fn each_service_account_has_the_rights_of_its_table_and_no_other() {
    let cluster = Cluster::default();
    let common = common(&cluster);
    for account in ["kubefledged-controller", "kubefledged-webhook-server"] {
        let heading = format!("### ServiceAccount {account}");
        let rows = table("docs/security.md", &heading).unwrap();
        let account = format!("{OURS}:{account}");
        let everywhere = granted(&cluster, &account, "default");
        let of = |granted: BTreeSet<Right>, without: &BTreeSet<Right>| -> BTreeSet<Right> {
            granted.difference(without).cloned().collect()
        };
        assert_eq!(of(everywhere.clone(), &common), documented(&rows, "all"));
        let here = granted(&cluster, &account, OURS);
        assert_eq!(of(here, &everywhere), documented(&rows, "own"));
    }
}

#[test]
fn a_puller_has_no_rights_and_no_token() {
    let cluster = Cluster::default();
    let account = format!("{OURS}:kubefledged-puller");
    assert_eq!(granted(&cluster, &account, OURS), common(&cluster));
    let pods = format!("get pods -n {OURS} -l app.kubernetes.io/component=puller -o json");
    let pods = cluster.kubectl(&pods).unwrap();
    assert!(!pods.contains("serviceAccountToken"), "{pods}");
}

#[test]
fn whoever_may_edit_a_namespace_may_look_at_image_caches_and_not_write_them() {
    let cluster = Cluster::default();
    let _ = cluster.kubectl("create namespace rights");
    for (person, role) in [
        ("eve", "edit"),
        ("vic", "view"),
        ("ada", "kubefledged-editor"),
    ] {
        let _ = cluster.kubectl(&format!("delete rolebinding {person} -n rights"));
        let bind =
            format!("create rolebinding {person} -n rights --clusterrole={role} --user={person}");
        cluster.kubectl(&bind).unwrap();
    }
    // The roles are put together by a controller.
    let can = |person: &str, verb: &str| {
        let ask = format!("auth can-i {verb} imagecaches.kubefledged.io -n rights --as={person}");
        cluster.kubectl(&ask).is_ok()
    };
    for (person, looks, writes) in [
        ("eve", true, false),
        ("vic", true, false),
        ("ada", true, true),
        ("mallory", false, false),
    ] {
        assert_eq!(can(person, "list"), looks, "{person}");
        for verb in ["create", "patch", "delete"] {
            assert_eq!(can(person, verb), writes, "{person} {verb}");
        }
    }
}

/// A namespace of tenants, whose objects start nothing.
fn namespace(cluster: &Cluster, name: &str, labels: &str) {
    let _ = cluster.kubectl(&format!("create namespace {name}"));
    let delete = format!("delete imagecaches --all -n {name}");
    cluster.kubectl(&delete).unwrap();
    if !labels.is_empty() {
        let label = format!("label namespace {name} --overwrite {labels}");
        cluster.kubectl(&label).unwrap();
    }
}

fn suspended(list: &Value) -> Value {
    json!({"cacheSpec": [list], "suspend": true})
}

/// Takes the sample policy away again, whatever the test does.
struct Policy<'a>(&'a Cluster);

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        let _ = self.0.shell("kubectl delete -f docs/policy.yaml");
    }
}

#[test]
fn the_sample_policy_refuses_what_it_does_not_name_with_a_sentence() {
    let cluster = Cluster::default();
    let labels = "kubefledged.io/policy=restricted kubefledged.io/pool=warm";
    namespace(&cluster, "tenants", labels);
    cluster.shell("kubectl apply -f docs/policy.yaml").unwrap();
    let _policy = Policy(&cluster);
    let create = |spec: &Value| {
        let created = cluster.feed("create --dry-run=server", "tenants", "x", spec);
        created.err().map(|error| error.to_string())
    };
    let pool = json!({"pool": "warm"});
    let good = json!({"images": ["registry.test:5000/demo/web:1.0"], "nodeSelector": pool});
    let with = |field: &str, value: Value| {
        let mut list = good.clone();
        list[field] = value;
        list
    };
    let elsewhere = suspended(&with("images", json!(["registry.test/demo/web:1.0"])));
    let active = cluster.until(Duration::from_secs(20), "the policy is in force", || {
        Ok(create(&elsewhere))
    });
    let many: Vec<String> = (0..51)
        .map(|i| format!("registry.test:5000/a:{i}"))
        .collect();
    let mut pinned = suspended(&good);
    pinned["retention"] = json!("Pinned");
    for (said, words) in [
        (
            active.ok(),
            "images must come from one of registry.example.com/",
        ),
        (
            create(&suspended(&with("nodeSelector", json!({})))),
            "every list needs nodeSelector pool: warm",
        ),
        (
            create(&suspended(&with("priority", json!(101)))),
            "priority must be at most 100",
        ),
        (
            create(&suspended(&with("images", json!(many)))),
            "at most 50 images",
        ),
        (create(&pinned), "retention Pinned is not allowed"),
    ] {
        assert!(
            said.as_ref().is_some_and(|said| said.contains(words)),
            "{words}: {said:?}"
        );
    }
    assert_eq!(create(&suspended(&with("priority", json!(100)))), None);
}

#[test]
fn the_kubelets_allow_list_is_the_repositories_of_caches_without_secrets() {
    let cluster = Cluster::default();
    namespace(&cluster, "public", "");
    let _ = cluster.kubectl("delete imagecaches --all --all-namespaces");
    let images = [
        "nginx",
        "team/app:1",
        "registry.test:5000/a/b:2",
        "registry.test:5000/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "localhost/c:3",
    ];
    let public = suspended(&json!({ "images": images }));
    cluster.create("public", "public", &public).unwrap();
    let mut secret = suspended(&json!({"images": ["private.test:5001/d:4"]}));
    secret["imagePullSecrets"] = json!([{"name": "s"}]);
    cluster.create("public", "secret", &secret).unwrap();
    let mut account = suspended(&json!({"images": ["private.test:5001/e:5"]}));
    account["serviceAccountName"] = json!("s");
    cluster.create("public", "account", &account).unwrap();

    let text = std::fs::read_to_string(kubefledged_chart::file("docs/security.md")).unwrap();
    let (_, block) = text.split_once("```\nkubectl get imagecaches -A").unwrap();
    let (command, _) = block.split_once("```").unwrap();
    let printed = cluster.shell(&format!("kubectl get imagecaches -A{command}"));
    let lines = [
        "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages",
        "preloadedImagesVerificationAllowlist:",
        "- docker.io/library/nginx",
        "- docker.io/team/app",
        "- localhost/c",
        "- registry.test:5000/a/b",
    ];
    assert_eq!(printed.unwrap().lines().collect::<Vec<_>>(), lines);
    cluster
        .kubectl("delete imagecaches --all -n public")
        .unwrap();
}
