//! Watches workloads and Namespaces, as the engine asks for it: a watch begins with the first `ImageCache` that names
//! its kind, and ends with the last. Only the leader watches. Objects are not kept here.

mod follow;
mod objects;
mod pods;

use std::collections::BTreeMap;

use kube::Client;
use kubefledged_engine::{Event, WatchId, Watched};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::lease::Term;

/// The watches that are wanted.
pub type Wanted = Vec<(WatchId, Watched)>;

/// Runs the watches that are wanted, until nobody wants any more. A new leader gets watches of its own.
pub async fn run(
    client: Client,
    mut wanted: watch::Receiver<Wanted>,
    mut standing: watch::Receiver<Option<Term>>,
    events: mpsc::Sender<Event>,
) {
    let mut running: BTreeMap<WatchId, DropGuard> = BTreeMap::new();
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let all = wanted.borrow_and_update().clone();
                running.retain(|id, _| all.iter().any(|(wanted, _)| wanted == id));
                for (id, target) in all {
                    running.entry(id).or_insert_with(|| {
                        begin(follow::Follow::new(client.clone(), id, target, events.clone()))
                    });
                }
            }
            changed = standing.changed() => {
                if changed.is_err() {
                    return;
                }
                if standing.borrow_and_update().is_none() {
                    running.clear();
                }
            }
        }
    }
}

/// Starts a watch. It ends when the guard is dropped.
fn begin(follow: follow::Follow) -> DropGuard {
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    tokio::spawn(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = follow.run() => {}
        }
    });
    guard
}
