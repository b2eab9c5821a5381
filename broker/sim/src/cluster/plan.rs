//! What a run is made of: how large it is, and which kinds of faults it knows.
//!
//! Owns: the choice, from the seed alone.
//! Never: does anything.
//! Source: swarm testing (Groce et al., ISSTA 2012): a run that knows only some kinds of faults
//! meets what a mixture of all of them would hide.

use tokio::time::Duration;

/// Something that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// One broker is killed as by SIGKILL, and starts again.
    Kill,
    /// Every broker is.
    KillAll,
    /// One machine loses its power, and what its disk had not made durable.
    PowerCut,
    /// All of them lose it at once.
    PowerCutAll,
    /// One broker drains and comes back.
    Drain,
    /// One machine hears nobody, and nobody hears it.
    Isolate,
    /// One machine is heard and does not hear, or the other way round.
    OneWay,
    /// The link between two machines is silent; a third one reaches both.
    Bridge,
    /// Every machine reaches its neighbours in a ring, and nobody else.
    Ring,
    /// All streams between two machines break.
    Reset,
    /// What one machine sends takes long.
    Far,
    /// Nothing is flushed on one machine for a while.
    SlowDisk,
    /// Somebody sets the clock of one machine.
    Clock,
    /// One machine stands still as by SIGSTOP: nobody hears of it, and time goes on.
    Pause,
    /// The disk of one machine has no room for a while.
    FullDisk,
    /// A flush of one machine fails, and its broker ends.
    FailedFlush,
    /// Files of one machine are damaged while its broker is down.
    Rot,
    /// One machine loses its disk; its broker joins as a new one.
    Wipe,
    /// A replica goes from one broker to another.
    Move,
    /// One broker hands over all that it holds, leaves the cluster and comes back as a new one.
    Retire,
    /// Replicas and leaders are spread evenly.
    Balance,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 21] = [
        Self::Kill,
        Self::KillAll,
        Self::PowerCut,
        Self::PowerCutAll,
        Self::Drain,
        Self::Isolate,
        Self::OneWay,
        Self::Bridge,
        Self::Ring,
        Self::Reset,
        Self::Far,
        Self::SlowDisk,
        Self::Clock,
        Self::Pause,
        Self::FullDisk,
        Self::FailedFlush,
        Self::Rot,
        Self::Wipe,
        Self::Move,
        Self::Retire,
        Self::Balance,
    ];
}

/// How large a run is, and what may go wrong in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Machines: 3 or 5.
    pub brokers: u8,
    /// Replicas of each partition: 3 or 5.
    pub replicas: u8,
    /// Partitions of the topic.
    pub partitions: u16,
    /// Producers; each publishes to every partition.
    pub producers: u16,
    /// How long things go wrong, in virtual time.
    pub lasts: Duration,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Topics are created and deleted beside the one that is judged.
    pub churns_topics: bool,
    /// Consumers that share the first subscription.
    pub members: u16,
    /// Messages are large and the topic keeps few of them, so that logs are trimmed and snapshots
    /// are sent.
    pub trims: bool,
}

/// One run in so many has five machines.
const LARGE_ONE_IN: u8 = 6;

impl Shape {
    /// The shape of a run.
    pub fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x0073_6861_7065);
        let brokers = if random.u8(..LARGE_ONE_IN) == 0 { 5 } else { 3 };
        let replicas = if random.u8(..4) == 0 { brokers } else { 3 };
        let mut faults: Vec<Fault> = Fault::ALL.into();
        random.shuffle(&mut faults);
        // Where every broker holds everything nothing can go elsewhere, and where not it shall.
        let moves = |fault: &Fault| matches!(fault, Fault::Move | Fault::Retire);
        match replicas < brokers {
            true => faults.sort_by_key(|fault| !moves(fault)),
            false => faults.retain(|fault| !moves(fault)),
        }
        faults.truncate(random.usize(1..=5));
        let trims = random.u8(..4) == 0;
        Self {
            brokers,
            replicas,
            partitions: random.u16(1..=3),
            producers: if trims { 1 } else { random.u16(1..=3) },
            lasts: Duration::from_millis(random.u64(5_000..15_000)),
            faults,
            churns_topics: random.u8(..3) == 0,
            members: random.u16(1..=3),
            trims,
        }
    }
}
