//! Questions to pullers on behalf of people: how far pulls are, and what a node holds. They change nothing, and a node
//! that does not answer is told as such and is none the worse for it.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use kubefledged_contract::checks::PIECE_LIMIT;
use kubefledged_engine::{NodeName, Puller};
use kubefledged_proto::{
    debug::{GetQueueRequest, Pull, PullState},
    puller::{CheckImagesRequest, CheckImagesResponse, DiskUsage, ImageState},
};

use super::{
    dialer::{MOST_PULLS, Target},
    limits::within,
    pool::Line,
    pullers::Pullers,
};

/// Whoever watches progress does not wait longer for one node.
const QUERY_LIMIT: Duration = Duration::from_secs(2);

/// What a node holds of some images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holdings {
    /// Each image that is present, by its position, with its size in bytes.
    pub present: Vec<(usize, u64)>,
    /// The image file system; `None`: the puller does not see it.
    pub disk: Option<DiskUsage>,
}

/// Asks pullers. The error is a sentence for people.
pub trait PullerQueries: Send + Sync {
    /// Pulls that run on a node or ended there in the last minutes.
    fn pulls<'a>(
        &'a self,
        node: &'a NodeName,
        puller: &'a Puller,
    ) -> BoxFuture<'a, Result<Vec<Pull>, Arc<str>>>;

    /// Which of these images a node holds.
    fn holdings<'a>(
        &'a self,
        node: &'a NodeName,
        puller: &'a Puller,
        images: &'a [Arc<str>],
    ) -> BoxFuture<'a, Result<Holdings, Arc<str>>>;
}

impl PullerQueries for Pullers {
    fn pulls<'a>(
        &'a self,
        node: &'a NodeName,
        puller: &'a Puller,
    ) -> BoxFuture<'a, Result<Vec<Pull>, Arc<str>>> {
        let states = [
            PullState::Pulling,
            PullState::Verifying,
            PullState::Pinning,
            PullState::Finished,
        ];
        let request = GetQueueRequest {
            states: states.map(Into::into).to_vec(),
            page_size: u32::try_from(MOST_PULLS).unwrap_or(u32::MAX),
            page_token: String::new(),
        };
        let asked = async move {
            let target = Target::new(node, puller);
            let borrowed = self.pool().borrow(&target, Line::Front).await?;
            let mut client = self.verified(&borrowed).await?.debug();
            let answer = within(QUERY_LIMIT, client.get_queue(request)).await;
            answer.map_err(|status| Arc::from(status.message()))
        };
        async move {
            let asked = tokio::time::timeout(QUERY_LIMIT, asked).await;
            let answer = asked.unwrap_or_else(|_| Err("the puller does not answer".into()));
            answer.map(|answer| answer.pulls)
        }
        .boxed()
    }

    fn holdings<'a>(
        &'a self,
        node: &'a NodeName,
        puller: &'a Puller,
        images: &'a [Arc<str>],
    ) -> BoxFuture<'a, Result<Holdings, Arc<str>>> {
        async move {
            let target = Target::new(node, puller);
            let borrowed = self.pool().borrow(&target, Line::Front).await?;
            let puller = self.verified(&borrowed).await?;
            let mut holdings = Holdings::default();
            let size = self.sizes().of(node);
            for (at, piece) in images.chunks(size).enumerate() {
                let request = CheckImagesRequest {
                    node_name: node.to_string(),
                    references: piece.iter().map(ToString::to_string).collect(),
                    with_info: false,
                };
                let mut client = puller.client(piece.len());
                let answer = within(PIECE_LIMIT, client.check_images(request)).await;
                let answer = answer.map_err(|status| Arc::<str>::from(status.message()))?;
                holdings.add(at * size, piece.len(), answer);
            }
            Ok(holdings)
        }
        .boxed()
    }
}

impl Holdings {
    /// Takes in the answer about the images from this position on.
    fn add(&mut self, first: usize, asked: usize, answer: CheckImagesResponse) {
        self.disk = answer.disk.or(self.disk);
        let present = answer.images.into_iter().filter_map(|image| {
            let at = usize::try_from(image.index).ok().filter(|at| *at < asked)?;
            (image.state() == ImageState::Present).then_some((first + at, image.size_bytes))
        });
        self.present.extend(present);
    }
}
