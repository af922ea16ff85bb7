//! The real controller as a child process, and what it costs.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::Context as _;
use tokio::process::{Child, Command};

use crate::cluster::NAMESPACE;

/// Clock ticks of /proc, in Hz; the same on every Linux.
const TICKS: f64 = 100.0;

/// How to start it.
#[derive(Clone, Debug)]
pub struct Program {
    /// The binary.
    pub path: PathBuf,
    /// Where its output goes.
    pub logs: PathBuf,
    /// More flags.
    pub flags: Vec<String>,
}

/// One running controller.
pub struct Controller {
    child: Child,
    pid: u32,
    log: PathBuf,
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of CPU since its start.
    pub cpu: f64,
    /// Largest resident memory since the last reset, MiB.
    pub peak_rss: f64,
    /// Resident memory now, MiB.
    pub rss: f64,
    /// Open files, sockets among them.
    pub files: usize,
}

impl Program {
    /// Starts a controller under this name; its probes listen on `port`.
    pub fn start(&self, name: &str, port: u16) -> anyhow::Result<Controller> {
        let log = self.logs.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&self.path);
        if !self
            .flags
            .iter()
            .any(|flag| flag.starts_with("--debug-address"))
        {
            // Several controllers are one machine's here.
            command.args(["--debug-address", "off"]);
        }
        let child = command
            .args(["--namespace", NAMESPACE, "--pod-name", name])
            .args(["--http-port", &port.to_string(), "--log-format", "text"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        let pid = child.id().context("the controller ended at once")?;
        Ok(Controller { child, pid, log })
    }
}

impl Controller {
    /// What it has used so far.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        usage(self.pid)
    }

    /// Lines in its log so far; it writes INFO and above.
    pub fn lines(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(&self.log)
            .with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(text.lines().count() as u64)
    }

    /// Peak memory counts from now on.
    pub fn reset_peak(&self) -> anyhow::Result<()> {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5").context("clear_refs")
    }

    /// SIGKILL: nothing is released, nothing is said.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot end the controller")
    }

    /// SIGTERM: it gives its Lease back.
    pub async fn terminate(mut self) -> anyhow::Result<()> {
        Command::new("kill")
            .args(["-TERM", &self.pid.to_string()])
            .status()
            .await?;
        tokio::time::timeout(Duration::from_secs(30), self.child.wait())
            .await
            .context("the controller does not end")??;
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("the controller ended: {status}; see its log"),
        }
    }
}

/// What a process has used, by /proc.
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // The command's name may hold blanks: fields are counted from the last bracket.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| {
            line.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<f64>()
                .ok()
        })
        .unwrap_or(0.0)
    };
    Ok(Usage {
        cpu: (ticks(11) + ticks(12)) / TICKS,
        peak_rss: kib("VmHWM:") / 1024.0,
        rss: kib("VmRSS:") / 1024.0,
        files: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
    })
}

/// Of the simulator itself.
pub fn own_usage() -> anyhow::Result<Usage> {
    usage(std::process::id())
}

/// How often things are looked at while a scenario runs.
pub const SAMPLE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_lives_uses_memory() {
        let usage = own_usage().unwrap();
        assert!(usage.peak_rss > 0.5, "{usage:?}");
        assert!(super::usage(u32::MAX).is_err());
    }
}
