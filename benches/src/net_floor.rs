//! The yardstick: a log server of 60 lines.
//!
//! TCP, CRC, one buffer, write and fdatasync, ack: no index, no consumers, no recovery. It is the
//! practical ceiling of a machine for a networked durable log. The next group fills while the
//! current one is flushed. Like any log it grows, and gives up its oldest file in time.
//!
//! Wire: each message is a u32 length and its bytes; each answer a u64, the number of messages of
//! this connection that are durable.

use crate::clock;
use crate::floor::RETAINED_BYTES;
use crate::measure::{Latencies, Percentiles, ProcessCost, process_cost};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A filled group is not taken more of; what comes then waits in the sockets.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// A file of the log; there are two at a time, so that the disk is not filled.
const FILE_BYTES: u64 = RETAINED_BYTES / 2;
/// The argument that makes `weir` a net floor server.
pub const SERVE_FLAG: &str = "--serve-net";

#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    /// Connections with messages in the group, and how many of theirs are in the log with it.
    owners: Vec<(Arc<TcpStream>, u64)>,
}

type Shared = Arc<(Mutex<Group>, Condvar, Condvar)>;

/// Serves connections from `listener` for ever; the log are the files `path`.0 and `path`.1.
pub fn serve(listener: &TcpListener, path: &Path) -> io::Result<()> {
    let shared = Shared::default();
    std::thread::scope(|scope| {
        scope.spawn(|| flush(&shared, path));
        for stream in listener.incoming().flatten() {
            let shared = shared.clone();
            scope.spawn(move || receive(&shared, stream));
        }
    });
    Ok(())
}

fn receive(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = Arc::new(stream);
    let (group, filled, emptied) = &**shared;
    let (mut input, mut held, mut count) = (vec![0; 256 << 10], Vec::new(), 0u64);
    loop {
        let read = (&*stream).read(&mut input)?;
        if read == 0 {
            return Ok(());
        }
        held.extend_from_slice(&input[..read]);
        let mut whole = 0;
        while let Some(prefix) = held[whole..].first_chunk::<4>() {
            let len = u32::from_le_bytes(*prefix) as usize;
            let Some(message) = held.get(whole + 4..whole + 4 + len) else { break };
            std::hint::black_box(crc32fast::hash(message));
            whole += 4 + len;
            count += 1;
        }
        if whole > 0 {
            let mut group = group.lock().unwrap_or_else(PoisonError::into_inner);
            while group.bytes.len() > GROUP_BYTES_MAX {
                group = emptied.wait(group).unwrap_or_else(PoisonError::into_inner);
            }
            group.bytes.extend_from_slice(&held[..whole]);
            match group.owners.iter_mut().find(|(owner, _)| Arc::ptr_eq(owner, &stream)) {
                Some((_, acked)) => *acked = count,
                None => group.owners.push((stream.clone(), count)),
            }
            drop(group);
            filled.notify_one();
            held.drain(..whole);
        }
    }
}

fn flush(shared: &Shared, path: &Path) -> io::Result<()> {
    let (group, filled, emptied) = &**shared;
    let mut files = (0..).map(|number| File::create(path.with_extension((number % 2).to_string())));
    let mut file = files.next().expect("there is always one more")?;
    let (mut position, mut spare) = (0, Vec::new());
    loop {
        let taken = {
            let mut group = group.lock().unwrap_or_else(PoisonError::into_inner);
            while group.bytes.is_empty() {
                group = filled.wait(group).unwrap_or_else(PoisonError::into_inner);
            }
            let empty = Group { bytes: std::mem::take(&mut spare), owners: Vec::new() };
            std::mem::replace(&mut *group, empty)
        };
        emptied.notify_all();
        if position > FILE_BYTES {
            file = files.next().expect("there is always one more")?;
            position = 0;
        }
        file.write_all(&taken.bytes)?;
        rustix::fs::fdatasync(&file)?;
        position += taken.bytes.len() as u64;
        for (owner, acked) in taken.owners {
            // A client that left needs no answer.
            let _ = (&*owner).write_all(&acked.to_le_bytes());
        }
        spare = taken.bytes;
        spare.clear();
    }
}

/// A load on the net floor.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct NetLoad {
    /// Connections.
    pub publishers: usize,
    /// Unacknowledged messages of each.
    pub window: usize,
    /// Bytes of a message.
    pub message_bytes: usize,
}

/// What a load on the net floor reached.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct NetFigure {
    /// The load.
    pub load: NetLoad,
    /// Durable messages a second.
    pub messages_s: f64,
    /// From write to answer.
    pub latency: Percentiles,
    /// CPU of the server, seconds per million messages.
    pub server_cpu_s_per_million: f64,
}

/// The loads of the yardstick.
pub const LOADS: [NetLoad; 4] = [
    NetLoad { publishers: 1, window: 1, message_bytes: 1024 },
    NetLoad { publishers: 1, window: 1000, message_bytes: 1024 },
    NetLoad { publishers: 16, window: 1000, message_bytes: 1024 },
    NetLoad { publishers: 1, window: 1000, message_bytes: 100 },
];

/// A net floor server in a process of its own, so that its CPU is accounted apart.
pub struct NetServer {
    child: Child,
    address: SocketAddr,
}

impl NetServer {
    /// Starts this executable as `bench floor --serve-net PATH` and waits for its address.
    pub fn start(path: &Path) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "floor", SERVE_FLAG])
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line.trim().parse();
        let address = address.map_err(|_| io::Error::other(format!("no address: {line:?}")))?;
        Ok(Self { child, address })
    }

    fn cost(&self) -> ProcessCost {
        process_cost(self.child.id()).unwrap_or_default()
    }

    /// Runs one load for `seconds`.
    pub fn measure(&self, load: NetLoad, seconds: f64) -> io::Result<NetFigure> {
        let before = self.cost();
        let started = clock::now();
        let until = started.after(Duration::from_secs_f64(seconds));
        let outcomes: Vec<io::Result<(u64, Latencies)>> = std::thread::scope(|scope| {
            let publish = || publish(self.address, load, until);
            let threads: Vec<_> = (0..load.publishers).map(|_| scope.spawn(publish)).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|done| done.unwrap_or_else(|_| Err(io::Error::other("panicked")))).collect()
        });
        let elapsed = started.elapsed().as_secs_f64();
        let (mut messages, mut latency) = (0, Latencies::default());
        for outcome in outcomes {
            let (count, times) = outcome?;
            messages += count;
            latency.merge(&times);
        }
        let cpu = self.cost().cpu_seconds - before.cpu_seconds;
        Ok(NetFigure {
            load,
            messages_s: messages as f64 / elapsed,
            latency: latency.percentiles(),
            server_cpu_s_per_million: cpu / (messages.max(1) as f64 / 1e6),
        })
    }
}

impl Drop for NetServer {
    fn drop(&mut self) {
        // It serves for ever; nothing of it is needed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends with a window and counts what is durable. Half a window of answers at a time, so that
/// the generator is not what is measured.
fn publish(
    address: SocketAddr,
    load: NetLoad,
    until: clock::Moment,
) -> io::Result<(u64, Latencies)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut message = vec![7; 4 + load.message_bytes];
    message[..4].copy_from_slice(&(load.message_bytes as u32).to_le_bytes());
    let block = message.repeat(load.window.min(64));
    let per_block = load.window.min(64) as u64;
    let (mut sent, mut durable, mut times) = (0u64, 0u64, Latencies::default());
    let mut sent_at = std::collections::VecDeque::new();
    let mut answer = [0; 8];
    while clock::now() < until {
        while sent + per_block <= durable + load.window as u64 {
            stream.write_all(&block)?;
            sent += per_block;
            sent_at.push_back((sent, clock::now()));
        }
        stream.read_exact(&mut answer)?;
        durable = u64::from_le_bytes(answer);
        while let Some((_, at)) = sent_at.pop_front_if(|(upto, _)| *upto <= durable) {
            times.record(at.elapsed());
        }
    }
    Ok((durable, times))
}

/// Measures every load of the yardstick.
pub fn measure_all(dir: &Path, seconds: f64) -> io::Result<Vec<NetFigure>> {
    let server = NetServer::start(&dir.join("net"))?;
    LOADS.iter().map(|load| server.measure(*load, seconds)).collect()
}
