//! Commands as a document has them, run as they stand there.

use crate::Cluster;

/// What makes the ports of a controller and of node 1's puller ready: the first example of
/// docs/debug.md.
pub const DEBUG: &str = include_str!("../../../docs/debug.md");

/// Headings of a document, and the commands below each that has some.
pub fn examples(document: &str) -> Vec<(&str, Vec<&str>)> {
    let mut examples: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        match line.trim_start_matches('#') {
            heading if heading != line => examples.push((heading.trim(), Vec::new())),
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => {
                if let Some((_, commands)) = examples.last_mut() {
                    commands.push(command);
                }
            }
            _ => {}
        }
    }
    examples.retain(|(_, commands)| !commands.is_empty());
    examples
}

impl Cluster {
    /// Runs commands once these ports are forwarded, and ends the forwards.
    pub fn forwarded(
        &self,
        forwards: &[&str],
        ports: &[u16],
        commands: &[&str],
    ) -> anyhow::Result<String> {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let script = format!(
            "set -euo pipefail; trap 'kill $(jobs -p)' EXIT\n{}\nfor port in {}; do for i in $(seq 100); do \
             (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null && break; sleep 0.1; done; done\n{}\n",
            forwards.join("\n"),
            ports.join(" "),
            commands.join("\n"),
        );
        self.run(&["run", "bash", "-c", &script], "")
    }
}
