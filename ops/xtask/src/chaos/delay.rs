//! Holds packets back: the kernel hands them over by a netfilter queue, and gets them back late.
//!
//! Owns: one process in the hub's namespace for as long as a delay lasts, and within it the queue,
//! the packets that are held and when each of them goes on.
//! Never: changes a packet, or asks for more of it than that it is there.
//! Invariant: it holds what the kernel queues at the most, [`HELD_MAX`] packets: what comes on top
//! of that is lost, as on any link that is too full.
//!
//! Needs of the kernel: netfilter with its queues (NFQUEUE).

use super::network::{HUB, Network};
use crate::now;
use nfq::{Message, Queue, Verdict};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind};
use std::ops::Range;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How late a packet is. Each has a delay of its own, so that they overtake one another.
const LATE_US: Range<u64> = 30_000..90_000;
/// Packets of up to 64 KiB each, as the kernel has them before it cuts them up for a wire.
const HELD_MAX: u32 = 4_096;
/// Little beside how late a packet is.
const LOOK_EVERY: Duration = Duration::from_millis(1);
const READY: &str = "the queue is open";

/// What gets to one node is late.
pub(super) struct Delay {
    network: Network,
    node: u8,
    child: Child,
}

impl Delay {
    /// Begins to hold back what goes to a node.
    pub(super) fn begin(network: &Network, node: u8) -> Result<Self, String> {
        let this = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = network.inside(HUB);
        command.arg(this).args(["chaos-delay", &node.to_string()]).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let read = BufReader::new(stdout).read_line(&mut line).map_err(|e| e.to_string());
        let delay = Self { network: network.clone(), node, child };
        match read {
            Ok(_) if line.trim() == READY => network.queue("-A", node).map(|()| delay),
            _ => Err("the process that holds packets back did not get ready, see above".to_owned()),
        }
    }

    /// Nothing is held back from here on; what is held still is lost.
    pub(super) fn end(mut self) -> Result<(), String> {
        self.network.queue("-D", self.node)?;
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("the process that holds packets back: {status}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What that process does until it is killed.
pub(crate) fn hold(number: u16) -> Result<String, String> {
    let failed = |error: std::io::Error| {
        format!("netfilter queue {number}: {error}; the kernel must have NFQUEUE, and this be root")
    };
    let mut queue = open(number).map_err(failed)?;
    println!("{READY}");
    let mut random = fastrand::Rng::new();
    let mut held: BTreeMap<(Instant, u64), Message> = BTreeMap::new();
    let mut count = 0_u64;
    loop {
        match queue.recv() {
            Ok(packet) => {
                let due = now() + Duration::from_micros(random.u64(LATE_US));
                held.insert((due, count), packet);
                count += 1;
                continue;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The answer to a verdict on a packet that went away with its link.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        while let Some(first) = held.first_entry().filter(|first| first.key().0 <= now()) {
            let mut packet = first.remove();
            packet.set_verdict(Verdict::Accept);
            queue.verdict(packet).map_err(failed)?;
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn open(number: u16) -> std::io::Result<Queue> {
    let mut queue = Queue::open()?;
    queue.bind(number)?;
    queue.set_copy_range(number, 0)?;
    queue.set_queue_max_len(number, HELD_MAX)?;
    queue.set_recv_gso(number, true)?;
    queue.set_nonblocking(true);
    Ok(queue)
}
