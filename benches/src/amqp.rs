//! A publisher of AMQP 0-9-1, as little as measuring a broker beside Weir takes.
//!
//! Owns: one connection with one channel in confirm mode, and the counting of its confirms.
//! Never: consumes, reconnects, or speaks TLS. Source: AMQP 0-9-1 specification (frames in 2.3.5,
//! methods in the XML), and RabbitMQ's `confirm.select` extension.
//! Invariant: it is no bottleneck: what the window lets through leaves in few large writes, and
//! confirms are read by a thread of their own.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::BTreeSet;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
/// The largest frame that RabbitMQ lets clients send by default.
const FRAME_BYTES_MAX: usize = 128 << 10;
/// What is gathered before it is written although the window has room.
const WRITE_BYTES: usize = 64 << 10;
/// No answer to a request, and no confirm, takes longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

const START_OK: (u16, u16) = (10, 11);
const TUNE_OK: (u16, u16) = (10, 31);
const OPEN: (u16, u16) = (10, 40);
const CONNECTION_CLOSE: (u16, u16) = (10, 50);
const CHANNEL_OPEN: (u16, u16) = (20, 10);
const CHANNEL_CLOSE: (u16, u16) = (20, 40);
const QUEUE_DECLARE: (u16, u16) = (50, 10);
const QUEUE_DELETE: (u16, u16) = (50, 40);
const PUBLISH: (u16, u16) = (60, 40);
const ACK: (u16, u16) = (60, 80);
const NACK: (u16, u16) = (60, 120);
const CONFIRM_SELECT: (u16, u16) = (85, 10);

/// The one channel.
const CHANNEL: u16 = 1;
/// Property flag and value: the message is kept on disk.
const DELIVERY_MODE: u16 = 1 << 12;
const PERSISTENT: u8 = 2;
const DURABLE: u8 = 1 << 1;

fn shorts(name: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(name.len()).expect("the harness gives short names")];
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

fn put_frame(out: &mut BytesMut, kind: u8, channel: u16, payload: &[u8]) {
    out.put_u8(kind);
    out.put_u16(channel);
    out.put_u32(u32::try_from(payload.len()).expect("frames are small"));
    out.put_slice(payload);
    out.put_u8(FRAME_END);
}

fn method((class, number): (u16, u16), arguments: &[u8]) -> BytesMut {
    let mut payload = BytesMut::with_capacity(4 + arguments.len());
    payload.put_u16(class);
    payload.put_u16(number);
    payload.put_slice(arguments);
    payload
}

/// Reads frames until a method comes; heartbeats are switched off, and nothing else is asked for.
fn read_method(input: &mut impl Read) -> io::Result<((u16, u16), Bytes)> {
    loop {
        let mut head = [0; 7];
        input.read_exact(&mut head)?;
        let mut fields = &head[..];
        let (kind, _, len) = (fields.get_u8(), fields.get_u16(), fields.get_u32() as usize);
        if len > FRAME_BYTES_MAX {
            return Err(io::Error::other(format!("a frame of {len} bytes")));
        }
        let mut payload = vec![0; len + 1];
        input.read_exact(&mut payload)?;
        if payload.pop() != Some(FRAME_END) || (kind == METHOD && len < 4) {
            return Err(io::Error::other("a frame without its end"));
        }
        if kind == METHOD {
            let mut payload = Bytes::from(payload);
            let id = (payload.get_u16(), payload.get_u16());
            return check(id, payload);
        }
    }
}

fn check(id: (u16, u16), arguments: Bytes) -> io::Result<((u16, u16), Bytes)> {
    if id == CONNECTION_CLOSE || id == CHANNEL_CLOSE {
        let text = String::from_utf8_lossy(arguments.get(3..).unwrap_or_default()).into_owned();
        return Err(io::Error::other(format!("the AMQP server closes: {text}")));
    }
    Ok((id, arguments))
}

/// A connection.
pub(crate) struct Connection {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Connection {
    /// Connects as guest.
    pub(crate) fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let input = BufReader::with_capacity(WRITE_BYTES, stream.try_clone()?);
        let mut connection = Self { stream, input };
        connection.stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        read_method(&mut connection.input)?;
        // No properties of the client; PLAIN with user and password guest; a locale.
        let mut start = vec![0; 4];
        start.extend(shorts("PLAIN"));
        start.put_u32(12);
        start.put_slice(b"\0guest\0guest");
        start.extend(shorts("en_US"));
        connection.ask(0, START_OK, &start)?;
        // One channel, the default frame, no heartbeats.
        let mut tune = Vec::new();
        tune.put_u16(CHANNEL);
        tune.put_u32(FRAME_BYTES_MAX as u32);
        tune.put_u16(0);
        connection.send(0, TUNE_OK, &tune)?;
        let mut open = shorts("/");
        open.extend([0, 0]);
        connection.ask(0, OPEN, &open)?;
        connection.ask(CHANNEL, CHANNEL_OPEN, &shorts(""))?;
        Ok(connection)
    }

    fn send(&mut self, channel: u16, id: (u16, u16), arguments: &[u8]) -> io::Result<()> {
        let mut out = BytesMut::new();
        put_frame(&mut out, METHOD, channel, &method(id, arguments));
        self.stream.write_all(&out)
    }

    fn ask(&mut self, channel: u16, id: (u16, u16), arguments: &[u8]) -> io::Result<()> {
        self.send(channel, id, arguments)?;
        read_method(&mut self.input).map(|_| ())
    }

    /// Declares a durable quorum queue, led by the node that is asked.
    pub(crate) fn declare_quorum(&mut self, queue: &str) -> io::Result<()> {
        let mut table = shorts("x-queue-type");
        table.put_u8(b'S');
        table.put_u32(6);
        table.put_slice(b"quorum");
        let mut arguments = vec![0, 0];
        arguments.extend(shorts(queue));
        arguments.put_u8(DURABLE);
        arguments.put_u32(table.len() as u32);
        arguments.extend(table);
        self.ask(CHANNEL, QUEUE_DECLARE, &arguments)
    }

    /// Deletes a queue; one that is not there is no error.
    pub(crate) fn delete(&mut self, queue: &str) -> io::Result<()> {
        let mut arguments = vec![0, 0];
        arguments.extend(shorts(queue));
        arguments.put_u8(0);
        self.ask(CHANNEL, QUEUE_DELETE, &arguments)
    }

    /// Publishes persistent messages to a queue while `go_on` says so, with at most `window` of them
    /// unconfirmed, and tells `confirmed` how many more were each time. Returns when all are.
    pub(crate) fn publish(
        mut self,
        queue: &str,
        (message_bytes, window): (usize, usize),
        go_on: impl Fn() -> bool,
        confirmed: impl Fn(u64) + Sync,
    ) -> io::Result<()> {
        self.ask(CHANNEL, CONFIRM_SELECT, &[0])?;
        let message = publish_frames(queue, message_bytes);
        let state = (Mutex::new(Confirms::default()), Condvar::new());
        let Self { mut stream, mut input } = self;
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let read = read_confirms(&mut input, &state, &confirmed);
                // Whoever waits for room learns that there will be none.
                state.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
                state.1.notify_all();
                read
            });
            let written = write_messages(&mut stream, &message, window as u64, &state, &go_on);
            if written.is_err() {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
            let read = reading.join().expect("the reader does not panic");
            written.and(read)
        })
    }
}

/// One message: method, header and body.
fn publish_frames(queue: &str, message_bytes: usize) -> BytesMut {
    let mut out = BytesMut::new();
    let mut arguments = vec![0, 0];
    arguments.extend(shorts(""));
    arguments.extend(shorts(queue));
    arguments.put_u8(0);
    put_frame(&mut out, METHOD, CHANNEL, &method(PUBLISH, &arguments));
    let mut header = BytesMut::new();
    header.put_u16(PUBLISH.0);
    header.put_u16(0);
    header.put_u64(message_bytes as u64);
    header.put_u16(DELIVERY_MODE);
    header.put_u8(PERSISTENT);
    put_frame(&mut out, HEADER, CHANNEL, &header);
    for part in vec![0x57; message_bytes].chunks(FRAME_BYTES_MAX - 8) {
        put_frame(&mut out, BODY, CHANNEL, part);
    }
    out
}

/// What was confirmed, by delivery tags, which count from 1.
#[derive(Debug, Default)]
struct Confirms {
    /// Every tag up to here.
    upto: u64,
    /// Confirmed beyond it.
    ahead: BTreeSet<u64>,
    /// All that will be sent, once that is known.
    last: Option<u64>,
    ended: bool,
}

impl Confirms {
    /// A confirm came; returns how many messages more are confirmed with it.
    fn confirm(&mut self, tag: u64, multiple: bool) -> u64 {
        let before = self.count();
        if multiple {
            self.upto = self.upto.max(tag);
            self.ahead = self.ahead.split_off(&(self.upto + 1));
        } else if tag > self.upto {
            self.ahead.insert(tag);
        }
        while self.ahead.remove(&(self.upto + 1)) {
            self.upto += 1;
        }
        self.count() - before
    }

    fn count(&self) -> u64 {
        self.upto + self.ahead.len() as u64
    }

    fn all_are(&self) -> bool {
        self.last == Some(self.upto)
    }
}

type Shared = (Mutex<Confirms>, Condvar);

fn write_messages(
    stream: &mut TcpStream,
    message: &[u8],
    window: u64,
    state: &Shared,
    go_on: &impl Fn() -> bool,
) -> io::Result<()> {
    let (confirms, changed) = state;
    let lock = || confirms.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut sent, mut out) = (0, Vec::with_capacity(WRITE_BYTES + message.len()));
    while go_on() {
        let mut room = (lock().count() + window).saturating_sub(sent);
        while room > 0 && out.len() < WRITE_BYTES {
            out.extend_from_slice(message);
            (sent, room) = (sent + 1, room - 1);
        }
        stream.write_all(&out)?;
        out.clear();
        let full = |confirms: &mut Confirms| !confirms.ended && sent >= confirms.count() + window;
        let waited = changed.wait_timeout_while(lock(), ANSWER_WITHIN, full);
        let (confirms, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if confirms.ended || timeout.timed_out() {
            return Err(io::Error::other("the AMQP server confirms nothing more"));
        }
    }
    // One more, whose confirm wakes the reader behind the announcement that it is the last.
    lock().last = Some(sent + 1);
    stream.write_all(message)
}

fn read_confirms(
    input: &mut impl Read,
    (confirms, changed): &Shared,
    confirmed: &impl Fn(u64),
) -> io::Result<()> {
    loop {
        let (id, mut arguments) = read_method(input)?;
        if id == NACK {
            return Err(io::Error::other("the AMQP server refuses a message"));
        }
        if id != ACK || arguments.len() < 9 {
            continue;
        }
        let (tag, multiple) = (arguments.get_u64(), arguments.get_u8() & 1 == 1);
        let mut confirms = confirms.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed(confirms.confirm(tag, multiple));
        changed.notify_all();
        if confirms.all_are() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn confirms_come_alone_and_together_in_any_order() {
        let mut confirms = Confirms::default();
        assert_eq!(confirms.confirm(3, false), 1);
        assert_eq!(confirms.confirm(2, true), 2);
        assert_eq!((confirms.upto, confirms.ahead.len()), (3, 0));
        assert_eq!(confirms.confirm(3, true), 0);
        assert_eq!((confirms.confirm(6, false), confirms.confirm(9, false)), (1, 1));
        assert_eq!(confirms.confirm(7, true), 3);
        assert_eq!(confirms.count(), 8);
    }

    /// Answers the handshake, then confirms every other message, and the rest of them together.
    fn serve(listener: &TcpListener, answers: &[(u16, u16)]) -> io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        let mut input = stream.try_clone()?;
        input.read_exact(&mut [0; 8])?;
        let reply = |stream: &mut TcpStream, id, arguments: &[u8]| {
            let mut out = BytesMut::new();
            put_frame(&mut out, METHOD, CHANNEL, &method(id, arguments));
            stream.write_all(&out)
        };
        reply(&mut stream, (10, 10), &[])?;
        for id in answers {
            while read_method(&mut input)?.0 != *id {}
            reply(&mut stream, (id.0, id.1 + 1), &[])?;
        }
        let mut tag = 0_u64;
        while let Ok((id, _)) = read_method(&mut input) {
            assert_eq!(id, PUBLISH);
            tag += 1;
            let mut arguments = BytesMut::new();
            arguments.put_u64(tag);
            arguments.put_u8(u8::from(tag.is_multiple_of(2)));
            reply(&mut stream, ACK, &arguments)?;
        }
        Ok(tag)
    }

    #[test]
    fn a_publisher_keeps_its_window_and_waits_for_every_confirm() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = [START_OK, OPEN, CHANNEL_OPEN, QUEUE_DECLARE, CONFIRM_SELECT];
        let server = std::thread::scope(|scope| {
            let server = scope.spawn(|| serve(&listener, &answers).unwrap());
            let mut connection = Connection::open(&address).unwrap();
            connection.declare_quorum("q").unwrap();
            let confirmed = AtomicU64::new(0);
            let go_on = || confirmed.load(Ordering::Relaxed) < 1_000;
            let count = |more| {
                confirmed.fetch_add(more, Ordering::Relaxed);
            };
            connection.publish("q", (300, 10), go_on, count).unwrap();
            let all = server.join().unwrap();
            assert_eq!(all, confirmed.load(Ordering::Relaxed));
            all
        });
        assert!((1_001..=1_011).contains(&server), "{server} were sent");
    }
}
