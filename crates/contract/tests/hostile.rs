//! Whatever arrives at a puller's port, and whatever the runtime says to it: bytes become messages,
//! messages become events, the queue decides, and its answers become bytes again. `make fuzz` tries a
//! million.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kubefledged_contract::puller as contract;
use kubefledged_image::ImageRef;
use kubefledged_proto::puller::{
    Authority, BatchCancel, CancelPullsRequest, CheckImagesRequest, Credential, ImagePull,
    PullImagesRequest, RemoveImagesRequest,
};
use kubefledged_queue::{
    Answer, Bytes, Call, CallError, CallId, Command, Container, CredentialId, Disk, Event, Image,
    PinResult, PullResult, Queue, RemoveResult, RuntimeFacts, Settings, StreamId, Support, Tick,
};
use proptest::{prelude::*, sample::Index};
use prost::Message;

const ANYTHING: &str =
    "[a-cA-C0-9./:@_ \t\r\n\u{0}\u{1b}\u{202e}$`;|&<>(){}\\[\\]*?~#!%^=+,'\"\\\\ä漢😀-]{0,20}";
/// What is said of one image, in bytes.
const LONGEST_MESSAGE: usize = 1024;

/// Texts that match. A literal as a strategy would be compiled for every text anew.
fn like(regex: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(regex).unwrap().boxed()
}

/// Few names, so that requests meet; and some that are none.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => like("r\\.test/[ab](:1)?"),
        2 => like("(sha256:)?[0-9a-f]{64}"),
        2 => like(ANYTHING),
        1 => any::<String>().boxed(),
        1 => (like(ANYTHING), 0_usize..100).prop_map(|(text, times)| text.repeat(times)).boxed(),
    ]
}

fn names() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(name(), 0..4)
}

fn authority() -> impl Strategy<Value = Option<Authority>> {
    let node = prop_oneof![19 => Just("n1".to_owned()), 1 => like(ANYTHING)];
    let number = || prop_oneof![9 => 0_u64..4, 1 => any::<u64>()];
    let authority = (
        node,
        prop_oneof![9 => Just(1), 1 => 0_u64..3],
        number(),
        number(),
    );
    let authority = authority.prop_map(|(node_name, term, seq, batch_id)| Authority {
        node_name,
        term,
        seq,
        batch_id,
    });
    proptest::option::weighted(0.95, authority)
}

fn image() -> impl Strategy<Value = ImagePull> {
    let number = || prop_oneof![2 => Just(0), 2 => 1_u32..90_000, 1 => any::<u32>()];
    let index = prop_oneof![9 => 0_u32..2, 1 => any::<u32>()];
    (
        name(),
        0..4_i32,
        like(ANYTHING),
        any::<i32>(),
        number(),
        0..5_i32,
        proptest::collection::vec(index, 0..3),
        number(),
    )
        .prop_map(
            |(
                reference,
                policy,
                freshness,
                priority,
                deadline_ms,
                retention,
                credentials,
                fallback_deadline_ms,
            )| ImagePull {
                reference,
                policy,
                freshness,
                priority,
                deadline_ms,
                retention,
                credentials,
                fallback_deadline_ms,
                cache: String::new(),
            },
        )
}

/// A request as it arrives.
#[derive(Clone, Debug)]
enum Asked {
    Pull(Vec<u8>),
    Remove(Vec<u8>),
    Check(Vec<u8>),
    Cancel(Vec<u8>),
}

fn request() -> impl Strategy<Value = Asked> {
    let credential = (like(ANYTHING), like(ANYTHING))
        .prop_map(|(user, password)| Credential::login(&user, &password));
    let pull = (
        authority(),
        proptest::collection::vec(image(), 0..5),
        proptest::collection::vec(credential, 2),
    )
        .prop_map(|(authority, images, credentials)| {
            Asked::Pull(
                PullImagesRequest {
                    authority,
                    images,
                    credentials,
                }
                .encode_to_vec(),
            )
        });
    let remove = (
        authority(),
        names(),
        names(),
        names(),
        any::<bool>(),
        names(),
    )
        .prop_map(
            |(authority, references, desired, releasable, unpin_ours, unpin)| {
                Asked::Remove(
                    RemoveImagesRequest {
                        authority,
                        references,
                        desired,
                        releasable,
                        unpin_ours,
                        unpin,
                    }
                    .encode_to_vec(),
                )
            },
        );
    let check = names().prop_map(|references| {
        Asked::Check(
            CheckImagesRequest {
                node_name: "n1".to_owned(),
                references,
            }
            .encode_to_vec(),
        )
    });
    let cancel = (
        authority(),
        proptest::collection::vec((0_u64..4, names()), 0..3),
    )
        .prop_map(|(authority, cancels)| {
            let cancels = cancels
                .into_iter()
                .map(|(batch_id, references)| BatchCancel {
                    batch_id,
                    references,
                });
            Asked::Cancel(
                CancelPullsRequest {
                    authority,
                    cancels: cancels.collect(),
                }
                .encode_to_vec(),
            )
        });
    let change = proptest::option::weighted(0.1, (any::<Index>(), any::<u8>()));
    (
        prop_oneof![4 => pull, 3 => remove, 1 => check, 1 => cancel],
        change,
    )
        .prop_map(|(mut asked, change)| {
            let (Asked::Pull(bytes)
            | Asked::Remove(bytes)
            | Asked::Check(bytes)
            | Asked::Cancel(bytes)) = &mut asked;
            if let Some((at, put)) = change.filter(|_| !bytes.is_empty()) {
                let at = at.index(bytes.len());
                if put < 64 {
                    bytes.truncate(at);
                } else {
                    bytes[at] = put;
                }
            }
            asked
        })
}

fn held() -> impl Strategy<Value = Image> {
    (name(), names(), names(), any::<u64>(), any::<bool>()).prop_map(
        |(id, tags, digests, size, pinned)| Image {
            id,
            tags,
            digests,
            size,
            pinned,
        },
    )
}

/// What the runtime says, to whatever it was asked.
#[derive(Clone, Debug)]
struct Said {
    image: Option<Image>,
    containers: Vec<Vec<String>>,
    names: Vec<String>,
    numbers: (u64, u64, bool),
    error: Option<(String, String)>,
    /// It answers another question.
    astray: bool,
}

fn said() -> impl Strategy<Value = Said> {
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

#[derive(Clone, Debug)]
enum Step {
    Ask(Asked),
    /// One of the calls under way is answered.
    Answer(Index, Said),
    /// A caller goes away.
    Close(Index),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => request().prop_map(Step::Ask),
        6 => (any::<Index>(), said()).prop_map(|(at, said)| Step::Answer(at, said)),
        1 => any::<Index>().prop_map(Step::Close),
        1 => (0_u64..90_000).prop_map(Step::Wait),
    ]
}

struct Node {
    queue: Queue,
    now: Tick,
    counter: u64,
    /// Outcomes that each open stream still waits for.
    open: BTreeMap<StreamId, BTreeSet<u32>>,
    calls: Vec<(CallId, Call)>,
}

impl Node {
    fn new(facts: RuntimeFacts) -> Self {
        let mut queue = Queue::new(Settings {
            disk_watermark: Some(80),
            credential_providers: true,
            ..Settings::default()
        });
        queue.handle(Tick(1), Event::Runtime(facts));
        Self {
            queue,
            now: Tick(1),
            counter: 0,
            open: BTreeMap::new(),
            calls: Vec::new(),
        }
    }

    fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// As `service.rs` does it.
    fn ask(&mut self, asked: &Asked) {
        let stream = StreamId(self.number());
        let (event, count) = match asked {
            Asked::Pull(bytes) => {
                let Ok(request) = PullImagesRequest::decode(&**bytes) else {
                    return;
                };
                let Ok(authority) = contract::authority("n1", request.authority) else {
                    return;
                };
                let credentials: Vec<_> = request
                    .credentials
                    .into_iter()
                    .map(|c| (CredentialId(self.number()), c))
                    .collect();
                let hash = |chosen: &[&Credential]| chosen.len() as u64;
                let images = request
                    .images
                    .into_iter()
                    .map(|image| contract::pull_request(image, &credentials, hash));
                let Ok(images) = images.collect::<Result<Vec<_>, _>>() else {
                    return;
                };
                let count = images.len();
                (Event::Pull(stream, authority, images), count)
            }
            Asked::Remove(bytes) => {
                let Ok(request) = RemoveImagesRequest::decode(&**bytes) else {
                    return;
                };
                let count = request.references.len() + request.unpin.len();
                let Ok(event) = contract::remove_event("n1", stream, request) else {
                    return;
                };
                (event, count)
            }
            Asked::Check(bytes) => {
                let Ok(request) = CheckImagesRequest::decode(&**bytes) else {
                    return;
                };
                let count = request.references.len();
                (Event::Check(stream, request.references), count)
            }
            Asked::Cancel(bytes) => {
                let Ok(request) = CancelPullsRequest::decode(&**bytes) else {
                    return;
                };
                let Ok(event) = contract::cancel_event("n1", stream, request) else {
                    return;
                };
                (event, 0)
            }
        };
        let count = u32::try_from(count).unwrap();
        self.open.insert(stream, (0..count).collect());
        self.tell(event);
    }

    fn answer(&mut self, at: usize, said: Said) {
        let (id, call) = self.calls.remove(at);
        let Said {
            image,
            containers,
            names,
            numbers: (a, b, flag),
            error,
            astray,
        } = said;
        let error = error.map(|(code, message)| CallError { code, message });
        let failed = |error: &Option<CallError>| error.clone().map_or(Ok(()), Err);
        let answer = match call {
            _ if astray => Answer::Pins(Ok(names)),
            Call::Inspect(_) => Answer::Inspected(error.map_or(Ok(image), Err)),
            Call::Pull(..) => Answer::Pulled(failed(&error)),
            Call::Containers => {
                let containers = containers
                    .into_iter()
                    .map(|image| Container { image })
                    .collect();
                Answer::Containers(error.map_or(Ok(containers), Err))
            }
            Call::Remove(_) => Answer::Removed(failed(&error)),
            Call::Credentials(_) => {
                let given = (0..a % 3).map(|_| CredentialId(self.number())).collect();
                Answer::Credentials(given, error.map(|error| error.message))
            }
            Call::FsInfo => Answer::Disk(error.map_or(
                Ok(Disk {
                    capacity: a,
                    available: b,
                }),
                Err,
            )),
            Call::Pins => Answer::Pins(error.map_or(Ok(names), Err)),
            Call::Pin(..) => Answer::Pinned(failed(&error)),
            Call::Progress(asked) => {
                let bytes = asked.into_iter().map(|name| {
                    (
                        name,
                        Bytes {
                            done: a,
                            total: b,
                            active: flag,
                        },
                    )
                });
                Answer::Progress(error.map_or_else(|| Ok(bytes.collect()), Err))
            }
        };
        self.tell(Event::Answered(id, answer));
    }

    fn tell(&mut self, event: Event) {
        self.queue.handle(self.now, event);
        self.poll();
    }

    fn poll(&mut self) {
        let mut out = Vec::new();
        self.queue.poll(self.now, &mut out);
        for command in out {
            self.carry_out(command);
        }
        assert!(
            self.queue.next_wakeup().is_none_or(|at| at > self.now),
            "it would spin"
        );
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Call(id, call) => {
                if let Call::Pull(name, _) = &call {
                    assert!(
                        ImageRef::parse(name).is_ok(),
                        "the runtime is asked to pull {name:?}"
                    );
                }
                self.calls.push((id, call));
            }
            Command::CancelCall(id) => assert!(self.calls.iter().any(|(known, _)| *known == id)),
            Command::Pulled(stream, outcomes) => {
                for outcome in &outcomes {
                    if let PullResult::Failed { message, .. } = &outcome.result {
                        can_be_shown(message);
                    }
                    if let PinResult::Failed(message) | PinResult::DiskPressure(message) =
                        &outcome.pin
                    {
                        can_be_shown(message);
                    }
                }
                let told: Vec<usize> = outcomes.iter().map(|outcome| outcome.index).collect();
                self.hear(stream, &told);
                assert!(contract::pulled(outcomes).encoded_len() > 0);
            }
            Command::Removed(stream, outcomes) => {
                for outcome in &outcomes {
                    if let RemoveResult::Failed { message, .. }
                    | RemoveResult::Kept { message, .. } = &outcome.result
                    {
                        can_be_shown(message);
                    }
                }
                let told: Vec<usize> = outcomes.iter().map(|outcome| outcome.index).collect();
                self.hear(stream, &told);
                assert!(contract::removed(outcomes).encoded_len() > 0);
            }
            Command::Checked(stream, report) => {
                let response = contract::checked(report);
                for image in &response.images {
                    can_be_shown(&image.message);
                }
                let told: Vec<usize> = (0..response.images.len()).collect();
                self.hear(stream, &told);
            }
            Command::Cancelled(stream, _) | Command::Refused(stream, _) => {
                self.open.remove(&stream);
            }
            Command::Overloaded(_) => panic!("nothing here is that much"),
            Command::Accepted(..) => {}
            Command::Done(stream) => {
                let left = self.open.remove(&stream);
                assert!(
                    left.is_none_or(|left| left.is_empty()),
                    "{stream:?} ended without a word on some images"
                );
            }
        }
    }

    /// One outcome for each image.
    fn hear(&mut self, stream: StreamId, told: &[usize]) {
        let Some(open) = self.open.get_mut(&stream) else {
            return;
        };
        for index in told {
            assert!(
                open.remove(&u32::try_from(*index).unwrap()),
                "{index} of {stream:?} is told twice"
            );
        }
    }

    /// The runtime answers everything with failure until nothing is under way.
    fn come_to_rest(&mut self) {
        for _ in 0..10_000 {
            if !self.calls.is_empty() {
                let error = Some(("Unknown".to_owned(), "not found".to_owned()));
                let said = Said {
                    image: None,
                    containers: Vec::new(),
                    names: Vec::new(),
                    numbers: (100, 90, false),
                    error,
                    astray: false,
                };
                self.answer(0, said);
            } else if self.queue.idle() {
                return;
            } else {
                self.wait(1000);
            }
        }
        panic!("the queue does not come to rest");
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now.after(Duration::from_millis(ms));
        self.poll();
    }
}

/// It goes into the status of the ImageCache, into logs and onto terminals.
fn can_be_shown(message: &str) {
    assert!(
        message.len() <= LONGEST_MESSAGE && !message.contains(char::is_control),
        "{message:?}"
    );
}

proptest! {
    #[test]
    fn every_request_is_answered_whatever_it_holds_and_whatever_the_runtime_says(
        pins in 0..3, progress: bool, steps in proptest::collection::vec(step(), 0..12)
    ) {
        let pins = [Support::Unknown, Support::Yes, Support::No][usize::try_from(pins).unwrap()];
        let mut node = Node::new(RuntimeFacts { pins, progress, ..RuntimeFacts::default() });
        for step in steps {
            match step {
                Step::Ask(asked) => node.ask(&asked),
                Step::Answer(at, said) if !node.calls.is_empty() => node.answer(at.index(node.calls.len()), said),
                Step::Answer(..) => {}
                Step::Close(at) => {
                    let open: Vec<StreamId> = node.open.keys().copied().collect();
                    if !open.is_empty() {
                        let stream = *at.get(&open);
                        node.open.remove(&stream);
                        node.tell(Event::Closed(stream));
                    }
                }
                Step::Wait(ms) => node.wait(ms),
            }
        }
        node.come_to_rest();
        prop_assert!(node.open.is_empty(), "{:?} were not answered", node.open);
        node.wait(3_601_000);
        prop_assert_eq!(node.queue.remembers(), 0);
        prop_assert_eq!(node.queue.next_wakeup(), None);
    }
}
