//! Kinds of other projects: only the shape of their objects, without whatever acts on them.

use crate::Cluster;

/// The definitions of one file. They are deleted when this is dropped.
pub struct Shapes<'a> {
    cluster: &'a Cluster,
    file: &'static str,
}

impl Cluster {
    /// The definitions of a file, which are not applied yet.
    pub fn shapes(&self, file: &'static str) -> Shapes<'_> {
        Shapes {
            cluster: self,
            file,
        }
    }

    /// Whether the API server would take a document without a doubt.
    pub fn takes(&self, document: &str) -> anyhow::Result<()> {
        let create = ["kubectl", "create", "--dry-run=server"];
        let args = [&create[..], &["--validate=strict", "-f", "-"]].concat();
        self.run(&args, document).map(drop)
    }
}

impl Shapes<'_> {
    /// Gives them to the API server, and waits until it serves them.
    pub fn apply(&self) -> anyhow::Result<()> {
        let file = self.file;
        self.cluster.shell(&format!("kubectl apply -f {file}"))?;
        let wait = "kubectl wait --for=condition=Established --timeout=30s";
        self.cluster.shell(&format!("{wait} -f {file}")).map(drop)
    }
}

impl Drop for Shapes<'_> {
    fn drop(&mut self) {
        let delete = format!("kubectl delete -f {} --ignore-not-found", self.file);
        let _ = self.cluster.shell(&delete);
    }
}
