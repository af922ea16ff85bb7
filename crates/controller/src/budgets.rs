//! What one leader tells the next of the budgets of registries: an annotation of the Lease, such as
//! `docker.io=37/37 ghcr.io=512`. Of each host it says how many pulls at a time it bore, and after a slash how many more than
//! which it did not.

use std::{sync::Arc, time::Duration};

use kubefledged_engine::KnownBudget;
use tokio::{sync::watch, time::sleep};

use crate::driver::Asking;

/// Most registries that are told of: an annotation has its limits.
const MOST: usize = 64;
/// The engine is asked so often: as often as the Lease is renewed.
const PAUSE: Duration = Duration::from_secs(2);

/// Keeps what the next leader is told up to date. Ends with the engine.
pub async fn publish(engine: Asking, told: watch::Sender<Option<String>>) {
    while let Some(known) = engine.ask(|engine, _| engine.known_budgets(MOST)).await {
        told.send_replace(known.map(|known| text(&known)));
        sleep(PAUSE).await;
    }
}

fn text(known: &[(Arc<str>, KnownBudget)]) -> String {
    let budgets = known.iter().map(|(host, budget)| match budget.knee {
        Some(knee) => format!("{host}={}/{knee}", budget.limit),
        None => format!("{host}={}", budget.limit),
    });
    budgets.collect::<Vec<_>>().join(" ")
}

/// Reads an annotation. What makes no sense is left out: then the registry begins anew.
pub fn parse(text: &str) -> Vec<(Arc<str>, KnownBudget)> {
    let budget = |word: &str| {
        let (host, numbers) = word.rsplit_once('=')?;
        let (limit, knee) = match numbers.split_once('/') {
            Some((limit, knee)) => (limit, Some(knee.parse().ok()?)),
            None => (numbers, None),
        };
        let limit = limit.parse().ok()?;
        Some((host.into(), KnownBudget { limit, knee }))
    };
    text.split_whitespace()
        .filter_map(budget)
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_nonsense_is_left_out() {
        let budget = |limit, knee| KnownBudget { limit, knee };
        let known = [
            ("[::1]:5000".into(), budget(512, None)),
            ("docker.io".into(), budget(18, Some(36))),
        ];
        let written = text(&known);
        assert_eq!(written, "[::1]:5000=512 docker.io=18/36");
        assert_eq!(parse(&written), known);
        assert_eq!(
            parse("a b= c=-1 d=1/x =/ e=7"),
            [("e".into(), budget(7, None))]
        );
        assert_eq!(parse(&"a=1 ".repeat(99)).len(), MOST);
    }
}
