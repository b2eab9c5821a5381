//! An attacker between honest brokers, who has every frame that was ever sent, can start any
//! number of connections, and lacks the secret.
//!
//! What must hold whenever an honest broker opens a connection: another honest broker, in the
//! other role, took part with the same HELLO and CHALLENGE, both agree on who they are and what
//! for, and no third connection was opened out of it. Relaying frames as they are is not an attack.

use super::*;

struct Session {
    broker: u64,
    dials: Option<Lane>,
    machine: Handshake,
    hello: Option<Bytes>,
    challenge: Option<Bytes>,
    proved: bool,
    opened: Option<OpenPeer>,
}

struct World {
    rng: fastrand::Rng,
    sessions: Vec<Session>,
    seen: Vec<Bytes>,
    nonces: u8,
}

const TYPES: std::ops::RangeInclusive<u8> = 0x40..=0x43;

impl World {
    fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { rng, sessions: Vec::new(), seen: Vec::new(), nonces: 0 }
    }

    /// An honest broker dials, or is dialed.
    fn start(&mut self, broker: u64, dials: Option<Lane>) {
        self.nonces += 1;
        let (node, nonce) = (node(broker, broker), Nonce([self.nonces; 32]));
        let (machine, hello) = match dials {
            Some(lane) => {
                let (machine, hello) = Handshake::dial(node, secret(), nonce, (lane, None));
                (machine, Some(wire(&hello)))
            }
            None => (Handshake::accept(node, secret(), nonce), None),
        };
        self.seen.extend(hello.clone());
        let (challenge, proved, opened) = (None, false, None);
        self.sessions.push(Session { broker, dials, machine, hello, challenge, proved, opened });
    }

    fn deliver(&mut self, to: usize, frame: Bytes) {
        let session = &mut self.sessions[to];
        let (sent, opened) = match session.machine.handle(frame.clone()) {
            Step::Send(sent) => (Some(sent), None),
            Step::Open(peer, sent) => (sent, Some(peer)),
            Step::Close(_, sent) => (sent, None),
        };
        let sent = sent.map(|sent| wire(&sent));
        match frame[4] {
            0x40 if session.dials.is_none() && session.hello.is_none() => {
                session.hello = Some(frame);
                session.challenge = sent.clone();
            }
            0x41 if session.dials.is_some() && session.challenge.is_none() => {
                session.challenge = Some(frame);
            }
            _ => {}
        }
        session.proved |= sent.as_ref().is_some_and(|sent| matches!(sent[4], 0x42 | 0x43));
        self.seen.extend(sent);
        if opened.is_some() {
            session.opened = opened;
            self.check(to);
        }
    }

    fn check(&self, at: usize) {
        let session = &self.sessions[at];
        let same =
            |other: &&Session| other.hello == session.hello && other.challenge == session.challenge;
        let partners: Vec<&Session> = self
            .sessions
            .iter()
            .filter(same)
            .filter(|other| other.dials.is_some() != session.dials.is_some() && other.proved)
            .collect();
        assert_eq!(partners.len(), 1, "one honest end opened, so there is another");
        let peer = session.opened.as_ref().unwrap();
        assert_ne!(partners[0].broker, session.broker);
        assert_eq!(peer.node.broker, BrokerId(partners[0].broker));
        assert_eq!(Some(peer.lane), session.dials.or(partners[0].dials));
        let opened = |other: &&Session| {
            other.opened.is_some() && other.dials.is_some() == session.dials.is_some()
        };
        let twins = self.sessions.iter().filter(same).filter(opened).count();
        assert_eq!(twins, 1, "no handshake opens two connections");
    }

    /// A frame that was seen, mostly of the type that the session waits for.
    fn pick(&mut self, to: usize) -> Option<Bytes> {
        let session = &self.sessions[to];
        let wanted = match (session.dials, session.challenge.is_some()) {
            (None, false) => 0x40,
            (Some(_), false) => 0x41,
            (None, true) => 0x42,
            (Some(_), true) => 0x43,
        };
        let any = self.rng.u8(0..4) == 0;
        let fits: Vec<&Bytes> =
            self.seen.iter().filter(|frame| any || frame[4] == wanted).collect();
        let newest = if self.rng.bool() { fits.len().saturating_sub(1) } else { 0 };
        (!fits.is_empty()).then(|| fits[self.rng.usize(newest..fits.len())].clone())
    }

    /// What the attacker makes of a frame: mostly nothing, so that handshakes get anywhere.
    fn bend(&mut self, frame: Bytes) -> Bytes {
        let mut bytes = frame.to_vec();
        match self.rng.u8(0..16) {
            0 => bytes[4] = self.rng.u8(TYPES),
            1 => {
                let at = self.rng.usize(16..bytes.len().max(17));
                bytes.truncate(at);
                bytes[..4].copy_from_slice(&(at as u32 - 4).to_le_bytes());
                bytes[6..8].copy_from_slice(&(at as u16 - 16).to_le_bytes());
            }
            2 => {
                let at = self.rng.usize(..bytes.len());
                bytes[at] ^= 1 << self.rng.u8(0..8);
            }
            3 => return self.forge(),
            _ => return frame,
        }
        restamped(bytes)
    }

    /// A frame of the attacker's own, under a secret of its own.
    fn forge(&mut self) -> Bytes {
        let (claimed, nonce) = (node(self.rng.u64(1..=3), 9), Nonce([self.rng.u8(0..4); 32]));
        let (mut dialer, hello) =
            Handshake::dial(claimed.clone(), other_secret(), nonce, (Lane::Bulk, None));
        let theirs = |seen: &[Bytes], frame_type, own: Bytes| {
            seen.iter().rev().find(|frame| frame[4] == frame_type).cloned().unwrap_or(own)
        };
        let hello = theirs(&self.seen, 0x40, wire(&hello));
        let step = match self.rng.u8(0..3) {
            0 => return wire(&PeerFrame::Proof(Mac::NONE)),
            1 => return wire(&PeerFrame::Ready(Mac::NONE)),
            _ => Handshake::accept(claimed, other_secret(), nonce).handle(hello.clone()),
        };
        let Step::Send(challenge) = step else { return hello };
        let challenge = theirs(&self.seen, 0x41, wire(&challenge));
        match (self.rng.bool(), dialer.handle(challenge.clone())) {
            (true, Step::Send(proof)) => wire(&proof),
            _ => challenge,
        }
    }
}

fn connections_opened(seed: u64) -> usize {
    let mut world = World::new(seed);
    for _ in 0..60 {
        let few = world.sessions.len() < 6;
        if world.sessions.is_empty() || few && world.rng.u8(0..4) == 0 {
            let broker = world.rng.u64(1..=2);
            let lane = if world.rng.bool() { Lane::Control } else { Lane::Bulk };
            let dials = world.rng.bool().then_some(lane);
            world.start(broker, dials);
            continue;
        }
        let to = world.rng.usize(..world.sessions.len());
        if let Some(frame) = world.pick(to) {
            let frame = world.bend(frame);
            world.deliver(to, frame);
        }
    }
    world.sessions.iter().filter(|session| session.opened.is_some()).count()
}

#[test]
fn an_attacker_without_the_secret_opens_nothing() {
    let opened: usize = (0..4_000).map(connections_opened).sum();
    assert!(opened > 500, "only {opened} connections were opened: the attacker blocks them all");
}

#[test]
fn what_a_broker_said_does_not_convince_itself() {
    let mut world = World::new(0);
    world.start(1, Some(Lane::Bulk));
    world.start(2, None);
    for (number, to) in [1, 0].into_iter().enumerate() {
        let frame = world.seen[number].clone();
        world.deliver(to, frame);
    }
    let mut proof = world.seen[2].to_vec();
    assert_eq!(proof[4], 0x42);
    proof[4] = 0x43;
    world.deliver(0, restamped(proof));
    assert!(world.sessions.iter().all(|session| session.opened.is_none()));
    // Both ends at one broker: it knows its instance and goes no further.
    let mut world = World::new(0);
    world.start(1, Some(Lane::Bulk));
    world.start(1, None);
    let hello = world.seen[0].clone();
    world.deliver(1, hello);
    assert_eq!(world.seen[1][4], 0x45, "it is told to go away");
}

#[test]
fn a_handshake_that_was_recorded_opens_nothing_a_second_time() {
    let mut world = World::new(0);
    world.start(1, Some(Lane::Bulk));
    world.start(2, None);
    for (number, to) in [1, 0, 1, 0].into_iter().enumerate() {
        let frame = world.seen[number].clone();
        world.deliver(to, frame);
    }
    assert!(world.sessions.iter().all(|session| session.opened.is_some()));
    let recorded = world.seen.clone();
    world.start(1, Some(Lane::Bulk));
    world.start(2, None);
    for frame in recorded {
        world.deliver(2, frame.clone());
        world.deliver(3, frame);
    }
    assert!(world.sessions[2..].iter().all(|session| session.opened.is_none()));
}
