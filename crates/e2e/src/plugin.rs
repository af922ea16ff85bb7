//! `kubectl fledged` as people run it: the binary beside the tests, with the cluster's kubeconfig.

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::Context as _;

use crate::Cluster;

/// What the plugin said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// The binary, which `make e2e` builds before the tests.
pub fn binary() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().and_then(|deps| deps.parent());
    let path = folder.context("no folder")?.join("kubectl-fledged");
    anyhow::ensure!(
        path.exists(),
        "{} is missing: cargo build --package kubectl-fledged",
        path.display()
    );
    Ok(path)
}

impl Cluster {
    /// Runs the plugin in node 1's network.
    pub fn fledged(&self, args: &[&str]) -> anyhow::Result<Said> {
        self.plugin(&["run"], args)
    }

    /// Runs the plugin inside node 1, where the names of the registries resolve.
    pub fn fledged_on_node(&self, args: &[&str]) -> anyhow::Result<Said> {
        self.plugin(&["node", "1"], args)
    }

    /// Starts the plugin in node 1's network; its standard output can be read.
    pub fn fledged_in_background(&self, args: &[&str]) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg("run").arg(binary()?).args(args);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().context("cannot run hack/cluster")
    }

    fn plugin(&self, how: &[&str], args: &[&str]) -> anyhow::Result<Said> {
        let output = Command::new(&self.program)
            .args(how)
            .arg(binary()?)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("cannot run hack/cluster")?;
        said(output)
    }

    /// Repeats a command of the plugin until its answer has this part, with an exit code other than 0.
    pub fn fledged_explains(&self, args: &[&str], part: &str) -> anyhow::Result<Said> {
        let what = format!("kubectl fledged {} says {part}", args.join(" "));
        let mut last = String::new();
        let found = self.until(Duration::from_secs(60), &what, || {
            let said = self.fledged(args)?;
            last = format!("{}{}", said.out, said.err);
            Ok((said.code != 0 && said.out.contains(part)).then_some(said))
        });
        found.with_context(|| format!("it says: {last}"))
    }
}

fn said(output: Output) -> anyhow::Result<Said> {
    Ok(Said {
        code: output.status.code().context("it was killed")?,
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}
