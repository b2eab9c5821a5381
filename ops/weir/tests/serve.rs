//! `weir serve`: the ready line, health, the drain, and what it refuses to start with.

mod common;

use common::{Broker, WEIR, failure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

fn serve(args: &[&str]) -> Command {
    let mut command = Command::new(WEIR);
    command.arg("serve").args(args);
    command
}

#[test]
fn the_ready_line_names_real_ports_and_sigterm_drains() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("data"));
    assert!(broker.ready_line.starts_with("weir ready native=127.0.0.1:"), "{}", broker.ready_line);
    assert!(!broker.native.ends_with(":0") && !broker.admin.ends_with(":0"));
    for page in ["/readyz", "/livez", "/readyz?verbose", "/v1/topics", "/v1/connections"] {
        assert!(broker.get(page).starts_with("HTTP/1.1 200"), "{page}");
    }
    let missing = broker.get("/v1/nothing");
    assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("application/problem+json"));
    broker.ok(&["check", "live"]);
    broker.ok(&["check", "ready"]);
    assert!(broker.get("/metrics").contains("weir_build_info{"));
    assert_eq!(broker.terminate(), Some(0));
}

/// Who started the first of three terminals may think better of it.
#[test]
fn a_broker_that_waits_for_its_cluster_is_stopped_by_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    // Others are told where it is, so that it may not pick its ports.
    let [native, peers] = [(); 2]
        .map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string());
    let seeds = format!("{peers},127.0.0.1:1");
    let args = ["--listen", &native, "--admin", "127.0.0.1:0", "--peers", &peers];
    let mut command = serve(&args);
    command.args(["--seeds", &seeds, "--data-dir"]).arg(dir.path()).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("127.0.0.1:1")), "it says for whom it waits");
    let stop = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(stop.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_data_directory_has_one_broker() {
    let dir = tempfile::tempdir().unwrap();
    let _broker = Broker::start(dir.path());
    let data_dir = dir.path().to_str().unwrap();
    let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", data_dir];
    let said = failure(serve(&args), 1);
    assert!(said.contains(data_dir) && said.contains("in use"), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let below = file.join("data");
    let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"];
    let mut command = serve(&args);
    command.arg(&below);
    let said = failure(command, 1);
    assert!(said.contains(below.to_str().unwrap()), "{said}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(one.path());
    let mut command = serve(&["--admin", "127.0.0.1:0", "--listen", &broker.native]);
    command.arg("--data-dir").arg(two.path());
    let said = failure(command, 1);
    assert!(said.contains(&broker.native), "{said}");
}

#[test]
fn a_bad_configuration_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.toml");
    let said_about = |text: &str| {
        fs::write(&file, text).unwrap();
        let mut checked = Command::new(WEIR);
        checked.args(["config", "check"]).arg(&file);
        let checked = failure(checked, 2);
        let mut served = serve(&["--config"]);
        served.arg(&file);
        assert!(failure(served, 2).contains(checked.trim().trim_start_matches("weir: ")));
        checked
    };
    let said = said_about("[limits]\nmemroy = \"1GiB\"\n");
    assert!(said.contains("limits.memroy") && said.contains("limits.memory"), "{said}");
    let said = said_about("[limits]\nmemory = 64\n");
    assert!(said.contains("limits.memory") && said.contains("unit"), "{said}");
    let said = said_about("[limits\n");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
}

#[test]
fn a_public_address_needs_insecure() {
    let said = failure(serve(&["--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"]), 2);
    assert!(said.contains("--insecure"), "{said}");
}
