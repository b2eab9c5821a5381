//! Namespaces that are a network: a hub, and around it one for each broker and one for clients.
//!
//! Owns: their names, addresses and links, and what is cut or narrow between them.
//! Never: leaves a way to the outside; touches a namespace that no run of this chore has made.
//!
//! Needs of the kernel: namespaces, veth, policy routing and the token bucket of `tc`. A cut is a
//! rule of the hub that drops what goes from one node to another without a word, so one direction
//! can be cut alone. (netem is missing in many kernels, and so is not asked for: `delay` makes up
//! for it.)

use crate::mount::run;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// The node that the clients are.
pub(super) const CLIENTS: u8 = 100;
const NAME: &str = "weir-chaos-";
/// The node in the middle, through which everything goes.
pub(super) const HUB: u8 = 0;
/// Rules of cuts stand in front of all others.
const CUT_PREFERENCE: &str = "100";
/// What a narrow link lets through, and for how long it lets wait before it drops.
const NARROW: [&str; 6] = ["rate", "2mbit", "burst", "16k", "latency", "400ms"];

/// The network of one run.
#[derive(Debug, Clone)]
pub(super) struct Network {
    prefix: String,
}

/// What every namespace of this process is called.
pub(super) fn prefix_of_this() -> String {
    format!("{NAME}{}", std::process::id())
}

/// Removes what is left of runs that did not end by themselves.
pub(super) fn clean_up_of_others() -> Result<(), String> {
    let listed = run(Command::new("ip").args(["netns", "list"]))
        .map_err(|error| format!("{error}; chaos needs root, and iproute2"))?;
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let process = name.strip_prefix(NAME).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            remove(name);
        }
    }
    Ok(())
}

/// Ends whoever lives in a namespace, and removes it. What fails here was gone before.
fn remove(name: &str) {
    let living = run(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for process in living.split_whitespace() {
        let _ = run(Command::new("kill").args(["-KILL", process]));
    }
    let _ = run(Command::new("ip").args(["netns", "delete", name]));
}

impl Network {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    fn name(&self, node: u8) -> String {
        format!("{}-{node}", self.prefix)
    }

    /// Where a node is.
    pub(super) fn address(node: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, node, 2)
    }

    /// A command that runs in a node: append what.
    pub(super) fn inside(&self, node: u8) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(node)]);
        command
    }

    fn ip(&self, node: u8, words: &str) -> Result<(), String> {
        let mut command = Command::new("ip");
        run(command.args(["-n", &self.name(node)]).args(words.split(' '))).map(|_| ())
    }

    /// Makes the hub, so many brokers and the clients.
    pub(super) fn make(&self, brokers: u8) -> Result<(), String> {
        run(Command::new("ip").args(["netns", "add", &self.name(HUB)]))?;
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        run(self.inside(HUB).args(["sh", "-c", forward]))?;
        for node in (1..=brokers).chain([CLIENTS]) {
            let (name, address) = (self.name(node), Self::address(node));
            let router = Ipv4Addr::new(198, 18, node, 1);
            run(Command::new("ip").args(["netns", "add", &name]))?;
            self.ip(
                HUB,
                &format!("link add name node{node} type veth peer name eth0 netns {name}"),
            )?;
            self.ip(HUB, &format!("addr add {router}/24 dev node{node}"))?;
            self.ip(HUB, &format!("link set node{node} up"))?;
            self.ip(node, &format!("addr add {address}/24 dev eth0"))?;
            self.ip(node, "link set lo up")?;
            self.ip(node, "link set eth0 up")?;
            self.ip(node, &format!("route add default via {router}"))?;
        }
        Ok(())
    }

    /// Ends everybody who still lives in it, and removes it.
    pub(super) fn take_down(&self) {
        let listed = run(Command::new("ip").args(["netns", "list"])).unwrap_or_default();
        let ours = format!("{}-", self.prefix);
        for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
            if name.starts_with(&ours) {
                remove(name);
            }
        }
    }

    /// What the first node sends does not reach the second any more.
    pub(super) fn cut(&self, way: (u8, u8)) -> Result<(), String> {
        self.rule("add", way)
    }

    /// It does again.
    pub(super) fn heal(&self, way: (u8, u8)) -> Result<(), String> {
        self.rule("delete", way)
    }

    fn rule(&self, verb: &str, (from, to): (u8, u8)) -> Result<(), String> {
        let (from, to) = (Self::address(from), Self::address(to));
        let what = format!("from {from}/32 to {to}/32 blackhole");
        self.ip(HUB, &format!("rule {verb} pref {CUT_PREFERENCE} {what}"))
    }

    /// Hands what goes to a node to whoever reads the queue of that number, or (`-D`) no more.
    pub(super) fn queue(&self, verb: &str, node: u8) -> Result<(), String> {
        let (device, number) = (format!("node{node}"), node.to_string());
        let mut command = self.inside(HUB);
        command.args(["iptables", "-t", "mangle", verb, "FORWARD", "-o", &device]);
        command.args(["-j", "NFQUEUE", "--queue-num", &number]);
        run(&mut command).map(|_| ())
    }

    /// Little gets to a node at a time.
    pub(super) fn narrow(&self, node: u8) -> Result<(), String> {
        let mut command = self.inside(HUB);
        let device = format!("node{node}");
        command.args(["tc", "qdisc", "add", "dev", &device, "root", "tbf"]).args(NARROW);
        run(&mut command).map(|_| ())
    }

    /// The link to a node is as wide as it was.
    pub(super) fn widen(&self, node: u8) -> Result<(), String> {
        let device = format!("node{node}");
        run(self.inside(HUB).args(["tc", "qdisc", "delete", "dev", &device, "root"])).map(|_| ())
    }
}
