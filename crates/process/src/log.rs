//! Logging to standard error, one line per event, as JSON or text. The level can be changed while the
//! process runs.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use clap::{Args, ValueEnum};
use tokio::time::Instant;
use tracing::metadata::LevelFilter;
use tracing_subscriber::{
    Registry, filter::Targets, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Flags for logs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// Log level: error, warn, info, debug or trace; or a filter such as info,kubefledged_engine=debug
    #[expect(clippy::doc_markdown, reason = "--help would show the backticks")]
    #[arg(long, default_value = "info", env = "LOG_LEVEL")]
    pub log_level: String,
    /// Format of a log line
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// No effect, accepted for compatibility with kube-fledged: use --log-level
    #[arg(long, hide = true)]
    pub stderrthreshold: Option<String>,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line, for log collectors
    Json,
    /// Plain text, for people
    Text,
}

/// The text is not a log level or filter.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no log level: write info, debug or target=level, separated by commas")]
pub struct LogError(String);

/// The current level, and the handle that changes it.
struct Level {
    now: Mutex<String>,
    filter: reload::Handle<Targets, Registry>,
}

static LEVEL: OnceLock<Level> = OnceLock::new();

/// Starts logging for the whole process. Call it once.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    let (layer, filter) = reload::Layer::new(parse(&args.log_level)?);
    let filtered = tracing_subscriber::registry().with(layer);
    let lines = fmt::layer().with_writer(std::io::stderr);
    // The two forms are two types. A second call (whole-process tests) keeps the first subscriber.
    let started = match args.log_format {
        LogFormat::Json => filtered.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => filtered.with(lines).try_init(),
    };
    if started.is_ok() {
        let now = Mutex::new(args.log_level.to_lowercase());
        let _ = LEVEL.set(Level { now, filter });
        if args.stderrthreshold.is_some() {
            tracing::warn!("--stderrthreshold has no effect any more: use --log-level");
        }
    }
    Ok(())
}

/// Returns the current level. It is empty before [`init`].
pub fn level() -> String {
    LEVEL.get().map_or_else(String::new, |level| {
        let now = level.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.clone()
    })
}

/// Changes the level until the process ends or the level is changed again.
pub fn set_level(text: &str) -> Result<(), LogError> {
    let filter = parse(text)?;
    let Some(level) = LEVEL.get() else {
        return Ok(());
    };
    if level.filter.reload(filter).is_ok() {
        *level.now.lock().unwrap_or_else(PoisonError::into_inner) = text.to_lowercase();
        tracing::info!(level = text, "log level changed");
    }
    Ok(())
}

/// Lets so many lines through in a time and counts the others: what anybody can cause must not fill
/// the log.
#[derive(Debug)]
pub struct Pace {
    lines: u32,
    window: Duration,
    state: Mutex<Paced>,
}

#[derive(Debug, Default)]
struct Paced {
    /// When the time began, and how many lines came in it.
    began: Option<(Instant, u32)>,
    left_out: u64,
}

impl Pace {
    /// At most `lines` in each `window`.
    pub fn new(lines: u32, window: Duration) -> Self {
        Self {
            lines,
            window,
            state: Mutex::default(),
        }
    }

    /// Whether a line may be written at `now`, and how many were left out before it.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Paced { began, left_out } = &mut *state;
        match began {
            Some((at, lines)) if now.duration_since(*at) < self.window => {
                if *lines >= self.lines {
                    *left_out += 1;
                    return None;
                }
                *lines += 1;
            }
            _ => *began = Some((now, 1)),
        }
        Some(std::mem::take(left_out))
    }
}

// Not an EnvFilter: that brings an engine of regular expressions, half a megabyte on every node.
fn parse(text: &str) -> Result<Targets, LogError> {
    let wrong = || LogError(text.to_owned());
    let text = text.trim().to_lowercase();
    // Without this check the filter would treat a misspelt level as the name of a target.
    let levels = text
        .split(',')
        .all(|part| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok());
    if text.is_empty() || text.contains('[') || !levels {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused_and_not_taken_for_a_target() {
        for good in ["info", "DEBUG", "warn,kubefledged_engine=debug", "off"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "infoo",
            "debug,kubefledged_engine",
            "a=b=c",
            "[span]=info",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(
                error.contains("is no log level: write info"),
                "{bad} {error}"
            );
        }
    }
}
