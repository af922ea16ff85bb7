//! What the runtime answers.

use kubefledged_queue::Image;
use proptest::prelude::*;

use crate::texts::{ANYTHING, like, name, names};

fn held() -> impl Strategy<Value = Image> {
    let bools = (any::<bool>(), any::<bool>());
    (name(), names(), names(), any::<u64>(), bools).prop_map(
        |(id, tags, digests, size, (pinned, unmountable))| Image {
            id,
            tags,
            digests,
            size,
            pinned,
            unmountable,
        },
    )
}

/// What the runtime says, to whatever it was asked.
#[derive(Clone, Debug)]
pub struct Said {
    pub image: Option<Image>,
    pub containers: Vec<Vec<String>>,
    pub names: Vec<String>,
    pub numbers: (u64, u64, bool),
    pub error: Option<(String, String)>,
    /// It answers another question.
    pub astray: bool,
}

pub fn said() -> impl Strategy<Value = Said> {
    let code = like("(Unknown|NotFound|Unavailable|Cancelled|DeadlineExceeded|[a-z]{3})");
    let message = prop_oneof![
        3 => like(ANYTHING),
        1 => any::<String>(),
        1 => like("(401 Unauthorized|not found|429 Too Many Requests|no space left on device) https?://[a-z]{3}(\\?[a-z=]{4})? [ä\u{0}\n]{0,900}"),
    ];
    let (number, small) = (any::<u64>(), 0_u64..100);
    (
        proptest::option::of(held()),
        proptest::collection::vec(names(), 0..2),
        names(),
        prop_oneof![
            (small.clone(), small, any::<bool>()),
            (number, number, any::<bool>())
        ],
        proptest::option::weighted(0.3, (code, message)),
        prop::bool::weighted(0.02),
    )
        .prop_map(|(image, containers, names, numbers, error, astray)| Said {
            image,
            containers,
            names,
            numbers,
            error,
            astray,
        })
}
