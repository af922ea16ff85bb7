//! Logs go to standard error: one line an event, JSON or text.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// error, warn, info, debug or trace; or a filter such as info,kubefledged_engine=debug
    #[expect(clippy::doc_markdown, reason = "--help would show the backticks")]
    #[arg(long, default_value = "info", env = "LOG_LEVEL")]
    pub log_level: String,
    /// One JSON object or one text line an event
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// Accepted for kube-fledged's sake; use --log-level
    #[arg(long, hide = true)]
    pub stderrthreshold: Option<String>,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For log collectors.
    Json,
    /// For people.
    Text,
}

/// A filter that does not parse.
#[derive(Debug, thiserror::Error)]
#[error(
    "--log-level {0:?} is no log filter: write info, debug or target=level, separated by commas"
)]
pub struct LogError(String);

/// Starts logging for the whole process. Call it once.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(args.log_level.to_lowercase())
        .map_err(|_| LogError(args.log_level.clone()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second call (whole-process tests) keeps the first subscriber.
    let started = match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    if started.is_ok() && args.stderrthreshold.is_some() {
        tracing::warn!("--stderrthreshold has no effect any more: use --log-level");
    }
    Ok(())
}
