//! The queue alone, on one node. `make bench-queue` prints the table; with the name of a step as
//! argument that one step runs in [`measured`], for `hack/bench-guard` to count its instructions.

use std::{
    alloc::System,
    collections::{BTreeMap, VecDeque},
    hint::black_box,
    time::Duration,
};

use cpu_time::ThreadTime;
use kubefledged_queue::{
    Answer, Authority, Call, CallId, Command, Event, Image, PullRequest, Queue, RuntimeFacts,
    Settings, Sources, StreamId, Support, Tick,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Images of one request.
const REQUESTS: [usize; 4] = [100, 500, 2_000, 8_000];
const GUARDED: usize = 200;
const REPEATS: usize = 1_000;

fn main() {
    // cargo bench passes --bench.
    match std::env::args().skip(1).find(|arg| arg != "--bench") {
        None => table(),
        Some(step) => guard(&step),
    }
}

/// What is counted happens in here.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
    black_box(());
}

fn guard(step: &str) {
    let mut node = Node::new();
    match step {
        "pull" => measured(|| node.pull(GUARDED)),
        "pull-present" => {
            node.pull(GUARDED);
            measured(|| node.pull(GUARDED));
        }
        "check" => {
            node.pull(GUARDED);
            measured(|| node.check(GUARDED));
        }
        "remove" => {
            node.pull(GUARDED);
            measured(|| node.remove(GUARDED));
        }
        "idle-tick" => {
            node.pull(GUARDED);
            measured(|| (0..REPEATS).for_each(|_| node.poll()));
        }
        other => unreachable!("no step {other}"),
    }
}

fn table() {
    println!("Queue alone; one request of so many images, CPU time of one thread for an image.\n");
    println!(
        "| images | pull | pull, present | check | remove | tick, nothing due | memory an image while it waits |\n\
         |---|---|---|---|---|---|---|"
    );
    for count in REQUESTS {
        let mut node = Node::new();
        let before = live_bytes();
        node.ask_pull(count);
        let waiting = (live_bytes() - before) / count;
        node.run();
        let pull = node.take_spent();
        node.pull(count);
        let present = node.take_spent();
        node.check(count);
        let check = node.take_spent();
        (0..REPEATS).for_each(|_| node.poll());
        let tick = node.take_spent();
        node.remove(count);
        let remove = node.take_spent();
        let each = |time: Duration| micros(time) / float(count);
        println!(
            "| {count} | {:.2} µs | {:.2} µs | {:.2} µs | {:.2} µs | {:.2} µs | {waiting} bytes |",
            each(pull),
            each(present),
            each(check),
            each(remove),
            micros(tick) / float(REPEATS),
        );
    }
}

/// A queue and a runtime that answers at once.
struct Node {
    queue: Queue,
    now: Tick,
    spent: Duration,
    held: BTreeMap<String, Image>,
    calls: VecDeque<(CallId, Call)>,
    requests: u64,
    done: bool,
}

impl Node {
    fn new() -> Self {
        let mut node = Self {
            queue: Queue::new(Settings::default()),
            now: Tick(1),
            spent: Duration::ZERO,
            held: BTreeMap::new(),
            calls: VecDeque::new(),
            requests: 0,
            done: false,
        };
        node.handle(Event::Runtime(RuntimeFacts {
            pins: Support::No,
            ..RuntimeFacts::default()
        }));
        node
    }

    fn next(&mut self) -> (StreamId, Authority) {
        self.requests += 1;
        self.done = false;
        let authority = Authority {
            term: 1,
            seq: self.requests,
            batch: self.requests,
        };
        (StreamId(self.requests), authority)
    }

    fn ask_pull(&mut self, count: usize) {
        let (stream, authority) = self.next();
        let images = (0..count).map(|image| PullRequest {
            reference: name(image),
            ..PullRequest::default()
        });
        self.handle(Event::Pull(stream, authority, images.collect()));
    }

    fn pull(&mut self, count: usize) {
        self.ask_pull(count);
        self.run();
        assert_eq!(self.held.len(), count);
    }

    fn check(&mut self, count: usize) {
        let (stream, _) = self.next();
        self.handle(Event::Check(stream, (0..count).map(name).collect()));
        self.run();
    }

    fn remove(&mut self, count: usize) {
        let (stream, authority) = self.next();
        self.handle(Event::Remove {
            stream,
            authority,
            references: (0..count).map(name).collect(),
            desired: Vec::new(),
            releasable: Vec::new(),
            only_pulled: Vec::new(),
            unpin_ours: false,
            unpin: Vec::new(),
        });
        self.run();
        assert!(self.held.is_empty());
    }

    fn handle(&mut self, event: Event) {
        let start = ThreadTime::now();
        self.queue.handle(self.now, event);
        self.spent += start.elapsed();
        self.poll();
    }

    fn poll(&mut self) {
        let mut out = Vec::new();
        let start = ThreadTime::now();
        self.queue.poll(self.now, &mut out);
        // The puller asks after every poll how long it may sleep.
        black_box(self.queue.next_wakeup());
        self.spent += start.elapsed();
        for command in out {
            match command {
                Command::Call(id, call) => self.calls.push_back((id, call)),
                Command::Done(_) | Command::Checked(..) => self.done = true,
                Command::Accepted(..)
                | Command::Pulled(..)
                | Command::Transfers(..)
                | Command::Removed(..) => {}
                other => unreachable!("nobody asked for {other:?}"),
            }
        }
    }

    /// Answers calls until the request is done.
    fn run(&mut self) {
        while let Some((id, call)) = self.calls.pop_front() {
            let answer = match call {
                Call::Inspect(name) => Answer::Inspected(Ok(self.held.get(&name).cloned())),
                Call::Pull(name, ..) => {
                    let image = Image {
                        id: format!("sha256:{name}"),
                        tags: vec![name.clone()],
                        ..Image::default()
                    };
                    self.held.insert(name, image);
                    Answer::Pulled(Ok(Sources::default()))
                }
                Call::Containers => Answer::Containers(Ok(Vec::new())),
                Call::Remove(target) => {
                    self.held
                        .remove(target.strip_prefix("sha256:").unwrap_or(&target));
                    Answer::Removed(Ok(()))
                }
                Call::Pins => Answer::Pins(Ok(Vec::new())),
                other => unreachable!("nobody asked for {other:?}"),
            };
            self.handle(Event::Answered(id, answer));
        }
        assert!(self.done, "the queue waits for nothing");
    }

    fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }
}

fn name(image: usize) -> String {
    format!("registry.example/team/app{image}:1.0")
}

fn live_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn float(value: usize) -> f64 {
    value as f64
}
