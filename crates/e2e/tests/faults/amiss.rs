//! What must hold when all is whole again: nodes hold what is desired, and every status is true.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{BACKEND, NAMESPACE, RETAINED, trial::Trial};

impl Trial {
    /// What each node must hold of the test images.
    pub fn desired(&self, node: &str) -> BTreeSet<String> {
        self.wanted
            .iter()
            .filter(|(name, _)| !self.purged.contains(*name))
            .filter(|(name, _)| *name != BACKEND || node == "2")
            .flat_map(|(_, images)| images.clone())
            .collect()
    }

    /// Says what is not as it should be.
    pub fn amiss(&self) -> anyhow::Result<String> {
        let mut amiss = String::new();
        for node in self.view.cluster.nodes()? {
            let held: BTreeSet<String> = self
                .view
                .cluster
                .images(&node)?
                .into_iter()
                .filter(|image| image.contains("/demo/"))
                .collect();
            let desired = self.desired(&node);
            if held != desired {
                writeln!(amiss, "n{node} holds {held:?}, not {desired:?}")?;
            }
        }
        let list = self
            .view
            .cluster
            .kubectl(&format!("get ic -n {NAMESPACE} -o json"))?;
        let list: Value = serde_json::from_str(&list)?;
        let objects = list["items"].as_array().context("no list")?;
        let names: BTreeSet<&str> = objects
            .iter()
            .filter_map(|o| o["metadata"]["name"].as_str())
            .collect();
        let wanted: BTreeSet<&str> = self.wanted.keys().map(String::as_str).collect();
        if names != wanted {
            writeln!(amiss, "there are the objects {names:?}, not {wanted:?}")?;
        }
        for object in objects {
            amiss += &self.amiss_in(object)?;
        }
        Ok(amiss)
    }

    pub fn amiss_in(&self, object: &Value) -> anyhow::Result<String> {
        let mut amiss = String::new();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let status = &object["status"];
        let mut must = |what: &str, is: &Value, should: &Value| {
            if is == should {
                Ok(())
            } else {
                writeln!(amiss, "{name}: {what} is {is}, not {should}")
            }
        };
        let purged = self.purged.contains(name);
        must(
            "observedGeneration",
            &status["observedGeneration"],
            &object["metadata"]["generation"],
        )?;
        must("the last operation", &status["status"], &json!("Succeeded"))?;
        let failures = status["failures"].as_object().cloned().unwrap_or_default();
        must("failures", &json!(failures), &json!({}))?;
        // A purged cache is neither ready nor on its way.
        let (ready, progressing) = if purged {
            ("", "False Purged")
        } else {
            ("True AllImagesPresent", "False Idle")
        };
        for (kind, should) in [
            ("Ready", ready),
            ("Progressing", progressing),
            ("Degraded", "False None"),
            ("Reconciling", ""),
            ("Stalled", ""),
        ] {
            must(kind, &json!(condition(status, kind)), &json!(should))?;
        }
        let applied = status["appliedImages"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let applied: BTreeSet<&str> = applied
            .iter()
            .filter_map(|image| image["name"].as_str())
            .collect();
        // A name that another object wants as well stays listed: it is not gone.
        let others: BTreeSet<&str> = self
            .wanted
            .iter()
            .filter(|(other, _)| *other != name && !self.purged.contains(*other))
            .flat_map(|(_, images)| images.iter().map(String::as_str))
            .collect();
        let own: BTreeSet<&str> = self.wanted[name].iter().map(String::as_str).collect();
        let own = if purged { BTreeSet::new() } else { own };
        let left: BTreeSet<&str> = applied.difference(&others).copied().collect();
        let due: BTreeSet<&str> = own.difference(&others).copied().collect();
        must("appliedImages", &json!(left), &json!(due))?;
        let finalizer = if name == RETAINED {
            json!(null)
        } else {
            json!(["kubefledged.io/purge"])
        };
        must("finalizers", &object["metadata"]["finalizers"], &finalizer)?;
        Ok(amiss)
    }
}

/// Status and reason of a condition.
fn condition(status: &Value, kind: &str) -> String {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let found = conditions.find(|condition| condition["type"] == kind);
    found.map_or_else(String::new, |c| {
        let text = |field: &str| c[field].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("status"), text("reason"))
    })
}
