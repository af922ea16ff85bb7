//! Completions behind `kubectl fledged`: kubectl runs `kubectl_complete-fledged` with the words that are typed, and reads
//! candidates and a directive in the last line, as its own completions have them.

use std::time::Duration;

use clap::Command;
use kube::{ResourceExt, api::ListParams};

use crate::{
    access::Access,
    args::Global,
    exit::{Exit, Failure},
    output::text,
};

/// No file names, and no other ones than these.
const ONLY_THESE: &str = ":4";
/// Nobody waits longer for names.
const PATIENCE: Duration = Duration::from_secs(2);
/// Commands whose first argument is the name of an `ImageCache`.
const NAMING: [&str; 5] = ["status", "matrix", "watch", "refresh", "purge"];

/// Prints what may stand in the place of the last word.
pub async fn run(all: &Command, global: &Global, words: &[String]) -> Result<Exit, Failure> {
    let mut found = candidates(all, words);
    if wants_name(words) {
        found.extend(names(global, words).await);
    }
    let last = words.last().map_or("", String::as_str);
    found.retain(|candidate| candidate.starts_with(last));
    found.push(ONLY_THESE.to_owned());
    text(&(found.join("\n") + "\n"))?;
    Ok(Exit::Good)
}

/// Commands if none is typed, else flags where one begins.
fn candidates(all: &Command, words: &[String]) -> Vec<String> {
    let (last, before) = words
        .split_last()
        .map_or(("", words), |(last, before)| (last, before));
    let command = before.iter().find_map(|word| all.find_subcommand(word));
    let flags = |of: &Command| -> Vec<String> {
        let flags = of.get_arguments().filter(|flag| !flag.is_hide_set());
        flags
            .filter_map(|flag| Some(format!("--{}", flag.get_long()?)))
            .collect()
    };
    if last.starts_with('-') {
        let own = command.map(flags).unwrap_or_default();
        return own.into_iter().chain(flags(all)).collect();
    }
    if command.is_some() {
        return Vec::new();
    }
    let commands = all
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    commands
        .map(|command| command.get_name().to_owned())
        .collect()
}

/// Is the last word the name of an `ImageCache`?
fn wants_name(words: &[String]) -> bool {
    let Some((last, before)) = words.split_last() else {
        return false;
    };
    let at = before
        .iter()
        .position(|word| NAMING.contains(&word.as_str()));
    let behind = at.map(|at| &before[at + 1..]);
    let nothing = behind.is_some_and(|behind| behind.iter().all(|word| word.starts_with('-')));
    nothing && !last.starts_with('-')
}

/// Names in the namespace that is typed. Without access there are none, and nobody is told.
async fn names(global: &Global, words: &[String]) -> Vec<String> {
    let mut global = global.clone();
    let namespace = words
        .iter()
        .position(|word| word == "-n" || word == "--namespace");
    let typed = namespace.and_then(|at| words.get(at + 1).cloned());
    global.namespace = typed.or(global.namespace);
    let Ok(access) = Access::new(&global).await else {
        return Vec::new();
    };
    let api = access.caches();
    let page = ListParams::default();
    let listed = tokio::time::timeout(PATIENCE, api.list_metadata(&page)).await;
    let Ok(Ok(list)) = listed else {
        return Vec::new();
    };
    list.items.iter().map(ResourceExt::name_any).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn commands_and_then_their_flags_are_offered_and_hidden_ones_are_not() {
        let all = Cli::command();
        let commands = candidates(&all, &words(""));
        assert!(
            commands.contains(&"status".to_owned()) && !commands.contains(&"__complete".to_owned())
        );
        let flags = candidates(&all, &words("matrix web --"));
        assert!(flags.contains(&"--image".to_owned()) && flags.contains(&"--context".to_owned()));
    }

    #[test]
    fn names_are_offered_only_where_a_name_stands() {
        assert!(wants_name(&words("status ")));
        assert!(wants_name(&words("watch w")));
        assert!(!wants_name(&words("status web ")));
        assert!(!wants_name(&words("status --")));
        assert!(!wants_name(&words("why ")));
    }
}
