//! `weir config`: is a configuration right, and what is in effect?
//!
//! Owns: how settings are shown. Never: starts anything.

use crate::arguments::{ConfigArguments, ConfigCommand, Output};
use crate::failure::Failure;
use crate::output::{print_json, print_table};
use serde_json::json;
use std::path::Path;
use weir_broker::config::{Config, Overrides};

pub(crate) fn run(arguments: &ConfigArguments) -> Result<(), Failure> {
    match &arguments.command {
        ConfigCommand::Check { file } => {
            load(Some(file))?;
            println!("{}: no problem found", file.display());
            Ok(())
        }
        ConfigCommand::Effective { config, output } => {
            let config = load(config.as_deref())?;
            show(&config, output.output)
        }
    }
}

fn load(file: Option<&Path>) -> Result<Config, Failure> {
    Config::load(file, std::env::vars(), &Overrides::default())
        .map_err(|e| Failure::Usage(e.to_string()))
}

fn show(config: &Config, output: Output) -> Result<(), Failure> {
    let settings = config.effective();
    match output {
        Output::Json => {
            let rows = settings.iter().map(|setting| {
                json!({ "key": setting.key, "value": setting.value, "origin": setting.origin.to_string() })
            });
            print_json(&rows.collect::<Vec<_>>())?;
        }
        Output::Table => {
            let rows = settings.into_iter().map(|setting| {
                [setting.key.to_string(), setting.value.to_string(), setting.origin.to_string()]
            });
            print_table(["key", "value", "origin"], rows)?;
        }
    }
    Ok(())
}
