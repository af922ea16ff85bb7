//! Installing and removing, for the tests that begin and end with nothing installed. The images are
//! in the cluster's registry, which stands for ghcr.io: `hack/publish`. Nothing is on the nodes beforehand.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{Cluster, demo};

/// The repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

impl Cluster {
    /// Runs shell commands as a user types them, in the repository; what they said.
    pub fn shell(&self, commands: &str) -> anyhow::Result<String> {
        let output = Command::new(&self.program)
            .args(["run", "bash", "-euo", "pipefail", "-c", commands])
            .current_dir(ROOT)
            .output()
            .context("cannot run hack/cluster")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{commands}\n{said}{complaint}");
        Ok(said)
    }

    /// Removes all of ours, and what tests of an installation leave.
    pub fn bare(&self) -> anyhow::Result<()> {
        self.shell(
            "helm uninstall kubefledged -n kube-fledged --ignore-not-found --wait --timeout 60s ||
               helm uninstall kubefledged -n kube-fledged --no-hooks --wait
             kubectl delete validatingwebhookconfiguration kubefledged-webhook-server --ignore-not-found
             kubectl delete crd imagecaches.kubefledged.io --ignore-not-found --timeout=60s
             kubectl delete clusterrole,clusterrolebinding --ignore-not-found kubefledged-controller kubefledged-cleanup
             kubectl delete namespace kube-fledged team-a team-b second old --ignore-not-found --timeout=120s",
        )
        .map(drop)
    }

    /// The chart, as the README installs it, with more arguments for Helm.
    pub fn install_chart(&self, args: &str) -> anyhow::Result<String> {
        let command = format!(
            "kubectl apply -f deploy/kubefledged-namespace.yaml
             helm upgrade --install kubefledged charts/kubefledged -n kube-fledged --wait --timeout 120s {args}"
        );
        let said = self.shell(&command)?;
        self.shell(
            "kubectl wait --for=jsonpath='{.webhooks[0].clientConfig.caBundle}' --timeout=60s \
             validatingwebhookconfiguration/kubefledged-webhook-server",
        )?;
        Ok(said)
    }

    /// What there is of ours, whatever its kind: `KIND.GROUP/NAME` each, without what comes and goes
    /// by itself.
    pub fn ours(&self) -> anyhow::Result<Vec<String>> {
        let said = self.shell(
            "kinds=$(kubectl api-resources --verbs=list,delete -o name | grep -v -e ^events -e ^pods -e ^replicasets -e ^apiservices | paste -sd ,)
             kubectl get $kinds -A -o name 2>/dev/null | grep fledged | sort || true",
        )?;
        Ok(said.lines().map(ToOwned::to_owned).collect())
    }

    /// Waits until this alone is left of ours. Owned objects go a moment after their owner.
    pub fn until_left(&self, expected: &[&str]) -> anyhow::Result<()> {
        let mut left = Vec::new();
        for _ in 0..30 {
            left = self.ours()?;
            if left == expected {
                return Ok(());
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        anyhow::bail!("{left:?} is left instead of {expected:?}")
    }

    /// Nodes whose runtime pins, and whether it does so with this image.
    pub fn pins(&self, image: &str) -> anyhow::Result<Vec<(String, bool)>> {
        let mut pins = Vec::new();
        for node in self.nodes()? {
            if self.runtime(&node)?.starts_with("containerd://2") {
                let pinned = self.pinned(&node)?.contains(image);
                pins.push((node, pinned));
            }
        }
        anyhow::ensure!(!pins.is_empty(), "a node with containerd 2 is needed");
        Ok(pins)
    }

    /// An `ImageCache` team-a/pinned of the image web, to be pinned and purged: it has the finalizer, and a
    /// pin wherever that is possible.
    pub fn pinned_cache(&self) -> anyhow::Result<()> {
        self.clean("team-a")?;
        let spec = serde_json::json!({
            "cacheSpec": [{"images": [demo("web")]}],
            "retention": "Pinned",
            "deletionPolicy": "Purge",
        });
        self.create("team-a", "pinned", &spec)?;
        let status = self.ended("team-a", "pinned", "ImageCacheCreate")?;
        anyhow::ensure!(status["status"] == "Succeeded", "{status}");
        let finalizers = self.finalizers()?;
        anyhow::ensure!(finalizers == r#"["kubefledged.io/purge"]"#, "{finalizers}");
        let pins = self.pins(&demo("web"))?;
        anyhow::ensure!(pins.iter().all(|(_, pinned)| *pinned), "{pins:?}");
        Ok(())
    }

    /// Of the object of [`Cluster::pinned_cache`].
    pub fn finalizers(&self) -> anyhow::Result<String> {
        self.shell("kubectl get ic pinned -n team-a -o jsonpath='{.metadata.finalizers}'")
    }

    /// Waits until a shell command succeeds and says something.
    pub fn eventually(&self, limit: Duration, command: &str) -> anyhow::Result<String> {
        self.until(limit, command, || {
            Ok(self
                .shell(command)
                .ok()
                .filter(|said| !said.trim().is_empty()))
        })
    }
}

/// A copy of the chart with another definition of `ImageCache`. It goes with this.
#[derive(Debug)]
pub struct Variant(PathBuf);

impl Variant {
    /// `edit` gets the schema of `ImageCache`.
    pub fn new(name: &str, edit: impl FnOnce(&mut Value)) -> anyhow::Result<Self> {
        let name = format!("kubefledged-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let variant = Self(directory);
        let copied = Command::new("cp")
            .args(["-r", "charts/kubefledged"])
            .arg(&variant.0)
            .current_dir(ROOT)
            .status()?;
        anyhow::ensure!(copied.success(), "cannot copy the chart");
        let mut definition = kubefledged_chart::yaml("charts/kubefledged/files/crd.yaml")?;
        edit(&mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]);
        // JSON is YAML.
        std::fs::write(variant.definition(), definition.to_string())?;
        Ok(variant)
    }

    /// Takes a block of values away, with the template that reads it: a chart from before there was this
    /// block.
    pub fn without(self, block: &str, template: &str) -> anyhow::Result<Self> {
        for file in ["values.yaml", "files/defaults.yaml"] {
            let path = self.0.join(file);
            let text = std::fs::read_to_string(&path)?;
            let mut values = kubefledged_chart::parse(&text)?.pop().unwrap_or_default();
            let removed = values.as_object_mut().and_then(|map| map.remove(block));
            removed.with_context(|| format!("{file} has no {block}"))?;
            std::fs::write(path, values.to_string())?;
        }
        std::fs::remove_file(self.0.join("templates").join(template))
            .context("no such template")?;
        Ok(self)
    }

    /// The chart's directory.
    pub fn chart(&self) -> std::path::Display<'_> {
        self.0.display()
    }

    /// The file with the definition.
    pub fn definition(&self) -> PathBuf {
        self.0.join("files/crd.yaml")
    }
}

impl Drop for Variant {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The blocks of shell commands in a Markdown file of the repository, in order. Those marked
/// `sh machine` are for a machine without a cluster and left out.
pub fn shell_blocks(path: &str) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(ROOT).join(path)).context(path.to_owned())?;
    let mut blocks = Vec::new();
    let mut current: Option<Vec<&str>> = None;
    for line in text.lines() {
        match &mut current {
            None if line == "```sh" => current = Some(Vec::new()),
            Some(lines) if line == "```" => {
                blocks.push(lines.join("\n"));
                current = None;
            }
            Some(lines) => lines.push(line),
            None => {}
        }
    }
    Ok(blocks)
}
