//! The one binary.
//!
//! Owns: the command line, exit codes, and what is printed where: stdout = data, stderr = prose.
//! Never: broker or client logic; it calls the libraries.

#![forbid(unsafe_code)]

mod admin;
mod arguments;
mod bench;
mod check;
mod cluster;
mod config;
mod data;
mod diag;
mod failure;
mod output;
mod publish;
mod serve;
mod subscribe;
mod topic;
mod values;

use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = run(Arguments::parse());
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A reader that went away (`weir sub | head`) is not worth a complaint.
            if !failure.is_broken_pipe() {
                eprintln!("weir: {failure}");
            }
            failure.exit_code()
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "weir", &mut std::io::stdout());
            Ok(())
        }
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Data(arguments) => data::run(&arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Topic(arguments) => block_on(topic::run(arguments)),
        Command::Pub(arguments) => block_on(publish::run(arguments)),
        Command::Sub(arguments) => block_on(subscribe::run(arguments)),
        Command::Check(arguments) => block_on(check::run(arguments)),
        Command::Diag(arguments) => block_on(diag::run(arguments)),
    }
}

/// Client commands need one thread; the broker and the bench choose their own runtime.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // Reading stdin may still block a thread; nothing waits for it.
    runtime.shutdown_background();
    outcome
}
