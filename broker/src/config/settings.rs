//! The table of settings: what parses, what is documented and what is suggested.
//!
//! Invariant: keys are unique and sorted by section in the order of the example file.

use super::values::{ValueError, parse_bytes};
use weir_protocol::limits::{BATCH_OVERHEAD_BYTES, MESSAGE_BYTES_MAX};

/// One setting.
pub(super) struct Setting {
    pub(super) key: &'static str,
    pub(super) default: &'static str,
    /// What may be written, for the reference.
    pub(super) form: &'static str,
    pub(super) about: &'static str,
    /// The file may have a list of texts; elsewhere they stand apart by commas.
    pub(super) is_list: bool,
}

const fn setting(
    key: &'static str,
    default: &'static str,
    form: &'static str,
    about: &'static str,
) -> Setting {
    Setting { key, default, form, about, is_list: false }
}

pub(super) const SETTINGS: &[Setting] = &[
    setting("node.name", "weir-0", "a name", "Shown to clients, in logs and metrics."),
    setting("node.data_dir", "./weir-data", "a folder", "Where segments and metadata lie."),
    setting(
        "node.advertise",
        "",
        "a host and a port, empty = listen.native",
        "Where other brokers tell clients to find this one.",
    ),
    setting(
        "node.advertise_peers",
        "",
        "a host and a port, empty = listen.peers",
        "Where other brokers find this one. A seed is the broker that advertises it.",
    ),
    setting("listen.native", "127.0.0.1:7420", "an address", "For clients. Port 0 picks one."),
    setting(
        "listen.admin",
        "127.0.0.1:7421",
        "an address",
        "For metrics, health and the admin API. Port 0 picks one.",
    ),
    setting(
        "listen.peers",
        "127.0.0.1:7422",
        "an address",
        "For other brokers. Nothing listens there unless cluster.seeds names any.",
    ),
    setting(
        "listen.insecure",
        "false",
        "true or false",
        "Accept addresses that are not loopback although there is neither TLS nor authentication.",
    ),
    Setting {
        is_list: true,
        ..setting(
            "cluster.seeds",
            "",
            "a list of hosts and ports, empty = this broker is alone",
            "Where the brokers that form the cluster advertise themselves to peers, the same list \
             on each. They form it when all are there and empty; who finds a cluster joins it.",
        )
    },
    setting(
        "cluster.expect",
        "0",
        "a count from 1 to 64, 0 = as many as there are seeds",
        "Brokers that form the cluster: a check that no seed was forgotten.",
    ),
    setting(
        "cluster.secret_file",
        "",
        "a file of 32 to 4096 bytes, empty = no secret",
        "What brokers prove to one another that they know. Needed as soon as anything of the \
         cluster is not loopback. Make it with `openssl rand -hex 32`.",
    ),
    setting(
        "cluster.rack",
        "",
        "a name, empty = node.name",
        "What fails together with this broker. Replicas are spread over racks.",
    ),
    setting(
        "cluster.metadata_voters",
        "0",
        "1, 3 or 5, 0 = as many as fit the brokers",
        "Brokers that vote on metadata; all others keep a copy. 0 is 1 below 3 brokers, 3 below 7, \
         and 5 from there on.",
    ),
    setting(
        "cluster.catchup_bytes_per_s",
        "32MiB",
        "a size, 0 = as fast as it goes",
        "The most that this broker sends each other one a second of what helps replicas there catch \
         up that are more than 64 MiB behind: after an outage, a move or a repair. What a topic \
         could not be written without, and what mends damage, is counted and not held up.",
    ),
    setting(
        "cluster.gate_max",
        "",
        "a gate, empty = the highest that this build reads",
        "Hold the formats that the cluster writes at this gate, so that a build that reads no more \
         can still take this broker's place. Empty lets it rise once every broker reads more.",
    ),
    setting(
        "limits.memory",
        "25%",
        "a size, or a share of the memory of the machine or cgroup",
        "The memory budget; at least 64MiB. What peers may send is granted out of it.",
    ),
    setting("limits.connections", "10000", "a count", "Connections at a time."),
    setting(
        "limits.message_max",
        "1MiB",
        "a size from 1KiB to 8MiB",
        "The largest message: key, headers and value together.",
    ),
    setting(
        "flow.pool",
        "4MiB",
        "a size of at least twice limits.message_max and 64KiB",
        "Publish credit of the device: what all publishers together may have under way. A few \
         times what the disk flushes at once; more only makes them wait longer.",
    ),
    setting("storage.backend", "auto", "auto, map or pwrite", "How segments are stored."),
    setting(
        "storage.scrub_bytes_per_second",
        "8MiB",
        "a size, 0 = never",
        "The most that is read a second in search of bytes that rotted in sealed segments.",
    ),
    setting(
        "storage.scrub_interval",
        "7d",
        "a duration",
        "From the beginning of one search through all sealed segments to that of the next, at \
         least.",
    ),
    setting(
        "shutdown.drain_timeout",
        "30s",
        "a duration",
        "How long a drain may take before what is left is cut off.",
    ),
    setting(
        "metrics.topics_max",
        "2000",
        "a count",
        "Topics that have series of their own; the others are only in the totals.",
    ),
    setting(
        "log.level",
        "info,openraft=error",
        "a level or a filter",
        "For example weir_broker=debug,info,openraft=error.",
    ),
    setting("log.format", "auto", "auto, json or text", "auto is json unless on a terminal."),
];

pub(super) fn parse_message_max(text: &str) -> Result<usize, ValueError> {
    let bytes = parse_bytes(text)?;
    match usize::try_from(bytes) {
        Ok(bytes) if (1 << 10..=MESSAGE_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(ValueError::new("write a size from 1KiB to 8MiB")),
    }
}

/// The pool must hold the largest batch, or a large message could never be granted; and another, so
/// that one such publisher does not keep all others out.
pub(super) fn parse_pool(text: &str, message_bytes_max: usize) -> Result<u64, ValueError> {
    let bytes = parse_bytes(text)?;
    let least = (2 * message_bytes_max + BATCH_OVERHEAD_BYTES) as u64;
    if bytes >= least {
        return Ok(bytes);
    }
    let (least, largest) = (least.div_ceil(1 << 10), message_bytes_max.div_ceil(1 << 10));
    let text =
        format!("write at least {least}KiB: messages may have {largest}KiB (limits.message_max)");
    Err(ValueError::new(text))
}

/// A rate, or 0 without a unit.
pub(super) fn parse_rate(text: &str) -> Result<u64, ValueError> {
    if text.trim() == "0" { Ok(0) } else { parse_bytes(text) }
}

/// The key that was probably meant.
pub(super) fn nearest(key: &str) -> Option<&'static str> {
    let near = SETTINGS.iter().map(|setting| (distance(key, setting.key), setting.key));
    let (distance, nearest) = near.min()?;
    (distance <= nearest.len() / 3).then_some(nearest)
}

/// Levenshtein's edit distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let changed = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
