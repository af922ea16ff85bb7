//! A puller without a port: its queue, and what waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kubefledged_contract::puller as contract;
use kubefledged_image::ImageRef;
use kubefledged_proto::puller::{
    CancelPullsRequest, CheckImagesRequest, Credential, PullImagesRequest, RemoveImagesRequest,
};
use kubefledged_queue::{
    Answer, Bytes, Call, CallError, CallId, Command, Container, CredentialId, Disk, Event,
    PinResult, PullResult, Queue, RemoveResult, RuntimeFacts, Settings, Sources, StreamId, Tick,
};
use prost::Message;

use crate::{requests::Asked, runtime::Said};

/// What is said of one image, in bytes.
const LONGEST_MESSAGE: usize = 1024;

pub struct Node {
    pub queue: Queue,
    now: Tick,
    counter: u64,
    /// Outcomes that each open stream still waits for.
    pub open: BTreeMap<StreamId, BTreeSet<u32>>,
    pub calls: Vec<(CallId, Call)>,
}

impl Node {
    pub fn new(facts: RuntimeFacts) -> Self {
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
    pub fn ask(&mut self, asked: &Asked) {
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
                let signer = request.ticket_signer.into();
                let images = request
                    .images
                    .into_iter()
                    .map(|image| contract::pull_request(image, &credentials, &signer, hash));
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

    pub fn answer(&mut self, at: usize, said: Said) {
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
            Call::Pull(..) => Answer::Pulled(failed(&error).map(|()| Sources::default())),
            Call::Containers => {
                let containers = containers
                    .into_iter()
                    .map(|image| Container { image })
                    .collect();
                Answer::Containers(error.map_or(Ok(containers), Err))
            }
            Call::Remove(_) | Call::Untag(_) => Answer::Removed(failed(&error)),
            Call::Credentials(_) => {
                let given = (0..a % 3).map(|_| CredentialId(self.number())).collect();
                Answer::Credentials(given, error.map(|error| error.message))
            }
            Call::FsInfo => Answer::Disk(error.map_or(
                Ok(Disk {
                    capacity: a,
                    available: b,
                    inodes: b,
                    inodes_free: a,
                }),
                Err,
            )),
            Call::Pins => Answer::Pins(error.map_or(Ok(names), Err)),
            Call::Pin(..) => Answer::Pinned(failed(&error)),
            Call::Mark(_) => Answer::Marked(failed(&error)),
            Call::Trace(_) => Answer::Traced(error.map_or(Ok(true), Err)),
            Call::Progress(asked) => {
                let bytes = asked.into_iter().map(|name| {
                    (
                        name,
                        Bytes {
                            done: a,
                            total: b,
                            active: flag,
                        }
                        .into(),
                    )
                });
                Answer::Progress(error.map_or_else(|| Ok(bytes.collect()), Err))
            }
        };
        self.tell(Event::Answered(id, answer));
    }

    pub fn tell(&mut self, event: Event) {
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

    #[expect(clippy::too_many_lines, reason = "one arm for each command")]
    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Call(id, call) => {
                if let Call::Pull(name, ..) = &call {
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
            Command::Transfers(_, transfers) => {
                assert!(contract::transfers(transfers).encoded_len() > 0);
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
    pub fn come_to_rest(&mut self) {
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

    pub fn wait(&mut self, ms: u64) {
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
