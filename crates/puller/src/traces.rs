//! Spans of pulls and removals: docs/operations.md lists them.

use std::time::SystemTime;

use kubefledged_process::traces::{
    Context, KeyValue, SpanBuilder, Status, TraceContextExt as _, Traces,
};
use kubefledged_queue::{PullOutcome, PullResult, RemoveOutcome, RemoveResult};

use crate::driver::{pull_label, removal_label};

/// The images of one request, as far as there are traces.
pub struct Images {
    traces: Traces,
    /// The span of the batch.
    batch: Context,
    began: SystemTime,
    names: Vec<String>,
}

impl Images {
    /// The images with these names, in the order of the request.
    pub fn of<'a>(
        traces: &Traces,
        batch: Context,
        names: impl Iterator<Item = &'a String>,
    ) -> Self {
        Self {
            traces: traces.clone(),
            batch,
            began: SystemTime::now(),
            names: names.take_while(|_| traces.are_on()).cloned().collect(),
        }
    }

    /// Makes a span of each outcome. A pull begins when it has its slot, so that the time before is the wait for it.
    pub fn pulled(&self, outcomes: &[PullOutcome]) {
        for outcome in outcomes.iter().filter(|_| self.traces.are_on()) {
            let attempts = KeyValue::new("kubefledged.attempts", i64::from(outcome.attempts));
            let size = outcome.image.as_ref().map_or(0, |image| image.size);
            let bytes = [
                ("kubefledged.image_bytes", size),
                ("kubefledged.registry_bytes", outcome.sources.registry),
                ("kubefledged.peer_bytes", outcome.sources.peers),
            ];
            // 0: it is not known, or there are none.
            let bytes = bytes.into_iter().filter(|(_, bytes)| *bytes > 0);
            let bytes = bytes
                .map(|(key, bytes)| KeyValue::new(key, i64::try_from(bytes).unwrap_or(i64::MAX)));
            let (result, reason) = pull_label(&outcome.result);
            let failed = matches!(outcome.result, PullResult::Failed { .. });
            let began = SystemTime::now() - outcome.took;
            let span = SpanBuilder::from_name("image pull")
                .with_start_time(began)
                .with_attributes(bytes.chain([attempts]));
            self.end(span, outcome.index, (result, reason, failed));
        }
    }

    /// Makes a span of each outcome, from the request on.
    pub fn removed(&self, outcomes: &[RemoveOutcome]) {
        for outcome in outcomes.iter().filter(|_| self.traces.are_on()) {
            let (reason, failed) = match &outcome.result {
                RemoveResult::Kept { reason, .. } => (&**reason, false),
                RemoveResult::Failed { reason, .. } => (&**reason, true),
                RemoveResult::Removed | RemoveResult::Absent | RemoveResult::Superseded => {
                    ("", false)
                }
            };
            let result = (removal_label(&outcome.result), reason, failed);
            let span = SpanBuilder::from_name("image remove").with_start_time(self.began);
            self.end(span, outcome.index, result);
        }
    }

    /// Ends a span now.
    fn end(
        &self,
        span: SpanBuilder,
        index: usize,
        (result, reason, failed): (&'static str, &str, bool),
    ) {
        let span = self.traces.begin(&self.batch, || span);
        let span = span.span();
        let name = self.names.get(index).cloned().unwrap_or_default();
        span.set_attribute(KeyValue::new("kubefledged.image", name));
        span.set_attribute(KeyValue::new("kubefledged.result", result));
        if !reason.is_empty() {
            span.set_attribute(KeyValue::new("kubefledged.reason", reason.to_owned()));
        }
        if failed {
            span.set_status(Status::error(reason.to_owned()));
        }
    }
}
