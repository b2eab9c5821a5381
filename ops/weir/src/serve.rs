//! `weir serve`: the broker as a process.
//!
//! Owns: logs, signals, the ready line, the runtime.
//! Never: broker logic.

use crate::arguments::ServeArguments;
use crate::failure::Failure;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{IsTerminal, Write};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use weir_broker::config::{Config, LogFormat, Overrides};
use weir_broker::{Addresses, Broker, Seams};

pub(crate) fn run(arguments: &ServeArguments) -> Result<(), Failure> {
    let config = load_config(arguments)?;
    start_logs(&config)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

pub(crate) fn load_config(arguments: &ServeArguments) -> Result<Config, Failure> {
    let overrides = Overrides {
        data_dir: arguments.data_dir.clone(),
        native: arguments.listen,
        admin: arguments.admin,
        insecure: arguments.insecure,
        peers: arguments.peers,
        seeds: arguments.seeds.clone(),
    };
    Config::load(arguments.config.as_deref(), std::env::vars(), &overrides)
        .map_err(|e| Failure::Usage(e.to_string()))
}

async fn serve(config: Config) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let seams = Seams::os(&config).map_err(|e| Failure::NotDone(e.to_string()))?;
    let data_dir = config.data_dir().display().to_string();
    // A broker that waits for others to form a cluster may wait for long.
    let broker = tokio::select! {
        biased;
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        started = Broker::start(config, seams) => {
            started.map_err(|error| Failure::NotDone(error.to_string()))?
        }
    };
    say_ready(broker.addresses(), &data_dir)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
    }
    tokio::select! {
        () = broker.drain() => Ok(()),
        _ = interrupt.recv() => Err(Failure::NotDone("interrupted while draining".to_owned())),
    }
}

fn say_ready(addresses: Addresses, data_dir: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let Addresses { native, admin, peers } = addresses;
    write!(out, "weir ready native={native} admin={admin}")?;
    if let Some(peers) = peers {
        write!(out, " peers={peers}")?;
    }
    writeln!(out, " data_dir={data_dir}")?;
    out.flush()
}

/// Every segment and every connection is an open file: what the system lets this process have is
/// taken. Without it the broker refuses sooner, and nothing else.
fn raise_file_limit() {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: found.maximum, maximum: found.maximum };
    let outcome = setrlimit(Resource::Nofile, raised);
    let now = getrlimit(Resource::Nofile);
    let (soft, hard) = (words_of(now.current), words_of(now.maximum));
    match outcome {
        Ok(()) => tracing::info!(soft, hard, "open files"),
        Err(error) => tracing::warn!(soft, hard, %error, "the limit of open files stays"),
    }
}

fn words_of(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

fn start_logs(config: &Config) -> Result<(), Failure> {
    let filter =
        EnvFilter::try_new(config.log_level()).map_err(|e| Failure::Usage(e.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = match config.log_format() {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.init();
    }
    Ok(())
}
