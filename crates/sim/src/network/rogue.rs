//! A node that lies: of the term that it has seen, or with more outcomes than it was asked for.

use kubefledged_proto::puller::{
    CheckImagesResponse, CheckedImage, PullImagesResponse, PullOutcome, PullOutcomes,
    pull_images_response::Event,
};
use prost::Message as _;

use super::{Purpose, Reply};
use crate::{
    script::{Lie, Trouble},
    world::World,
};

/// One less than the last term that a Lease has room for.
const LAST: u64 = 2_147_483_646;
/// More images than any batch has.
const TOO_MANY: u32 = 600;

impl World {
    /// What becomes of a reply on its way out of a rogue node.
    pub fn told_by_a_rogue(&mut self, id: u64, node: usize, reply: Reply) -> Reply {
        let mut lies = self.troubles.iter().filter_map(|trouble| match trouble {
            Trouble::Rogue(rogue, lie) if *rogue == node => Some(*lie),
            _ => None,
        });
        let Some(lie) = lies.next() else {
            return reply;
        };
        let Some(link) = self.links.get(&id) else {
            return reply;
        };
        let (purpose, term) = (link.purpose, link.term);
        let claimed = match lie {
            Lie::NextTerm => term + 1,
            Lie::LastTerm => LAST,
            Lie::TooMany => 0,
        };
        match (purpose, lie, reply) {
            (Purpose::Check, _, Reply::Message(bytes)) => {
                let mut response = CheckImagesResponse::decode(&*bytes).unwrap_or_default();
                response.highest_term = response.highest_term.max(claimed);
                if lie == Lie::TooMany {
                    let more = (0..TOO_MANY).map(|index| CheckedImage {
                        index,
                        ..CheckedImage::default()
                    });
                    response.images.extend(more);
                }
                Reply::Message(response.encode_to_vec())
            }
            (Purpose::Pull, Lie::TooMany, Reply::Message(_)) => {
                let outcomes = (0..TOO_MANY).map(|index| PullOutcome {
                    index,
                    ..PullOutcome::default()
                });
                let outcomes = PullOutcomes {
                    outcomes: outcomes.collect(),
                };
                let event = Some(Event::Outcomes(outcomes));
                Reply::Message(PullImagesResponse { event }.encode_to_vec())
            }
            (Purpose::Pull | Purpose::Remove, Lie::NextTerm | Lie::LastTerm, reply)
                if self.rng.percent(50) =>
            {
                drop(reply);
                Reply::Refused(claimed)
            }
            (.., reply) => reply,
        }
    }
}
