//! Pullers that start. The kubelet reports that a pod is ready up to two seconds after it is, and on a new node pods may
//! wait for the images meanwhile. So a pod that has an address and has never been ready is called until it answers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kubefledged_engine::{NodeName, Puller};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// Time between two calls to one pod.
const PAUSE: Duration = Duration::from_millis(200);
/// Calls to one pod: after 30 s it is up to the kubelet again.
const MOST_CALLS: usize = 150;
/// Calls at the same time.
const MOST_AT_ONCE: usize = 64;

/// Does a puller answer at this address? Ends by itself within a few seconds.
pub type Reach = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, bool> + Send + Sync>;

/// The pods that are being called.
pub struct Starting {
    reach: Reach,
    places: Arc<Semaphore>,
    calls: JoinSet<Option<(NodeName, Puller)>>,
}

impl Starting {
    /// None yet.
    pub fn new(reach: Reach) -> Self {
        Self {
            reach,
            places: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            calls: JoinSet::new(),
        }
    }

    /// Calls a pod until it answers.
    pub fn call(&mut self, node: NodeName, puller: Puller) {
        let (reach, places) = (self.reach.clone(), self.places.clone());
        self.calls.spawn(async move {
            let mut ticks = interval(PAUSE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for _ in 0..MOST_CALLS {
                ticks.tick().await;
                let _place = places.acquire().await.ok()?;
                if reach(puller.address).await {
                    return Some((node, puller));
                }
            }
            None
        });
    }

    /// Waits for the next pod that answers.
    pub async fn next(&mut self) -> (NodeName, Puller) {
        loop {
            match self.calls.join_next().await {
                Some(Ok(Some(answered))) => return answered,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}
