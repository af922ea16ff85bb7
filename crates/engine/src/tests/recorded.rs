//! Objects of every state, as the API server shows them. The tests of kstatus and of Argo CD's health check in
//! `hack/tools/status` read them. `RECORD=1 cargo test -p kubefledged-engine recorded` writes them anew.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::{Value, json};

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/argocd/testdata")
}

fn shown(object: &CacheObject) -> Value {
    let mut status = serde_json::to_value(&object.status).unwrap();
    if status.get("observedGeneration").is_none() {
        // As the CustomResourceDefinition's default has it.
        status["observedGeneration"] = json!(-1);
    }
    let mut metadata = json!({"name": "web", "namespace": "shop", "generation": object.generation});
    if object.deleting {
        metadata["deletionTimestamp"] = json!("2023-11-14T22:13:20Z");
    }
    json!({
        "apiVersion": "kubefledged.io/v1alpha2",
        "kind": "ImageCache",
        "metadata": metadata,
        "spec": object.spec,
        "status": status,
    })
}

/// A harness with three nodes that leads and knows one object.
fn led(change: impl FnOnce(&mut Harness, &mut ImageCacheSpec)) -> Harness {
    let mut harness = Harness::new(&["n1", "n2", "n3"]);
    let mut wanted = images(&["registry.example/web:1.3"]);
    change(&mut harness, &mut wanted);
    harness.create(wanted);
    harness.lead();
    harness
}

const WEB: &str = "registry.example/web:1.3";

fn broken(reason: &'static str) -> Harness {
    led(|harness, _| {
        harness.broken.insert(WEB.into(), reason);
    })
}

fn slow() -> Harness {
    let mut harness = led(|harness, _| {
        harness.slow.insert(WEB.into());
    });
    harness.wait(5);
    harness
}

fn waited(mut harness: Harness, seconds: u64) -> Harness {
    harness.wait(seconds);
    harness
}

fn nodes_gone() -> Harness {
    let mut harness = waited(led(|_, _| {}), 2);
    for name in ["n1", "n2", "n3"] {
        harness.handle(Event::NodeDeleted(node(name)));
        harness.handle(Event::PullerChanged(node(name), None));
    }
    harness.run();
    waited(harness, 2)
}

fn nodes_unready() -> Harness {
    let mut harness = slow();
    for name in ["n1", "n2", "n3"] {
        let unready = NodeFacts {
            ready: false,
            ..facts(&[])
        };
        harness.handle(Event::NodeApplied(node(name), unready));
    }
    harness.run();
    waited(harness, 130)
}

/// One of three nodes does not answer.
fn one_silent(change: impl FnOnce(&mut ImageCacheSpec)) -> Harness {
    let harness = led(|harness, spec| {
        harness.unreachable.insert("n3".into());
        change(spec);
    });
    waited(harness, 130)
}

fn suspended_with(missing: bool) -> Harness {
    let mut harness = if missing {
        led(|_, spec| spec.suspend = true)
    } else {
        waited(led(|_, _| {}), 2)
    };
    harness.change(|spec| spec.suspend = true);
    waited(harness, 2)
}

fn purged() -> Harness {
    let mut harness = waited(led(|_, _| {}), 2);
    harness.apply(|object| object.purge = Some("t1".into()));
    harness.run();
    waited(harness, 2)
}

fn invalid() -> Harness {
    let mut harness = waited(led(|_, _| {}), 2);
    harness.apply(|object| object.generation = 2);
    harness.break_spec("spec: invalid type: string, expected a sequence");
    harness.run();
    waited(harness, 2)
}

/// Edited while nobody leads; then a new leader begins, whose nodes do not answer yet.
fn edited_without_a_leader(leads: bool) -> Harness {
    let mut harness = waited(led(|_, _| {}), 2);
    harness.handle(Event::Leadership(None));
    for name in ["n1", "n2", "n3"] {
        harness.unreachable.insert(name.into());
    }
    harness.apply(|object| {
        object.spec.cache_spec[0].images = vec!["registry.example/web:1.4".into()];
        object.generation = 2;
    });
    if leads {
        harness.handle(Event::Leadership(Some(2)));
        harness.run();
    }
    harness
}

fn removing() -> Harness {
    let mut harness = waited(
        led(|_, spec| {
            let images = &mut spec.cache_spec[0].images;
            images.push("registry.example/old:1".into());
        }),
        2,
    );
    harness.unreachable.insert("n1".into());
    harness.change(|spec| drop(spec.cache_spec[0].images.pop()));
    waited(harness, 5)
}

fn refreshing() -> Harness {
    let mut harness = waited(
        led(|_, spec| spec.cache_spec[0].image_pull_policy = Some(ImagePullPolicy::Always)),
        2,
    );
    harness.slow.insert(WEB.into());
    harness.apply(|object| object.refresh = Some("t".into()));
    harness.run();
    waited(harness, 2)
}

fn deleting() -> Harness {
    let mut harness = waited(
        led(|_, spec| spec.deletion_policy = Some(kubefledged_api_types::DeletionPolicy::Purge)),
        2,
    );
    harness.unreachable.insert("n1".into());
    harness.delete();
    waited(harness, 2)
}

fn lost() -> Harness {
    let mut harness = waited(led(|_, _| {}), 2);
    harness.held.clear();
    harness.slow.insert(WEB.into());
    waited(harness, 340)
}

fn no_controller(status: ImageCacheStatus) -> Harness {
    let mut harness = Harness::new(&["n1", "n2", "n3"]);
    harness.create(images(&[WEB]));
    harness.objects.get_mut(&key()).unwrap().status = status;
    harness
}

/// States by name, and how they come about.
type States = Vec<(&'static str, Harness)>;

/// States on the way to ready, and of what keeps a cache from it.
fn pulled() -> States {
    let of_kube_fledged: ImageCacheStatus = serde_json::from_value(json!({
        "status": "Succeeded", "reason": "ImageCacheCreate",
        "message": "All requested images pulled succesfully to respective nodes",
    }))
    .unwrap();
    vec![
        ("no-controller", no_controller(ImageCacheStatus::default())),
        ("written-by-kube-fledged", no_controller(of_kube_fledged)),
        ("pulling", slow()),
        ("ready", waited(led(|_, _| {}), 2)),
        ("edited-without-a-leader", edited_without_a_leader(false)),
        ("first-round-after-an-edit", edited_without_a_leader(true)),
        ("tag-unknown", waited(broken("ImageNotFound"), 2)),
        ("unauthorized-at-first", waited(broken("Unauthorized"), 2)),
        ("unauthorized", waited(broken("Unauthorized"), 240)),
        ("registry-down", waited(broken("RegistryUnavailable"), 240)),
        (
            "name-invalid",
            waited(
                led(|_, spec| spec.cache_spec[0].images = vec!["UPPER/case:x".into()]),
                2,
            ),
        ),
        ("spec-invalid", invalid()),
        (
            "status-too-large",
            waited(led(|harness, _| harness.most_names = Some(0)), 5),
        ),
        (
            "enough-nodes",
            one_silent(|spec| spec.min_ready_nodes = "50%".parse().ok()),
        ),
        ("puller-silent", one_silent(|_| {})),
    ]
}

/// States that somebody asked for, and states of the selectors.
fn wished() -> States {
    let matching = |lists: &Lists<'_>| {
        let wanted = spec(lists);
        waited(led(|_, spec| *spec = wanted), 2)
    };
    let teir = [("teir", "backend")];
    vec![
        ("purging", {
            let mut harness = waited(led(|_, _| {}), 2);
            harness.unreachable.insert("n1".into());
            harness.apply(|object| object.purge = Some("t1".into()));
            harness.run();
            waited(harness, 2)
        }),
        ("purged", purged()),
        ("suspended", suspended_with(false)),
        ("suspended-before-it-was-ready", suspended_with(true)),
        ("refreshing", refreshing()),
        ("removing", removing()),
        ("images-lost", lost()),
        ("no-node-matches", matching(&[(&[WEB], &teir)])),
        (
            "one-list-matches-nothing",
            matching(&[(&[WEB], &[]), (&[WEB], &teir)]),
        ),
        ("pool-at-zero", nodes_gone()),
        ("nodes-not-eligible", nodes_unready()),
        (
            "too-few-nodes",
            waited(led(|_, spec| spec.require_nodes = Some(4)), 2),
        ),
        ("deleting", deleting()),
    ]
}

#[test]
fn the_recorded_objects_are_what_the_engine_writes() {
    let record = option_env!("RECORD").is_some();
    let mut names = BTreeSet::new();
    for (name, harness) in pulled().into_iter().chain(wished()) {
        let file = folder().join(format!("{name}.yaml"));
        let text = serde_saphyr::to_string(&shown(&harness.objects[&key()])).unwrap();
        if record {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&file, &text).unwrap();
        }
        let recorded = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(recorded, text, "{name}: run this test with RECORD=1");
        names.insert(file);
    }
    let files = fs::read_dir(folder()).unwrap();
    let files: BTreeSet<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files, names, "each file is a state, and each state a file");
}
