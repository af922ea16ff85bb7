//! What users do, and a round: work, faults in the middle of it, and all is well in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kubefledged_e2e::{Cluster, demo, faulty};
use serde_json::{Value, json};

use crate::{
    BACKEND, IMAGES, NAMESPACE, RETAINED,
    strike::{Dice, Fault, Striker},
    view::{PATIENCE, View},
};

/// Users, and what they must find in the end.
pub struct Trial {
    pub view: View,
    pub dice: Dice,
    /// What was written and not deleted: images by object.
    pub wanted: BTreeMap<String, BTreeSet<String>>,
    /// Purged and not yet wanted again.
    pub purged: BTreeSet<String>,
    /// Requests that may not be handled yet: field of the status and token.
    asked: BTreeMap<String, (&'static str, String)>,
    tokens: u32,
}

impl Trial {
    pub fn new(seed: u64) -> Self {
        let cluster = Cluster::default();
        cluster.clean(NAMESPACE).unwrap();
        let view = View {
            cluster,
            started: Instant::now(),
        };
        view.label_backend();
        println!("seed {seed}: FAULTS_SEED={seed} repeats it, as far as time does");
        Self {
            view,
            dice: Dice(seed),
            wanted: BTreeMap::new(),
            purged: BTreeSet::new(),
            asked: BTreeMap::new(),
            tokens: 0,
        }
    }

    pub fn spec(name: &str, images: &BTreeSet<String>) -> Value {
        let mut list = json!({"images": images});
        if name == BACKEND {
            list["nodeSelector"] = json!({"tier": "backend"});
        }
        let policy = if name == RETAINED { "Retain" } else { "Purge" };
        json!({"cacheSpec": [list], "deletionPolicy": policy})
    }

    /// Each from one registry only: two names of one image would keep each other on a node.
    pub fn some_images(&mut self) -> BTreeSet<String> {
        let count = 1 + self.dice.roll(3);
        let mut image = || match *self.dice.pick(&IMAGES) {
            name @ ("cache" | "extra") => faulty(name),
            name => demo(name),
        };
        (0..count).map(|_| image()).collect()
    }

    /// One thing that a user does. Where nodes are away nothing is deleted: what lies on them would
    /// stay, and that is as promised.
    pub fn act(&mut self, may_delete: bool) {
        let name = *self.dice.pick(&["one", "two", BACKEND, RETAINED]);
        let action = self.dice.roll(10);
        let known = self.wanted.contains_key(name);
        // What is meant when two wishes stand at a time is the controller's choice.
        self.until_handled(name);
        match action {
            0 if known && may_delete && name != RETAINED => self.delete(name),
            1 if known => self.annotate(name, "purge"),
            2 if known => self.annotate(name, "refresh"),
            _ => self.write(name),
        }
    }

    pub fn write(&mut self, name: &str) {
        let images = self.some_images();
        self.view.say(&format!("  {name} = {images:?}"));
        let spec = Self::spec(name, &images);
        let cluster = &self.view.cluster;
        self.view.insist("an object is written", || {
            cluster.feed("apply", NAMESPACE, name, &spec)
        });
        let before = self.wanted.insert(name.to_owned(), images.clone());
        if before != Some(images) {
            self.purged.remove(name);
        }
    }

    /// A name is used again only after the old object has gone.
    pub fn delete(&mut self, name: &str) {
        self.view.say(&format!("  delete {name}"));
        let delete = format!("delete ic {name} -n {NAMESPACE} --wait=false --ignore-not-found");
        self.view.kubectl(&delete);
        let gone = format!("get ic {name} -n {NAMESPACE} --ignore-not-found -o name");
        self.view.insist("the deleted object has gone", || {
            let left = self.view.cluster.kubectl(&gone)?;
            anyhow::ensure!(left.trim().is_empty(), "{left} is still there");
            Ok(())
        });
        self.wanted.remove(name);
        self.purged.remove(name);
    }

    pub fn annotate(&mut self, name: &str, request: &str) {
        self.tokens += 1;
        let token = format!("t{}", self.tokens);
        self.view.say(&format!("  {request} {name} ({token})"));
        self.view.kubectl(&format!(
            "annotate ic {name} -n {NAMESPACE} --overwrite kubefledged.io/{request}-imagecache={token}"
        ));
        let field = if request == "purge" {
            self.purged.insert(name.to_owned());
            "lastHandledPurge"
        } else {
            self.purged.remove(name);
            "lastHandledRefresh"
        };
        self.asked.insert(name.to_owned(), (field, token));
    }

    pub fn until_handled(&mut self, name: &str) {
        if let Some((field, token)) = self.asked.remove(name) {
            self.view.insist("a request is handled", || {
                let object = self.view.cluster.object(NAMESPACE, name)?;
                anyhow::ensure!(object["status"][field] == token, "{}", object["status"]);
                Ok(())
            });
        }
    }

    /// Waits until all is as it should be, and says how long that took.
    pub fn settle(&self) -> Duration {
        let start = Instant::now();
        let mut last = String::new();
        let settled = self
            .view
            .cluster
            .until(PATIENCE, "all is as it should be", || {
                last = self.amiss().unwrap_or_else(|error| format!("{error:#}"));
                Ok(last.is_empty().then_some(()))
            });
        if let Err(error) = settled {
            for name in self.wanted.keys() {
                println!(
                    "{:#}",
                    self.view
                        .cluster
                        .object(NAMESPACE, name)
                        .unwrap_or_default()["status"]
                );
            }
            panic!("{error:#}\n{last}");
        }
        start.elapsed()
    }

    /// No process of ours ended by a mistake of its own.
    pub fn assert_no_panic(&self) {
        for (pod, log) in self
            .view
            .insist("logs are read", || self.view.cluster.logs())
        {
            assert!(!log.contains("panicked"), "{pod}: {log}");
        }
    }

    /// Work, a fault in the middle of it, more work, and all is well in the end.
    pub fn round(&mut self, faults: &[Fault]) {
        self.view.say(&format!("{faults:?}"));
        let away = [
            Fault::CutNode,
            Fault::ReplaceNode,
            Fault::FreezePuller,
            Fault::KillRuntime,
            Fault::KillPuller,
            Fault::KillKubelet,
        ];
        let may_delete = !faults.iter().any(|fault| away.contains(fault));
        for _ in 0..=self.dice.roll(3) {
            self.act(may_delete);
        }
        let mut striker = Striker {
            view: self.view.clone(),
            dice: Dice(self.dice.roll(1 << 30) as u64),
        };
        std::thread::scope(|scope| {
            let striking = scope.spawn(move || {
                for fault in faults {
                    striker.dice.moment(1500);
                    striker.strike(*fault);
                }
            });
            for _ in 0..=faults.len() {
                self.dice.moment(1500);
                self.act(may_delete);
            }
            striking.join().unwrap();
        });
        self.act(may_delete);
        let took = self.settle();
        let held = self.assert_nothing_leaks();
        self.view
            .say(&format!("  settled in {:.1} s; {held}", took.as_secs_f32()));
    }
}
