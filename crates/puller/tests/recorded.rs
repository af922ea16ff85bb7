//! Every answer to a failing pull that was recorded from a runtime, on its way through the puller:
//! from the runtime's gRPC status to the outcome that the controller gets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use common::{Puller, image};
use kubefledged_proto::puller::PullResult;
use kubefledged_queue::{CallError, Remedy, classify};
use kubefledged_testkit::Removal;
use serde_json::Value;
use tonic::Code;

const RECORDED: &str = include_str!("../../queue/testdata/pull-errors.json");

fn code(name: &str) -> Code {
    match name {
        "NotFound" => Code::NotFound,
        "FailedPrecondition" => Code::FailedPrecondition,
        "Unknown" => Code::Unknown,
        _ => panic!("add {name} here"),
    }
}

#[tokio::test]
async fn every_recorded_answer_reaches_the_controller_as_what_it_means() {
    let mut puller = Puller::start(Removal::Whole).await;
    let records: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    let text = |record: &Value, field: &str| record[field].as_str().unwrap().to_owned();
    let name = |i: usize| format!("registry.test/recorded/i{i}:1");
    for (i, record) in records.iter().enumerate() {
        let code = code(&text(record, "code"));
        puller
            .runtime
            .fail(&name(i), code, &text(record, "message"));
    }
    let images = (0..records.len()).map(|i| image(&name(i))).collect();
    let outcomes = puller.pull(1, images).await.outcomes().await;
    assert_eq!(outcomes.len(), records.len());
    for (i, (record, outcome)) in records.iter().zip(outcomes).enumerate() {
        let error = CallError {
            code: text(record, "code"),
            message: text(record, "message"),
        };
        let class = classify(&error, &name(i));
        let repeated = matches!(class.remedy, Remedy::Repeat | Remedy::RepeatAtOnce);
        if repeated {
            // It failed once only.
            assert_eq!(outcome.result(), PullResult::Pulled, "{record}");
            assert_eq!(outcome.attempts, 2, "{record}");
            continue;
        }
        assert_eq!(outcome.result(), PullResult::Failed, "{record}");
        assert_eq!(outcome.reason, class.reason, "{record}");
        assert_eq!(outcome.attempts, 1, "{record}");
        let length = outcome.message.len();
        assert!((1..=1024).contains(&length), "{record}: {length}");
        assert!(!outcome.message.contains("?scope="), "{}", outcome.message);
    }
}
