//! Metrics of the resources that this process uses. They are read at each scrape.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
    registry::Unit,
};

/// Collects memory, file descriptors and tasks. These grow if the process leaks.
#[derive(Debug)]
pub struct Usage;

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut show = |name, help, unit, value| {
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(encoder)
        };
        let resident = "Resident memory of this process.";
        show(
            "process_resident_memory",
            resident,
            Some(&Unit::Bytes),
            resident_bytes(),
        )?;
        let files = "Open file descriptors of this process, including sockets.";
        show("process_open_fds", files, None, open_files())?;
        let tasks = "Asynchronous tasks of this process that are alive.";
        show("process_tasks", tasks, None, tasks_alive())
    }
}

/// Returns the resident memory in bytes, or 0 if it cannot be read.
fn resident_bytes() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
    kib.unwrap_or_default() * 1024
}

fn open_files() -> i64 {
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // Reading the directory opens one descriptor itself.
    i64::try_from(files)
        .unwrap_or(i64::MAX)
        .saturating_sub(1)
        .max(0)
}

fn tasks_alive() -> i64 {
    let handle = tokio::runtime::Handle::try_current();
    let tasks = handle.map_or(0, |handle| handle.metrics().num_alive_tasks());
    i64::try_from(tasks).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_is_counted_and_what_is_given_back_is_not() {
        assert!(resident_bytes() > 100_000);
        let before = (open_files(), tasks_alive());
        let file = fs::File::open("/dev/null").unwrap();
        let task = tokio::spawn(std::future::pending::<()>());
        assert!(open_files() > before.0 && tasks_alive() == before.1 + 1);
        drop(file);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(tasks_alive(), before.1);
    }
}
