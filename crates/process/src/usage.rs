//! Metrics of the resources that this process uses. They are read at each scrape.

use std::{fmt, fs};

use procfs::{ProcResult, WithCurrentSystemInfo as _, process::Process};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

const RESIDENT_MEMORY: &str = "Resident memory of this process.";
const OPEN_FDS: &str = "Open file descriptors of this process, including sockets.";

/// Collects memory, file descriptors and tasks. These grow if the process leaks.
#[derive(Debug)]
pub struct Usage;

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let used = Used::read();
        let mut show = |name, help, unit, metric| encode(&mut encoder, name, help, unit, &metric);
        show(
            "process_resident_memory",
            RESIDENT_MEMORY,
            Some(&Unit::Bytes),
            ConstGauge::new(used.resident_bytes),
        )?;
        show(
            "process_open_fds",
            OPEN_FDS,
            None,
            ConstGauge::new(used.open_fds),
        )?;
        let tasks = "Asynchronous tasks of this process that are alive.";
        show("process_tasks", tasks, None, ConstGauge::new(tasks_alive()))
    }
}

/// Returns a metrics registry with the names that the client libraries of Prometheus use for every process.
pub fn conventional() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Conventional));
    registry
}

#[derive(Debug)]
struct Conventional;

impl Collector for Conventional {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let used = Used::read();
        let cpu = "CPU time that this process has used, user and system.";
        let seconds = Some(&Unit::Seconds);
        encode(
            &mut encoder,
            "process_cpu",
            cpu,
            seconds,
            &ConstCounter::new(used.cpu_seconds),
        )?;
        let mut show = |name, help, unit, value: f64| {
            encode(&mut encoder, name, help, unit, &ConstGauge::new(value))
        };
        let start = "Time at which this process started, in seconds since the epoch.";
        show("process_start_time", start, seconds, used.start_seconds)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let (resident, files) = (used.resident_bytes as f64, used.open_fds as f64);
        show(
            "process_resident_memory",
            RESIDENT_MEMORY,
            Some(&Unit::Bytes),
            resident,
        )?;
        show("process_open_fds", OPEN_FDS, None, files)
    }
}

fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
}

/// What this process uses. A value that cannot be read is 0.
#[derive(Debug, Default)]
struct Used {
    /// User and system time.
    cpu_seconds: f64,
    /// When it started, in seconds since the epoch.
    start_seconds: f64,
    resident_bytes: i64,
    open_fds: i64,
}

impl Used {
    fn read() -> Self {
        Self::try_read().unwrap_or_default()
    }

    fn try_read() -> ProcResult<Self> {
        let open_fds = open_files();
        let stat = Process::myself()?.stat()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let boot = procfs::boot_time_secs()? as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            start_seconds: boot + seconds(stat.starttime),
            resident_bytes: i64::try_from(stat.rss_bytes().get()).unwrap_or(i64::MAX),
            open_fds,
        })
    }
}

/// The library's count holds descriptors of its own, how many depends on the kernel.
fn open_files() -> i64 {
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // Reading the directory opens one descriptor itself.
    i64::try_from(files.saturating_sub(1)).unwrap_or(i64::MAX)
}

fn tasks_alive() -> i64 {
    let handle = tokio::runtime::Handle::try_current();
    let tasks = handle.map_or(0, |handle| handle.metrics().num_alive_tasks());
    i64::try_from(tasks).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_metrics_of_every_process_are_documented() {
        kubefledged_testkit::assert_documented("every process", &conventional());
    }

    #[tokio::test]
    async fn what_is_held_is_counted_and_what_is_given_back_is_not() {
        let used = Used::read();
        assert!(used.resident_bytes > 100_000, "{used:?}");
        let before = (used.open_fds, tasks_alive());
        let file = fs::File::open("/dev/null").unwrap();
        let task = tokio::spawn(std::future::pending::<()>());
        assert!(Used::read().open_fds > before.0 && tasks_alive() == before.1 + 1);
        drop(file);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(tasks_alive(), before.1);
    }

    #[test]
    fn a_process_has_started_lately_and_its_cpu_time_grows() {
        let before = Used::read();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - before.start_seconds;
        assert!((-2.0..86_400.0).contains(&age), "{age} s");
        while Used::read().cpu_seconds <= before.cpu_seconds {
            std::hint::spin_loop();
        }
    }
}
