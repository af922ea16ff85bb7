use clap::Parser as _;
use kubefledged_engine::{BatchId, NodeName, Puller};
use kubefledged_testkit::{Collector, SeenSpan};

use super::*;
use crate::args::Cli;

fn key(name: &str) -> CacheKey {
    CacheKey {
        namespace: "ns".into(),
        name: name.into(),
    }
}

fn write(name: &str, status: &str, start: i64) -> Command {
    let status = ImageCacheStatus {
        status: status.to_owned(),
        reason: "ImageCacheUpdate".to_owned(),
        start_time: Some(Timestamp(start)),
        ..ImageCacheStatus::default()
    };
    Command::WriteStatus {
        key: key(name),
        resource_version: "1".to_owned(),
        status: Box::new(status),
    }
}

fn check(operations: &[&str]) -> Batch {
    Batch {
        id: BatchId(1),
        term: 1,
        seq: 1,
        node: NodeName("n1".into()),
        puller: Puller {
            instance: "pod".into(),
            address: ([127, 0, 0, 1], 7443).into(),
        },
        operations: operations.iter().map(|name| key(name)).collect(),
        work: Work::Check {
            references: ["r.test/a:1".into()].into(),
        },
    }
}

async fn sent(act: impl FnOnce(&Spans)) -> Collector {
    let collector = Collector::start().await.unwrap();
    let flag = format!("--otlp-endpoint={}", collector.url());
    let cli = Cli::try_parse_from(["kubefledged-controller", &flag]).unwrap();
    let spans = Spans::new(&cli.run).unwrap();
    act(&spans);
    spans.flush().await;
    collector
}

#[tokio::test]
async fn every_operation_that_begins_ends_with_a_result() {
    let collector = sent(|spans| {
        for command in [
            write("a", status::PROCESSING, 1),
            // Progress.
            write("a", status::PROCESSING, 1),
            write("a", status::PROCESSING, 2),
            write("a", status::FAILED, 2),
            // It heals.
            write("a", status::SUCCEEDED, 2),
            write("b", status::PROCESSING, 3),
            write("c", status::PROCESSING, 4),
        ] {
            spans.decided(&command);
        }
        spans.hear(&Event::CacheDeleted(key("b")));
    })
    .await;
    let seen = collector.spans("imagecache operation");
    let seen = seen
        .iter()
        .map(|span| (span.get("kubefledged.result"), span.failed));
    let expected = [
        ("Superseded", false),
        ("Failed", true),
        ("Deleted", false),
        ("LeaderChanged", false),
    ];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
    let began = collector.spans("imagecache operation")[3].time.0;
    assert_eq!(
        Duration::from_nanos(began),
        Duration::from_secs(4),
        "the time of the status"
    );
}

#[tokio::test]
async fn a_batch_belongs_to_the_first_operation_and_has_links_to_the_others() {
    let collector = sent(|spans| {
        spans.decided(&write("a", status::PROCESSING, 1));
        spans.decided(&write("b", status::PROCESSING, 2));
        for operations in [&["a", "b"][..], &[]] {
            let span = spans.batch(&check(operations));
            batch_ended(&span, &Event::BatchEnded(BatchId(1), BatchEnd::Unreachable));
        }
    })
    .await;
    let ids = collector.spans("imagecache operation");
    let ids: Vec<Vec<u8>> = ids.into_iter().map(|span| span.id).collect();
    let checks = collector.spans("node check");
    assert_eq!(
        (&checks[0].parent, &checks[0].links[..]),
        (&ids[0], &ids[1..])
    );
    assert!(checks[1].parent.is_empty() && checks[1].links.is_empty());
    let ended = |span: &SeenSpan| span.failed && span.get("kubefledged.result") == "Unreachable";
    assert!(checks.iter().all(ended), "{checks:?}");
}
