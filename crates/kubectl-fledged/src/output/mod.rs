//! How results are printed: tables for people, JSON and YAML for programs, names for pipes.

pub mod quantities;
mod table;

use std::io::Write as _;

use clap::ValueEnum;
use console::{Style, Term};
use serde::Serialize;

use crate::exit::Failure;

/// Value of `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// The same as JSON, in YAML
    Yaml,
    /// One kind/name a line
    Name,
}

/// A line of a list.
pub trait Row: Serialize {
    /// Headings of the columns.
    const HEAD: &'static [&'static str];

    /// One text for each column.
    fn cells(&self) -> Vec<String>;

    /// As `kubectl -o name` writes it.
    fn name(&self) -> String;
}

/// Prints results to the standard output.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// How.
    pub format: Format,
}

impl Out {
    /// Is somebody reading on a terminal?
    pub fn is_terminal(self) -> bool {
        Term::stdout().is_term()
    }

    /// Prints a list.
    pub fn rows<R: Row>(self, rows: &[R]) -> Result<(), Failure> {
        match self.format {
            Format::Table if rows.is_empty() => text("Nothing was found.\n"),
            Format::Table => text(&table::table(R::HEAD, rows.iter().map(Row::cells))),
            Format::Name => {
                let names = rows.iter().map(|row| row.name() + "\n");
                text(&names.collect::<String>())
            }
            Format::Json | Format::Yaml => self.structured(&rows),
        }
    }

    /// Prints one thing; `shown` is the text for people.
    pub fn one<T: Serialize>(self, value: &T, name: &str, shown: &str) -> Result<(), Failure> {
        match self.format {
            Format::Table => text(shown),
            Format::Name => text(&format!("{name}\n")),
            Format::Json | Format::Yaml => self.structured(value),
        }
    }

    fn structured<T: Serialize>(self, value: &T) -> Result<(), Failure> {
        let written = if self.format == Format::Yaml {
            serde_saphyr::to_string(value).map_err(|error| error.to_string())
        } else {
            let json = serde_json::to_string_pretty(value);
            json.map(|json| json + "\n")
                .map_err(|error| error.to_string())
        };
        text(&written.map_err(Failure::Failed)?)
    }
}

/// Prints text. Nobody reads any more, as behind `| head`: that is no failure of the command.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Tells something beside the result, on standard error.
pub fn note(text: &str) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Text in the colour of good news, where colours are shown.
pub fn good(text: &str) -> String {
    Style::new().green().apply_to(text).to_string()
}

/// Text in the colour of bad news, where colours are shown.
pub fn bad(text: &str) -> String {
    Style::new().red().apply_to(text).to_string()
}

/// A command to type, where colours are shown.
pub fn command(text: &str) -> String {
    Style::new().cyan().apply_to(text).to_string()
}

/// A table as [`Out::rows`] prints it, for texts of several parts.
pub fn columns(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    table::table(head, rows.into_iter())
}
