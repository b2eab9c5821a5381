//! The settings of a broker that is one of several.
//!
//! Owns: reading `[cluster]`, `listen.peers` and `node.advertise*` into one whole.
//! Never: reaches a peer, or shows the secret.
//! Invariants: seeds are distinct and sorted, so that every broker that was told of the same ones
//! holds the same list; without a secret nothing is beyond loopback.

use super::values::{ValueError, parse_count, parse_listen};
use super::{ConfigError, Reader, settings};
use crate::replication::metadata::{Address, GATE_HERE};
use std::net::SocketAddr;
use std::path::Path;
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::peer::Secret;
use weir_protocol::peer::limits::{SECRET_BYTES_MAX, SECRET_BYTES_MIN};
use weir_protocol::types::Name;

/// Permission bits of everybody but the owner.
#[cfg(unix)]
const MODE_OTHERS: u32 = 0o077;

/// What a broker is told about the others.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// Where the brokers that form the cluster listen for peers, sorted. They form it only when all
    /// of them are there and empty; any of them that belongs to one lets others join.
    pub seeds: Vec<Address>,
    /// What all brokers of the cluster know; none only where everything is loopback.
    pub secret: Option<Secret>,
    /// Whether others than its owner may read the file of the secret.
    pub is_secret_exposed: bool,
    /// What fails together with this broker.
    pub rack: Name,
    /// How many voters the metadata shall have: 1, 3 or 5; 0 = as many as fit the brokers.
    pub metadata_voters: u8,
    /// Bytes a second that each broker which is far behind is sent; 0 = as fast as it goes.
    pub catch_up_bytes_per_s: u64,
    /// The highest gate that this broker tells others it reads: that of its build, or a lower one
    /// that it is held at.
    pub gate: u32,
    /// Where this broker listens for peers.
    pub listen: SocketAddr,
    /// Where peers are told to find it.
    pub peer: Address,
    /// Where clients are told to find it.
    pub client: Address,
    /// What people call it.
    pub name: Name,
}

/// None without seeds: such a broker is alone.
pub(super) fn read(read: &Reader<'_>) -> Result<Option<ClusterSettings>, ConfigError> {
    let seeds = read.parsed("cluster.seeds", parse_seeds)?;
    let expected = read.parsed("cluster.expect", |text| parse_count(text, 0, BROKERS_MAX))?;
    let metadata_voters = read.parsed("cluster.metadata_voters", parse_voters)?;
    let catch_up_bytes_per_s = read.parsed("cluster.catchup_bytes_per_s", settings::parse_rate)?;
    let gate = read.parsed("cluster.gate_max", parse_gate)?;
    let listen = read.parsed("listen.peers", parse_listen)?;
    let native = read.parsed("listen.native", parse_listen)?;
    let name = read.parsed("node.name", parse_name)?;
    let rack = match read.text("cluster.rack") {
        "" => name.clone(),
        _ => read.parsed("cluster.rack", parse_name)?,
    };
    if seeds.is_empty() {
        return Ok(None);
    }
    if expected != 0 && expected != seeds.len() {
        let text = format!(
            "cluster.seeds names {}: name every broker that forms the cluster there, the same on \
             each, or leave this out",
            seeds.len()
        );
        return Err(read.wrong("cluster.expect", text));
    }
    let peer = advertised(read, ("node.advertise_peers", "listen.peers"), listen)?;
    let client = advertised(read, ("node.advertise", "listen.native"), native)?;
    let is_local = seeds.iter().chain([&peer]).all(is_loopback) && listen.ip().is_loopback();
    let (secret, is_secret_exposed) = secret(read, is_local)?;
    Ok(Some(ClusterSettings {
        seeds,
        secret,
        is_secret_exposed,
        rack,
        metadata_voters: metadata_voters as u8,
        catch_up_bytes_per_s,
        gate,
        listen,
        peer,
        client,
        name,
    }))
}

fn parse_name(text: &str) -> Result<Name, ValueError> {
    Name::new(text).map_err(|error| ValueError::new(error.to_string()))
}

fn parse_voters(text: &str) -> Result<usize, ValueError> {
    let wrong = |_| ValueError::new("write 1, 3 or 5, or 0 for as many as fit the brokers");
    parse_count(text, 0, 5).map_err(wrong).and_then(|count| match count {
        0 | 1 | 3 | 5 => Ok(count),
        _ => Err(wrong(ValueError::new(""))),
    })
}

/// What this build reads, unless less is asked for.
fn parse_gate(text: &str) -> Result<u32, ValueError> {
    if text.is_empty() {
        return Ok(GATE_HERE);
    }
    let wrong = |_| {
        let text = format!(
            "this build reads gates up to {GATE_HERE}; write one of those, or nothing to hold \
             back none"
        );
        ValueError::new(text)
    };
    parse_count(text, 0, GATE_HERE as usize).map(|gate| gate as u32).map_err(wrong)
}

/// Addresses apart by commas, as a list of the file is handed over and an environment variable is
/// written.
fn parse_seeds(text: &str) -> Result<Vec<Address>, ValueError> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut seeds = parts.map(parse_address).collect::<Result<Vec<_>, _>>()?;
    seeds.sort();
    if let Some(twice) = seeds.windows(2).find(|pair| pair[0] == pair[1]) {
        let text = format!("{} is named twice; name each broker once", twice[0].as_str());
        return Err(ValueError::new(text));
    }
    if seeds.len() > BROKERS_MAX {
        let text = format!("{} seeds are too many; name at most {BROKERS_MAX}", seeds.len());
        return Err(ValueError::new(text));
    }
    Ok(seeds)
}

/// A place that others can be told: a host and a port that is not 0.
fn parse_address(text: &str) -> Result<Address, ValueError> {
    let wrong = || {
        let text = format!("{text:?} is no place to go to; write a host and a port: weir-1:7422");
        ValueError::new(text)
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let has_port = port.parse::<u16>().is_ok_and(|port| port != 0);
    // An address of version 6 stands in brackets, or its end would pass for the port.
    let is_host = !host.is_empty() && (!host.contains(':') || host.ends_with(']'));
    let is_everywhere = text.parse().is_ok_and(|place: SocketAddr| place.ip().is_unspecified());
    if !has_port || !is_host || is_everywhere {
        return Err(wrong());
    }
    Address::new(text).ok_or_else(wrong)
}

/// What others are told: `key`, or what stands under `listens` if that is a place to go to.
fn advertised(
    read: &Reader<'_>,
    (key, listens): (&'static str, &'static str),
    listen: SocketAddr,
) -> Result<Address, ConfigError> {
    if !read.text(key).is_empty() {
        return read.parsed(key, parse_address);
    }
    parse_address(&listen.to_string()).map_err(|_| {
        let text = format!(
            "other machines cannot be told this address; write in {key} where they find this \
             broker, for example \"weir-1:{}\"",
            if listen.port() == 0 { 7422 } else { listen.port() }
        );
        read.wrong(listens, text)
    })
}

fn is_loopback(address: &Address) -> bool {
    match address.as_str().parse::<SocketAddr>() {
        Ok(place) => place.ip().is_loopback(),
        Err(_) => address.as_str().rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
    }
}

/// The secret, and whether others than its owner may read it.
fn secret(read: &Reader<'_>, is_local: bool) -> Result<(Option<Secret>, bool), ConfigError> {
    const KEY: &str = "cluster.secret_file";
    let path = read.text(KEY);
    if path.is_empty() {
        return if is_local {
            Ok((None, false))
        } else {
            let text = "a seed or an address for peers is not loopback, so brokers must prove that \
                        they belong together; write `openssl rand -hex 32` into a file, give it to \
                        every broker, and name it here";
            Err(read.wrong(KEY, text))
        };
    }
    let failed = |error: std::io::Error| {
        read.wrong(KEY, format!("the secret cannot be read: {error}; name a file that can"))
    };
    let bytes = std::fs::read(path).map_err(failed)?;
    let secret = Secret::new(bytes.trim_ascii()).map_err(|error| {
        let bounds = format!("{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}");
        let text = format!(
            "the file holds {} bytes of a secret, {bounds} are needed; `openssl rand -hex 32` \
             makes one",
            error.bytes
        );
        read.wrong(KEY, text)
    })?;
    Ok((Some(secret), is_exposed(Path::new(path)).map_err(failed)?))
}

#[cfg(unix)]
fn is_exposed(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::metadata(path)?.permissions().mode() & MODE_OTHERS != 0)
}

#[cfg(not(unix))]
fn is_exposed(_path: &Path) -> std::io::Result<bool> {
    Ok(false)
}
