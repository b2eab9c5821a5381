//! What one host sees of the network: the seams of the broker and of the client.
//!
//! Owns: which addresses are the host's.
//! Never: binds the address of another host.

use super::{SimNetwork, SimStream};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::sync::mpsc;
use weir_broker::seams::{BoxFuture, Listener, Network, Stream};
use weir_client::seams::{Connector, Duplex};

/// Connections that wait to be accepted.
const BACKLOG_MAX: usize = 128;

/// The address of host `number`: each is a loopback address, so that brokers without a secret talk
/// to each other.
pub fn address_of(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, number))
}

/// One host of a [`SimNetwork`].
pub struct SimHost {
    pub(super) network: SimNetwork,
    pub(super) number: u8,
}

impl SimHost {
    /// Connects to a listener: there and back over the links between the two hosts. Waits as long
    /// as one of them is cut; who connects bounds that.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<SimStream> {
        let Some(to) = host_of(address) else {
            let text = format!("{address} is no address of a simulated host (127.0.0.1 to .254)");
            return Err(io::Error::new(ErrorKind::AddrNotAvailable, text));
        };
        self.network.cross(self.number, to).await;
        let (listener, port) = {
            let mut state = self.network.state();
            (state.listeners.get(&address).cloned(), state.pick_port())
        };
        let ours = match listener {
            Some(listener) => {
                let from = SocketAddr::new(address_of(self.number), port);
                let [ours, theirs] = SimStream::pair(&self.network, self.number, to);
                listener.send((theirs, from)).await.ok().map(|()| ours)
            }
            None => None,
        };
        self.network.cross(to, self.number).await;
        ours.ok_or_else(|| ErrorKind::ConnectionRefused.into())
    }

    fn bind(&self, address: SocketAddr) -> io::Result<SimListener> {
        if address.ip() != address_of(self.number) {
            let text = format!("host {} has the address {}", self.number, address_of(self.number));
            return Err(io::Error::new(ErrorKind::AddrNotAvailable, text));
        }
        let (sender, receiver) = mpsc::channel(BACKLOG_MAX);
        let mut state = self.network.state();
        let port = if address.port() == 0 { state.pick_port() } else { address.port() };
        let address = SocketAddr::new(address.ip(), port);
        if state.listeners.get(&address).is_some_and(|old| !old.is_closed()) {
            return Err(ErrorKind::AddrInUse.into());
        }
        state.listeners.insert(address, sender);
        Ok(SimListener { address, receiver })
    }
}

fn host_of(address: SocketAddr) -> Option<u8> {
    match address.ip() {
        IpAddr::V4(ip) => match ip.octets() {
            [127, 0, 0, number @ 1..=254] => Some(number),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    let wrong = |_| {
        let text = format!("{address:?} is not ADDRESS:PORT; simulated hosts have no names");
        io::Error::new(ErrorKind::InvalidInput, text)
    };
    address.parse().map_err(wrong)
}

impl SimNetwork {
    /// Takes as long as a segment without bytes takes between two hosts.
    async fn cross(&self, from: u8, to: u8) {
        let mut changed = self.0.changed.subscribe();
        let arrival = self.state().arrival(from, to, 0, tokio::time::Instant::now());
        tokio::time::sleep_until(arrival).await;
        while self.state().link(from, to).cut {
            changed.changed().await.expect("the network lives as long as who asks it");
        }
    }
}

impl Network for SimHost {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move { Ok(Box::new(self.bind(address)?) as Box<dyn Listener>) })
    }

    fn connect<'a>(
        &'a self,
        address: &'a str,
    ) -> BoxFuture<'a, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            let address = parse(address)?;
            let stream = Self::connect(self, address).await?;
            Ok((Box::new(stream) as Box<dyn Stream>, address))
        })
    }
}

impl Connector for SimHost {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Duplex>> {
        Box::pin(async move {
            let address = parse(&format!("{host}:{port}"))?;
            Ok(Duplex::from_stream(Self::connect(self, address).await?))
        })
    }
}

struct SimListener {
    address: SocketAddr,
    receiver: mpsc::Receiver<(SimStream, SocketAddr)>,
}

impl Listener for SimListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            match self.receiver.recv().await {
                Some((stream, from)) => Ok((Box::new(stream) as Box<dyn Stream>, from)),
                // The host was killed, and who listened on it with it.
                None => std::future::pending().await,
            }
        })
    }
}
