use kubefledged_api_types::workloads::ImagePlace;
use serde_json::json;

use super::*;

fn pod() -> Value {
    json!({
        "containers": [
            {"name": "web", "image": "r.test/web:1", "env": [{"name": "SECRET", "value": "x"}]},
            {"name": "later"},
        ],
        "initContainers": [{"name": "init", "image": "r.test/init:1"}],
        "volumes": [
            {"name": "model", "image": {"reference": "r.test/model:1", "pullPolicy": "Always"}},
            {"name": "data", "emptyDir": {}},
        ],
        "imagePullSecrets": [{"name": "s"}, {"name": ""}, {"name": "s"}, {"name": "t"}],
        "serviceAccountName": "robot",
    })
}

fn read<T: Read + for<'de> Deserialize<'de>>(object: Value, how: &How) -> Option<Workload> {
    serde_json::from_value::<T>(object).unwrap().read(how)
}

fn object(spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "X",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"b": "2", "a": "1"}, "managedFields": [{}]},
        "spec": spec, "status": {"conditions": null},
    })
}

fn names(workload: &Workload) -> Vec<&str> {
    workload
        .images
        .iter()
        .map(|image| &*image.reference)
        .collect()
}

#[test]
fn containers_init_containers_and_image_volumes_are_read_with_their_secrets() {
    let found = read::<Lean<Templated>>(
        object(&json!({"replicas": 0, "template": {"spec": pod()}})),
        &How::Plain,
    )
    .unwrap();
    assert_eq!(
        names(&found),
        ["r.test/web:1", "r.test/init:1", "r.test/model:1"]
    );
    assert_eq!(found.images[2].place, ImagePlace::Volume);
    assert_eq!(&*found.images[1].container, "init");
    assert_eq!(&*found.secrets, ["s", "t"]);
    assert_eq!(found.service_account.as_deref(), Some("robot"));
    assert_eq!(
        (found.labels.get("a"), found.labels.get("c")),
        (Some("1"), None)
    );
}

#[test]
fn a_template_without_a_service_account_has_the_default_one_and_a_pod_has_its_secrets_already() {
    let spec = json!({"containers": [{"image": "r.test/a:1"}], "volumes": null});
    let found =
        read::<Lean<Templated>>(object(&json!({"template": {"spec": spec}})), &How::Plain).unwrap();
    assert_eq!(found.service_account.as_deref(), Some("default"));
    let found = read::<Lean<PodSpec>>(object(&spec), &How::Plain).unwrap();
    assert_eq!(found.service_account, None);
    let cron =
        json!({"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": spec}}}});
    assert_eq!(
        names(&read::<Lean<Cron>>(object(&cron), &How::Plain).unwrap()),
        ["r.test/a:1"]
    );
}

#[test]
fn what_runs_no_more_names_nothing() {
    let spec = json!({"replicas": 0, "template": {"spec": pod()}});
    assert_eq!(read::<Lean<Templated>>(object(&spec), &How::Scaled), None);
    let mut job = object(&json!({"template": {"spec": pod()}}));
    assert!(read::<Lean<Templated>>(job.clone(), &How::Finishing).is_some());
    job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    assert_eq!(read::<Lean<Templated>>(job, &How::Finishing), None);
}

#[test]
fn other_kinds_are_read_at_their_path_as_template_spec_or_container() {
    let found = |spec: Value, path: &str| {
        let how = How::At(TemplatePath::parse(path).unwrap());
        let found = read::<DynamicObject>(object(&spec), &how);
        found.map(|found| {
            names(&found)
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
    };
    let all = Some(vec![
        "r.test/web:1".to_owned(),
        "r.test/init:1".to_owned(),
        "r.test/model:1".to_owned(),
    ]);
    assert_eq!(
        found(
            json!({"template": {"metadata": {}, "spec": pod()}}),
            "spec.template"
        ),
        all
    );
    assert_eq!(found(json!({"predictor": pod()}), "spec.predictor"), all);
    let model =
        json!({"predictor": {"model": {"modelFormat": {"name": "x"}, "image": "r.test/server:1"}}});
    assert_eq!(
        found(model, ".spec.predictor.model"),
        Some(vec!["r.test/server:1".to_owned()])
    );
    let container = |image: &str| json!({"template": {"spec": {"containers": [{"name": "ray", "image": image}]}}});
    let groups =
        json!({"workerGroupSpecs": [container("r.test/cpu:1"), container("r.test/gpu:1")]});
    let two = Some(vec!["r.test/cpu:1".to_owned(), "r.test/gpu:1".to_owned()]);
    assert_eq!(found(groups, "spec.workerGroupSpecs[*].template"), two);
    // Nothing is there, or not what was expected.
    assert_eq!(found(json!({"template": 7}), "spec.template"), None);
    assert_eq!(
        found(
            json!({"template": {"spec": {"containers": "x"}}}),
            "spec.template"
        ),
        None
    );
    assert_eq!(found(json!({}), "spec.template"), None);
}
