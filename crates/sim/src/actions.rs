//! What the steps of a script do to the World, and how the bad day ends.

use kubefledged_api_types::{
    DeletionPolicy, ImageCacheSpec, PullSecretReference,
    names::{EXCLUDE_LABEL, status},
    workloads::ImagePlace,
};
use kubefledged_engine::{NodeFacts, Workload, WorkloadImage, WorkloadKey};

use crate::{
    api::{Key, Object, Resource, Wish},
    controller::Controller,
    network::Side,
    node::Node,
    registry::{NAMES, PAUSE, normalized},
    runtime::{Flavor, Runtime},
    script::{Action, CACHES, SourceKey, Trouble, WORKLOADS, ZONES},
    world::{Event, World},
};

/// A cache's name in the API server.
pub fn cache_name(cache: usize) -> String {
    let (namespace, name) = CACHES[cache];
    format!("{namespace}/{name}")
}

/// A workload's name in the API server.
fn workload_name(workload: usize) -> String {
    let (namespace, name) = WORKLOADS[workload];
    format!("{namespace}/{name}")
}

impl World {
    /// Carries out a step.
    pub fn act(&mut self, action: Action) {
        // Nodes that a shorter script does without.
        let joins = matches!(action, Action::Join(..));
        if action.node().is_some_and(|n| n >= self.nodes.len()) && !joins {
            return;
        }
        match action {
            Action::Apply(cache, spec) => self.apply(cache, *spec),
            Action::Delete(cache) => self.delete(cache),
            Action::Refresh(cache, value) => self.ask_refresh(cache, value),
            Action::Purge(cache, value) => self.ask_purge(cache, value),
            Action::Deploy(..) | Action::Undeploy(_) => self.act_on_workloads(&action),
            Action::Touch(cache) => self.change(cache, false, |_| {}),
            Action::Suspend(cache, on) => self.edit(cache, |spec| spec.suspend = on),
            Action::Retain(cache) => self.edit(cache, |spec| {
                spec.deletion_policy = Some(DeletionPolicy::Retain);
            }),
            // One that has never seen it would begin in the term of the last leader.
            Action::DeleteLease if self.controllers.iter().all(Controller::knows_the_lease) => {
                self.api.lease = None;
                self.api.budgets.clear();
            }
            Action::DeleteLease => {}
            Action::Join(node, flavor) => self.join_as(node, flavor),
            Action::Leave(node) => self.leave(node),
            Action::Relabel(node, zone) => self.facts(node, |facts| {
                facts
                    .labels
                    .insert("zone".to_owned(), ZONES[zone].to_owned());
            }),
            Action::Cordon(node, on) => self.facts(node, |facts| facts.unschedulable = on),
            Action::Ready(node, on) => self.facts(node, |facts| facts.ready = on),
            Action::Exclude(node, on) => self.facts(node, |facts| {
                facts
                    .labels
                    .insert(EXCLUDE_LABEL.to_owned(), on.to_string());
            }),
            Action::Rejoin(..)
            | Action::Taint(..)
            | Action::Retaint(_)
            | Action::DropCondition(_) => self.act_on_gate(&action),
            Action::Reboot(node, wiped) => self.reboot(node, wiped),
            Action::PullerRestarts(node) => self.puller_ends(node, false),
            Action::PullerReplaced(node) => self.puller_ends(node, true),
            Action::RuntimeRestarts(node, wait) => self.runtime_restarts(node, wait),
            Action::Collect(node, most) => self.collect(node, most),
            Action::Run(node, name) => self.run_container(node, NAMES[name]),
            Action::Mount(node, name) => self.nodes[node].runtime.mount(NAMES[name]),
            Action::Stop(node) => self.nodes[node].runtime.stop_containers(),
            Action::ForeignPull(node, name) => self.after(2_000, Event::ForeignPulled(node, name)),
            Action::ForeignPin(node, name) => self.nodes[node].runtime.pin(NAMES[name]),
            Action::MoveTag(name) => self.registries.move_tag(NAMES[name]),
            Action::Crash(who, wait) => self.crash(who, wait),
            Action::Pause(who, wait) => {
                let until = self.now + wait;
                self.controllers[who].paused_until = until;
                self.controllers[who].disturbed = until;
            }
            Action::Skew(who, seconds) => self.controllers[who].skew = seconds,
            Action::Trouble(trouble, lasts) => self.begin(trouble, lasts),
        }
    }

    fn change(&mut self, cache: usize, create: bool, change: impl FnOnce(&mut Object)) {
        let name = cache_name(cache);
        let mut object = match self.api.cache(&name) {
            Some(object) => object.clone(),
            None if create => Object {
                uid: self.api.next_version(),
                generation: 0,
                ..Object::default()
            },
            None => return,
        };
        change(&mut object);
        self.put((SourceKey::Caches, name), Resource::Cache(Box::new(object)));
    }

    fn apply(&mut self, cache: usize, spec: ImageCacheSpec) {
        self.change(cache, true, |object| {
            if object.spec != spec {
                object.generation += 1;
                object.spec = spec;
                object.last_wish = Wish::Spec;
            }
        });
    }

    fn collect(&mut self, node: usize, most: usize) {
        let now = self.now;
        let gone = self.nodes[node].runtime.collect(most, now);
        self.note(|| format!("collected {gone:?}"));
    }

    fn act_on_workloads(&mut self, action: &Action) {
        match action {
            Action::Deploy(workload, images, secret) => self.deploy(*workload, images, *secret),
            Action::Undeploy(workload) => {
                self.remove_resource(&(SourceKey::Workloads, workload_name(*workload)));
            }
            _ => {}
        }
    }

    fn deploy(&mut self, workload: usize, images: &[usize], secret: Option<&str>) {
        let image = |name: &usize| WorkloadImage {
            container: "app".into(),
            place: ImagePlace::Container,
            reference: NAMES[*name].into(),
        };
        let deployed = Workload {
            images: images.iter().map(image).collect(),
            secrets: secret.iter().map(ToString::to_string).collect(),
            service_account: Some("default".into()),
            ..Workload::default()
        };
        let key = (SourceKey::Workloads, workload_name(workload));
        self.put(key, Resource::Workload(deployed));
    }

    fn delete(&mut self, cache: usize) {
        let key = (SourceKey::Caches, cache_name(cache));
        let held = self.api.cache(&key.1).is_some_and(|known| known.finalizer);
        if held {
            self.change(cache, false, |object| object.deleting = true);
        } else {
            self.remove_resource(&key);
        }
    }

    fn ask_refresh(&mut self, cache: usize, value: String) {
        self.change(cache, false, |object| {
            let purge = object.status.purge.as_ref();
            // A purge that is asked for answers a refresh too.
            let handled = object.status.last_handled_purge.as_ref();
            let answered = |value: &String| !value.is_empty() && Some(value) == handled;
            let over = purge.is_some_and(|purge| purge.completion_time.is_some())
                && object.status.status != status::PROCESSING
                && object.purge.as_ref().is_none_or(answered);
            // What is annotated already cannot be asked for once more: the API server sees no change.
            let news = object.refresh.as_ref() != Some(&value);
            object.refresh = Some(value);
            if news {
                object.refresh_during = object.in_progress();
                object.last_wish = Wish::Refresh(over);
            }
        });
    }

    fn ask_purge(&mut self, cache: usize, value: String) {
        self.change(cache, false, |object| {
            let handled =
                !value.is_empty() && object.status.last_handled_purge.as_ref() == Some(&value);
            let news = object.purge.as_ref() != Some(&value) && !handled;
            if news {
                // Half of the annotations are written by whoever writes the spec, as with GitOps. Such a token on
                // an object that nobody has seen is taken for one of a rebuilt cluster.
                object.purge_came_later = object.version % 2 == 0;
                object.purge_during = object.in_progress();
                let seen = value.is_empty() || object.status.observed_generation.is_some();
                let asks = seen || object.purge_came_later;
                object.last_wish = if asks { Wish::Purge } else { Wish::Spec };
            }
            object.purge = Some(value);
        });
    }

    /// A user changes a field that says nothing of what is wanted where.
    fn edit(&mut self, cache: usize, edit: impl FnOnce(&mut ImageCacheSpec)) {
        self.change(cache, false, |object| {
            let before = object.spec.clone();
            edit(&mut object.spec);
            object.generation += i64::from(object.spec != before);
        });
    }

    /// Changes a Node.
    pub fn facts(&mut self, node: usize, change: impl FnOnce(&mut NodeFacts)) {
        let Some(facts) = &mut self.nodes[node].facts else {
            return;
        };
        change(facts);
        let facts = facts.clone();
        let key = (SourceKey::Nodes, self.nodes[node].name.to_string());
        self.put(key, Resource::Node(facts));
    }

    fn join_as(&mut self, node: usize, flavor: Flavor) {
        if node == self.nodes.len() {
            let pause = self.registries.manifest(PAUSE);
            let machine = Node::new(node, Runtime::new(flavor, &pause), self.script.room);
            self.nodes.push(machine);
        }
        if self.nodes.get(node).is_some_and(|n| n.facts.is_none()) {
            self.join(node);
        }
    }

    /// A machine joins the cluster.
    pub fn join(&mut self, node: usize) {
        let name = self.nodes[node].name.to_string();
        let zone = ZONES[node % ZONES.len()];
        let mut facts = NodeFacts {
            labels: [("zone", zone), ("kubernetes.io/hostname", name.as_str())]
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            ready: true,
            taints: self.first_taints(),
            uid: format!("{name}-{}", self.nodes[node].pod),
            created: Some(self.wall()),
            ..NodeFacts::default()
        };
        if self.script.peers.zones {
            let zone = ("topology.kubernetes.io/zone".to_owned(), zone.to_owned());
            facts.labels.extend([zone]);
        }
        self.nodes[node].facts = Some(facts.clone());
        self.put((SourceKey::Nodes, name), Resource::Node(facts));
        self.nodes[node].pod += 1;
        let pod = self.nodes[node].pod;
        let wait = self.rng.between(500, 5_000);
        self.after(wait, Event::PullerStarts(node, pod));
    }

    fn leave(&mut self, node: usize) {
        if self.nodes[node].facts.take().is_none() {
            return;
        }
        self.nodes[node].left = true;
        self.kill_puller(node);
        let name = self.nodes[node].name.to_string();
        self.remove_resource(&(SourceKey::Nodes, name.clone()));
        self.remove_resource(&(SourceKey::Pullers, name));
    }

    fn reboot(&mut self, node: usize, wiped: bool) {
        if self.nodes[node].facts.is_none() {
            return;
        }
        self.facts(node, |facts| facts.ready = false);
        self.kill_puller(node);
        let wait = self.rng.between(5_000, 60_000);
        let runtime = &mut self.nodes[node].runtime;
        runtime.away_until = self.now + wait;
        runtime.stop_containers();
        self.after(wait, Event::Booted(node, wiped));
    }

    /// A machine is up again; a new disk is empty.
    pub fn booted(&mut self, node: usize, wiped: bool) {
        if wiped {
            let flavor = self.nodes[node].runtime.flavor;
            let pause = self.registries.manifest(PAUSE);
            self.nodes[node].runtime = Runtime::new(flavor, &pause);
        }
        self.facts(node, |facts| facts.ready = true);
        if self.nodes[node].facts.is_some() && self.nodes[node].process.is_none() {
            let pod = self.nodes[node].pod;
            self.after(1_000, Event::PullerStarts(node, pod));
        }
    }

    /// A container starts, if its image is there.
    pub fn run_container(&mut self, node: usize, target: &str) {
        let runtime = &mut self.nodes[node].runtime;
        if let Some(id) = runtime.resolve(target)
            && let Some(held) = runtime.images.get_mut(&id)
        {
            held.ran = true;
            runtime.containers.push(id);
        }
    }

    /// The kubelet has pulled a name for a pod.
    pub fn foreign_pulled(&mut self, node: usize, name: usize) {
        let manifest = self.registries.manifest(NAMES[name]);
        let now = self.now;
        let runtime = &mut self.nodes[node].runtime;
        if runtime.away_until > now {
            return;
        }
        runtime.store(NAMES[name], &manifest, now);
        runtime.foreign.insert(normalized(NAMES[name]));
    }

    // === stored things

    /// Stores a resource and tells whoever watches.
    pub fn put(&mut self, key: Key, resource: Resource) {
        let told = key.clone();
        self.api.put(self.now, key, resource);
        self.changed(&told);
    }

    /// Deletes a resource and tells whoever watches.
    pub fn remove_resource(&mut self, key: &Key) {
        if let Some(Resource::Cache(object)) = self.api.now.get(key) {
            let names = object.ever_applied.iter().map(|name| normalized(name));
            self.left.extend(names);
        }
        if self.api.delete(self.now, key) {
            self.changed(key);
        }
    }

    // === troubles

    fn begin(&mut self, trouble: Trouble, lasts: u64) {
        if self.calm {
            return;
        }
        self.troubles.push(trouble);
        self.disturb(trouble);
        self.after(lasts, Event::Over(trouble));
        match trouble {
            Trouble::WatchBroken(who, source) => self.break_watch(who, source),
            Trouble::ApiUnreachable(who) => {
                for source in SourceKey::ALL.into_iter().chain([SourceKey::Workloads]) {
                    self.break_watch(who, source);
                }
            }
            Trouble::CutOff(node) => self.break_links(Side::Network, |link| link.node == node),
            Trouble::DiskFills(node) => {
                self.nodes[node].fills_since = self.now;
                self.check_room(node);
            }
            Trouble::DiskFull(node) | Trouble::DiskTight(node) => self.check_room(node),
            _ => {}
        }
    }

    /// A trouble is over.
    pub fn over(&mut self, trouble: Trouble) {
        let Some(at) = self.troubles.iter().position(|known| *known == trouble) else {
            return;
        };
        self.troubles.swap_remove(at);
        self.disturb(trouble);
        self.note(|| format!("over {trouble:?}"));
        if matches!(
            trouble,
            Trouble::WatchBroken(..) | Trouble::ApiUnreachable(_)
        ) {
            self.mend_watches();
        }
    }

    /// The bad day is over: what was wrong is right again, and stays so.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.note(|| "calm".to_owned());
        for trouble in std::mem::take(&mut self.troubles) {
            self.disturb(trouble);
        }
        for who in 0..2 {
            self.controllers[who].skew = 0;
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].runtime.away_until = self.now;
            // What they kept is removed at last.
            self.nodes[node].runtime.mounts.clear();
        }
        self.mend_watches();
        self.workloads_calm_down();
        for cache in 0..CACHES.len() {
            self.edit(cache, |spec| {
                spec.suspend = false;
                // What the registry did not have is asked for again only by a refresh.
                spec.refresh = None;
                let right = PullSecretReference {
                    name: "right".to_owned(),
                };
                if spec.service_account_name.is_none() && !spec.image_pull_secrets.contains(&right)
                {
                    spec.image_pull_secrets.push(right);
                }
            });
        }
    }

    /// Every workload gets the right password.
    fn workloads_calm_down(&mut self) {
        let all: Vec<(WorkloadKey, Workload)> = self
            .api
            .workloads()
            .map(|(key, workload)| (key, workload.clone()))
            .collect();
        for (key, mut workload) in all {
            workload.secrets = ["right".to_owned()].into();
            let key = (SourceKey::Workloads, key.to_string());
            self.put(key, Resource::Workload(workload));
        }
    }
}
