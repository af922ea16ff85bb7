//! A failing day cut down to what the failure needs.

use crate::{Script, World};

/// The rule that a script breaks.
fn rule(script: &Script) -> Option<&'static str> {
    let report = World::new(script.clone(), false).run();
    report.failure.map(|failure| failure.rule)
}

/// The shortest script found that breaks the same rule. Halves are taken away first, then quarters,
/// at last single steps; then nodes.
pub fn shrink(mut script: Script) -> Script {
    let Some(broken) = rule(&script) else {
        return script;
    };
    loop {
        let before = (script.steps.len(), script.nodes.len());
        let mut size = script.steps.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < script.steps.len() {
                let mut shorter = script.clone();
                let end = (at + size).min(shorter.steps.len());
                shorter.steps.drain(at..end);
                if rule(&shorter) == Some(broken) {
                    script = shorter;
                } else {
                    at += size;
                }
            }
            if size == 1 {
                break;
            }
            size = size.div_ceil(2);
        }
        while script.nodes.len() > 1 {
            let mut smaller = script.clone();
            smaller.nodes.pop();
            if rule(&smaller) != Some(broken) {
                break;
            }
            script = smaller;
        }
        if (script.steps.len(), script.nodes.len()) == before {
            return script;
        }
    }
}
