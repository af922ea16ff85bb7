//! `kubectl fledged`: see, understand and plan which images are cached where.
//!
//! [`access`] reads the cluster, with the rights of the user and no others. [`output`] prints. Between them stands one
//! module for each command: it reads, has a pure function make rows or sentences of what it read, and prints them.
//! [`reasons`] has the sentence and the next command for every reason of the controller.

pub mod access;
pub mod args;
pub mod commands;
pub mod exit;
pub mod manifests;
pub mod output;
pub mod reasons;
pub mod states;

use clap::CommandFactory as _;

use crate::{
    access::Access,
    args::{Cli, Command},
    exit::{Exit, Failure},
    output::Out,
};

/// Carries out a command.
pub async fn run(cli: Cli) -> Result<Exit, Failure> {
    let out = Out {
        format: cli.global.output,
    };
    if let Command::Completion(completion) = &cli.command {
        let mut shown = Vec::new();
        let name = "kubectl-fledged";
        clap_complete::generate(completion.shell, &mut Cli::command(), name, &mut shown);
        output::text(&String::from_utf8_lossy(&shown))?;
        return Ok(Exit::Good);
    }
    if let Command::Complete(complete) = &cli.command {
        return commands::complete::run(&Cli::command(), &cli.global, &complete.words).await;
    }
    let access = Access::new(&cli.global).await?;
    match cli.command {
        Command::List => commands::list::run(&access, out).await,
        Command::Status(args) => commands::status::run(&access, out, &args.name).await,
        Command::Matrix(args) => commands::matrix::run(&access, out, &args).await,
        Command::Nodes(args) => commands::nodes::run(&access, out, &args).await,
        Command::Why(args) => commands::why::run(&access, out, &args).await,
        Command::Watch(args) => commands::watch::run(&access, out, &args).await,
        Command::Refresh(args) => commands::request::refresh(&access, out, &args).await,
        Command::Purge(args) => commands::purge::run(&access, out, &args).await,
        Command::Plan(args) => commands::plan::run(&access, out, &args).await,
        Command::Warm(args) => commands::warm::run(&access, out, args).await,
        Command::Generate(args) => commands::generate::run(&access, out, &args).await,
        Command::Doctor(args) => commands::doctor::run(&access, out, &args).await,
        Command::Ui(args) => commands::ui::run(&access, &args).await,
        Command::Completion(_) | Command::Complete(_) => Ok(Exit::Good),
    }
}
