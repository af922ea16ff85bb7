//! Whole stories told to the engine by hand. A small world answers its commands: writes succeed,
//! nodes hold what was pulled to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kubefledged_api_types::{
    CacheSpecEntry, ImageCacheSpec, ImageCacheStatus, PullSecretReference, Timestamp,
};

use super::*;

struct World {
    engine: Engine,
    now: Now,
    version: u64,
    object: BTreeMap<CacheKey, CacheObject>,
    held: BTreeMap<String, BTreeSet<String>>,
    /// Images that cannot be pulled, and the word for it.
    broken: BTreeMap<String, &'static str>,
    /// Images whose pulls do not end.
    slow: BTreeSet<String>,
    /// Everything the engine asked for.
    log: Vec<String>,
    statuses: Vec<ImageCacheStatus>,
    pulls: BTreeMap<u64, Vec<String>>,
    /// The watch tells of a write before the write is answered.
    watch_is_faster: bool,
}

fn key() -> CacheKey {
    CacheKey {
        namespace: "ns".into(),
        name: "a".into(),
    }
}

fn node(name: &str) -> NodeName {
    NodeName(name.into())
}

fn facts(labels: &[(&str, &str)]) -> NodeFacts {
    NodeFacts {
        labels: labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ready: true,
        ..NodeFacts::default()
    }
}

/// Images and the labels that select nodes.
type Lists<'a> = [(&'a [&'a str], &'a [(&'a str, &'a str)])];

fn spec(lists: &Lists<'_>) -> ImageCacheSpec {
    ImageCacheSpec {
        cache_spec: lists
            .iter()
            .map(|(images, selector)| CacheSpecEntry {
                images: images.iter().map(ToString::to_string).collect(),
                node_selector: facts(selector).labels,
                ..CacheSpecEntry::default()
            })
            .collect(),
        ..ImageCacheSpec::default()
    }
}

impl World {
    fn new(nodes: &[&str]) -> Self {
        let mut world = Self {
            engine: Engine::new(Settings::default()),
            now: Now {
                tick: Tick(1000),
                wall: Timestamp(1_700_000_000),
            },
            version: 1,
            object: BTreeMap::new(),
            held: BTreeMap::new(),
            broken: BTreeMap::new(),
            slow: BTreeSet::new(),
            log: Vec::new(),
            statuses: Vec::new(),
            pulls: BTreeMap::new(),
            watch_is_faster: false,
        };
        for name in nodes {
            world.join(name, &[]);
        }
        world.tell(Event::Synced(Source::Nodes));
        world.tell(Event::Synced(Source::Pullers));
        world
    }

    fn lead(&mut self) {
        self.tell(Event::Synced(Source::Caches));
        self.tell(Event::Leadership(Some(1)));
        self.run();
    }

    fn join(&mut self, name: &str, labels: &[(&str, &str)]) {
        self.tell(Event::NodeApplied(node(name), facts(labels)));
        self.puller(name);
    }

    fn puller(&mut self, name: &str) {
        let puller = Puller {
            instance: format!("pod-{name}").into(),
            address: ([10, 0, 0, 1], 7443).into(),
        };
        self.tell(Event::PullerChanged(node(name), Some(puller)));
    }

    fn tell(&mut self, event: Event) {
        self.engine.handle(self.now, event);
    }

    fn apply(&mut self, change: impl FnOnce(&mut CacheObject)) {
        self.version += 1;
        let version = self.version.to_string();
        let object = self.object.entry(key()).or_insert_with(|| CacheObject {
            key: key(),
            uid: "u".into(),
            resource_version: String::new(),
            generation: 1,
            spec: ImageCacheSpec::default(),
            status: ImageCacheStatus::default(),
            refresh: None,
            purge: None,
            deleting: false,
            finalizer: false,
        });
        change(object);
        object.resource_version = version;
        let object = object.clone();
        self.tell(Event::CacheApplied(Box::new(object)));
    }

    fn create(&mut self, spec: ImageCacheSpec) {
        self.apply(|object| object.spec = spec);
    }

    fn edit(&mut self, spec: ImageCacheSpec) {
        self.apply(|object| {
            object.spec = spec;
            object.generation += 1;
        });
    }

    fn wait(&mut self, seconds: u64) {
        self.now.tick.0 += seconds * 1000;
        self.now.wall.0 += i64::try_from(seconds).unwrap();
        self.run();
    }

    fn run(&mut self) {
        let mut queue = VecDeque::new();
        for _ in 0..200 {
            let mut out = Vec::new();
            self.engine.poll(self.now, &mut out);
            queue.extend(out);
            let Some(command) = queue.pop_front() else {
                return;
            };
            self.carry_out(command);
        }
        panic!(
            "the engine does not come to rest: {:#?}",
            &self.log[self.log.len() - 20..]
        );
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::StartBatch(batch) => self.batch(&batch),
            Command::CancelPulls(cancel) => {
                self.log.push(format!(
                    "cancel {} {}",
                    cancel.node,
                    cancel.references.join(" ")
                ));
                let asked = self.pulls.get(&cancel.batch.0).cloned().unwrap_or_default();
                let outcomes = asked
                    .iter()
                    .enumerate()
                    .filter(|(_, name)| cancel.references.iter().any(|r| **r == ***name))
                    .map(|(index, _)| ImageOutcome::new(index, ImageResult::Cancelled))
                    .collect();
                self.tell(Event::Outcomes(cancel.batch, outcomes));
                self.tell(Event::BatchEnded(cancel.batch, BatchEnd::Done));
            }
            Command::WriteStatus {
                key,
                status,
                resource_version,
            } => {
                let object = self.object.get_mut(&key).unwrap();
                if object.resource_version != resource_version {
                    self.tell(Event::StatusWritten(key, Err(WriteError::Conflict)));
                    return;
                }
                self.version += 1;
                object.resource_version = self.version.to_string();
                object.status = (*status).clone();
                self.statuses.push(*status);
                let version = object.resource_version.clone();
                if self.watch_is_faster {
                    let object = object.clone();
                    self.tell(Event::CacheApplied(Box::new(object)));
                }
                self.tell(Event::StatusWritten(key, Ok(version)));
            }
            Command::ClearAnnotation {
                key,
                annotation,
                value,
            } => {
                self.log.push(format!("clear {annotation} {value:?}"));
                self.version += 1;
                let version = self.version.to_string();
                let object = self.object.get_mut(&key).unwrap();
                if annotation.contains("purge") {
                    object.purge = None;
                } else {
                    object.refresh = None;
                }
                object.resource_version.clone_from(&version);
                self.tell(Event::AnnotationCleared(key, Ok(Some(version))));
            }
            Command::EmitEvent {
                reason, message, ..
            } => self.log.push(format!("event {reason}: {message}")),
            Command::SetFinalizer { .. } => unreachable!("nothing is held yet"),
            Command::RaiseTerm { seen_term } => self.log.push(format!("raise {seen_term}")),
        }
    }

    fn batch(&mut self, batch: &Batch) {
        let held = self.held.entry(batch.node.to_string()).or_default();
        let names: Vec<String> = match &batch.work {
            Work::Pull { images, .. } => images.iter().map(|i| i.reference.to_string()).collect(),
            Work::Remove { references, .. } | Work::Check { references } => {
                references.iter().map(ToString::to_string).collect()
            }
        };
        let verb = match &batch.work {
            Work::Pull { .. } => "pull",
            Work::Remove { .. } => "remove",
            Work::Check { .. } => "check",
        };
        self.log
            .push(format!("{verb} {} {}", batch.node, names.join(" ")));
        let mut outcomes = Vec::new();
        let mut open = false;
        for (index, name) in names.iter().enumerate() {
            let result = match &batch.work {
                Work::Pull { .. } if self.slow.contains(name) => {
                    open = true;
                    continue;
                }
                Work::Pull { .. } => match self.broken.get(name) {
                    Some(reason) => ImageResult::Failed {
                        reason: (*reason).to_owned(),
                        message: "as planned".to_owned(),
                    },
                    None if held.insert(name.clone()) => ImageResult::Pulled,
                    None => ImageResult::Present,
                },
                Work::Remove { .. } if held.remove(name) => ImageResult::Removed,
                Work::Check { .. } if held.contains(name) => ImageResult::Present,
                _ => ImageResult::Absent,
            };
            outcomes.push(ImageOutcome::new(index, result));
        }
        self.pulls.insert(batch.id.0, names);
        self.tell(Event::Outcomes(batch.id, outcomes));
        if !open {
            self.tell(Event::BatchEnded(batch.id, BatchEnd::Done));
        }
    }

    fn status(&self) -> &ImageCacheStatus {
        &self.object[&key()].status
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let found = self
            .status()
            .conditions
            .iter()
            .find(|c| c.type_ == type_)
            .unwrap();
        (found.status.clone(), found.reason.clone())
    }

    fn told(&self) -> (&str, &str) {
        (&self.status().status, &self.status().reason)
    }

    fn count(&self, prefix: &str) -> usize {
        self.log
            .iter()
            .filter(|line| line.starts_with(prefix))
            .count()
    }

    fn held(&self, node: &str) -> Vec<&str> {
        self.held
            .get(node)
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }
}

#[test]
fn a_new_cache_is_pulled_to_every_node_and_says_so() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    world.lead();
    assert_eq!(world.told(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().ready, "2/2");
    assert_eq!(
        world.condition("Ready"),
        ("True".into(), "AllImagesPresent".into())
    );
    assert_eq!(
        world.condition("Progressing"),
        ("False".into(), "Idle".into())
    );
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(
        (
            world.count("pull"),
            world.count("check"),
            world.count("remove")
        ),
        (2, 0, 0)
    );
    assert_eq!(world.count("event ImageCacheCreate"), 2);
}

#[test]
fn begin_and_end_are_told_once_also_when_the_watch_is_faster_than_the_answer() {
    let mut world = World::new(&["n1"]);
    world.watch_is_faster = true;
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    assert_eq!(world.count("event ImageCacheCreate"), 2);
}

#[test]
fn names_stand_in_the_status_before_their_first_pull() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    let first = &world.statuses[0];
    assert_eq!(first.status, "Processing");
    assert_eq!(first.applied_images.len(), 1);
    assert_eq!(first.applied_images[0].name, "r.test/a:1");
}

#[test]
fn a_selector_that_matches_nothing_is_no_failure() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[("tier", "backend")])]));
    world.lead();
    assert_eq!(
        world.told(),
        ("NoImagesPulledOrDeleted", "ImageCacheCreate")
    );
    assert_eq!(
        world.condition("Ready"),
        ("True".into(), "NoEligibleNodes".into())
    );
    assert_eq!(world.count("pull"), 0);
}

#[test]
fn an_image_dropped_from_the_list_goes_from_the_nodes_and_an_added_one_comes() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    world.lead();
    world.edit(spec(&[(&["r.test/b:1", "r.test/c:1"], &[])]));
    world.run();
    assert_eq!(world.told(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n2"), ["r.test/b:1", "r.test/c:1"]);
    world.wait(2);
    let names: Vec<_> = world
        .status()
        .applied_images
        .iter()
        .map(|a| a.name.as_str())
        .collect();
    assert_eq!(names, ["r.test/b:1", "r.test/c:1"]);
}

#[test]
fn one_failed_image_fails_the_operation_and_its_healing_mends_the_status() {
    let mut world = World::new(&["n1", "n2"]);
    world
        .broken
        .insert("r.test/b:1".into(), "RegistryUnavailable");
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    world.lead();
    assert_eq!(world.told(), ("Failed", "ImageCacheCreate"));
    assert_eq!(world.status().failures["r.test/b:1"].len(), 2);
    assert_eq!(
        world.status().failures["r.test/b:1"][0].reason,
        "RegistryUnavailable"
    );
    assert_eq!(
        world.condition("Degraded"),
        ("True".into(), "PullFailed".into())
    );
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.broken.clear();
    world.wait(20);
    world.wait(2);
    assert_eq!(world.told(), ("Succeeded", "ImageCacheCreate"));
    assert!(world.status().failures.is_empty());
}

#[test]
fn what_the_registry_does_not_have_is_asked_for_again_only_by_a_refresh() {
    let mut world = World::new(&["n1"]);
    world.broken.insert("r.test/b:1".into(), "ImageNotFound");
    world.create(spec(&[(&["r.test/b:1"], &[])]));
    world.lead();
    world.wait(200);
    assert_eq!(world.count("pull"), 1);
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    assert_eq!(world.count("pull"), 2);
}

#[test]
fn a_name_that_does_not_parse_fails_alone() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1", "UPPER/case:x"], &[])]));
    world.lead();
    assert_eq!(world.told(), ("Failed", "ImageCacheCreate"));
    assert_eq!(
        world.status().failures["UPPER/case:x"][0].reason,
        "InvalidImageName"
    );
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn an_empty_refresh_annotation_is_removed_when_done_and_before_the_end_is_written() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.held.clear();
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    assert_eq!(world.told(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(world.count("clear kubefledged.io/refresh-imagecache"), 1);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.wait(10);
    assert_eq!(world.count("pull"), 2);
}

#[test]
fn a_refresh_token_is_handled_once_and_left_in_place() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.apply(|object| object.refresh = Some("t1".into()));
    world.run();
    assert_eq!(world.told(), ("Succeeded", "ImageCacheRefresh"));
    assert_eq!(world.status().last_handled_refresh.as_deref(), Some("t1"));
    let pulls = world.count("pull");
    world.apply(|_| {});
    world.run();
    assert_eq!(world.count("pull"), pulls);
    assert_eq!(world.count("clear"), 0);
}

#[test]
fn a_purge_empties_the_nodes_and_the_cache_stays_purged_until_a_refresh() {
    let mut world = World::new(&["n1", "n2"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.apply(|object| object.purge = Some(String::new()));
    world.run();
    assert_eq!(world.told(), ("Succeeded", "ImageCachePurge"));
    assert_eq!(
        world.status().message,
        "All cached images succesfully deleted from respective nodes"
    );
    assert!(world.held("n1").is_empty() && world.held("n2").is_empty());
    world.wait(2000);
    assert!(
        world.held("n1").is_empty(),
        "intervals do not bring it back"
    );
    assert_eq!(world.condition("Ready"), ("False".into(), "Purged".into()));
    world.apply(|object| object.refresh = Some(String::new()));
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    assert_eq!(world.told(), ("Succeeded", "ImageCacheRefresh"));
}

#[test]
fn a_node_that_joins_gets_its_images_without_an_operation() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.join("n2", &[]);
    world.run();
    assert_eq!(world.held("n2"), ["r.test/a:1"]);
    world.wait(2);
    assert_eq!(world.told(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().ready, "2/2");
    assert_eq!(world.count("event ImageCacheCreate"), 2);
}

#[test]
fn a_cordoned_node_is_neither_awaited_nor_failed() {
    let mut world = World::new(&["n1", "n2"]);
    world.tell(Event::NodeApplied(
        node("n2"),
        NodeFacts {
            unschedulable: true,
            ..facts(&[])
        },
    ));
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    assert_eq!(world.told(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(world.status().ready, "1/1");
    assert!(world.held("n2").is_empty());
}

#[test]
fn a_node_without_a_puller_is_awaited_for_the_grace_time_and_then_fails_alone() {
    let mut world = World::new(&["n1"]);
    world.tell(Event::NodeApplied(node("n2"), facts(&[])));
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    assert_eq!(world.told().0, "Processing");
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    world.wait(121);
    assert_eq!(world.told(), ("Failed", "ImageCacheCreate"));
    assert_eq!(
        world.status().failures["r.test/a:1"][0].reason,
        "PullerUnavailable"
    );
    world.puller("n2");
    world.run();
    world.wait(2);
    assert_eq!(world.told().0, "Succeeded");
}

#[test]
fn a_new_leader_looks_and_does_not_begin_anew() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1", "r.test/b"], &[])]));
    world.lead();
    let written = world.statuses.len();
    world.log.clear();
    world.tell(Event::Leadership(None));
    world.run();
    world.tell(Event::Leadership(Some(2)));
    world.run();
    assert_eq!(world.log, ["check n1 r.test/a:1 r.test/b"]);
    assert_eq!(world.told(), ("Succeeded", "ImageCacheCreate"));
    assert_eq!(
        world.statuses.len(),
        written,
        "nothing changed, nothing is written"
    );
}

#[test]
fn an_image_that_was_lost_is_seen_by_the_next_check_and_pulled_again() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.held.clear();
    world.wait(340);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
}

#[test]
fn an_image_that_another_cache_wants_stays_where_that_one_wants_it() {
    let mut world = World::new(&["n1", "n2"]);
    world.tell(Event::NodeApplied(node("n1"), facts(&[("tier", "x")])));
    world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
    let mut other = world.object[&key()].clone();
    other.key = CacheKey {
        namespace: "ns".into(),
        name: "other".into(),
    };
    other.uid = "v".into();
    other.spec = spec(&[(&["r.test/a:1"], &[("tier", "x")])]);
    world.object.insert(other.key.clone(), other.clone());
    world.tell(Event::CacheApplied(Box::new(other)));
    world.lead();
    world.edit(spec(&[(&["r.test/b:1"], &[])]));
    world.run();
    assert_eq!(world.held("n1"), ["r.test/a:1", "r.test/b:1"]);
    assert_eq!(world.held("n2"), ["r.test/b:1"]);
    assert_eq!(world.told(), ("Succeeded", "ImageCacheUpdate"));
}

#[test]
fn an_edit_during_a_pull_ends_what_it_no_longer_wants() {
    let mut world = World::new(&["n1"]);
    world.slow.insert("r.test/big:1".into());
    world.create(spec(&[(&["r.test/big:1"], &[])]));
    world.lead();
    assert_eq!(world.told().0, "Processing");
    world.edit(spec(&[(&["r.test/b:1"], &[])]));
    world.run();
    assert_eq!(world.count("cancel n1 r.test/big:1"), 1);
    assert_eq!(world.told(), ("Succeeded", "ImageCacheUpdate"));
    assert_eq!(world.held("n1"), ["r.test/b:1"]);
}

#[test]
fn deleting_the_object_leaves_its_images_on_the_nodes() {
    let mut world = World::new(&["n1"]);
    world.create(spec(&[(&["r.test/a:1"], &[])]));
    world.lead();
    world.object.clear();
    world.tell(Event::CacheDeleted(key()));
    world.wait(1000);
    assert_eq!(world.held("n1"), ["r.test/a:1"]);
    assert_eq!(world.count("remove"), 0);
}

#[test]
fn a_missing_secret_is_named_once_and_hinders_nothing() {
    let mut world = World::new(&["n1"]);
    let mut wanted = spec(&[(&["r.test/a:1"], &[])]);
    wanted.image_pull_secrets = vec![PullSecretReference { name: "s".into() }];
    world.create(wanted);
    world.lead();
    world.tell(Event::SecretsMissing(key(), vec!["s".into()]));
    world.tell(Event::SecretsMissing(key(), vec!["s".into()]));
    world.run();
    assert_eq!(world.count("event ImagePullSecretNotFound"), 1);
    assert_eq!(world.told().0, "Succeeded");
}

#[test]
fn the_same_events_give_the_same_commands() {
    let story = || {
        let mut world = World::new(&["n1", "n2", "n3"]);
        world.broken.insert("r.test/b:1".into(), "ErrImagePull");
        world.create(spec(&[(&["r.test/a:1", "r.test/b:1"], &[])]));
        world.lead();
        world.wait(500);
        world.edit(spec(&[(&["r.test/c:1"], &[])]));
        world.wait(500);
        world.log
    };
    assert_eq!(story(), story());
}
