//! A bit of a log is flipped between two eras.
//!
//! Owns: one scenario: publish, flip a bit, restart, read around it, publish on; give the range up,
//! publish on, read past it.
//! Never: damages what the disk may have lost anyway.
//! Invariants (checked in every run): only the records of the batch that holds the bit are missing,
//! and they are refused by their range; everything else that was acknowledged is there, with its
//! content; nothing is renumbered.

use super::{TOPIC, Trace, World, content};
use crate::disk::{Cut, Damage};
use crate::executor::SimExecutor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::time::Duration;
use weir_client::{Client, ErrorCode, Limits, Message, Publisher, Start, TopicConfig};
use weir_storage::inspect::{self, Dumped, LogReport};
use weir_storage::{Device, Log, LogOptions};

/// Enough for a segment to be sealed.
const MESSAGES: u64 = 1_800;
/// Published behind the damage.
const MORE: u64 = 50;
/// Whatever a device does takes less.
const IDLE: Duration = Duration::from_secs(2);

/// Where the bit is flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Anywhere in a segment that another follows.
    Sealed,
    /// In the last records of the log, behind which there is a watermark.
    LastBatch,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Hash over every event with its virtual time.
    pub trace: u64,
    /// Offsets that were refused.
    pub lost: Range<u64>,
    /// The partition took nothing until the range was given up.
    pub was_read_only: bool,
}

/// Runs the scenario.
pub fn run_damaged(seed: u64, spot: Spot) -> Damaged {
    let mut world = World::new(seed);
    world.publish_all();
    let cut = world.random.u64(..);
    world.disk.cut_power(Cut::KeepsSome(cut));
    let hit = world.flip(spot);
    let lost = world.read_around(1);
    assert!(lost.is_empty() || lost == hit, "seed {seed}: {lost:?} are lost, {hit:?} were hit");
    let mut end = MESSAGES;
    let was_read_only = !world.publish_more(2, end);
    if !was_read_only {
        end += MORE;
    }
    world.accept_loss(3);
    assert!(world.publish_more(4, end), "seed {seed}: the loss was accepted");
    world.read_past(5, &lost, end + MORE);
    Damaged { trace: world.hash, lost, was_read_only }
}

impl World {
    fn publish_all(&mut self) {
        self.in_runtime(0, async |world, trace| {
            let (_broker, client) = world.start(0).await;
            let made = client.create_topic(TOPIC, TopicConfig::default()).await;
            assert!(made.is_ok(), "seed {}: {made:?}", world.seed);
            world.publish(&client, trace, MESSAGES).await;
            tokio::time::sleep(IDLE).await;
        });
    }

    /// The folder of the topic's log, and what is in it.
    fn report(&self) -> (PathBuf, LogReport) {
        let segments = self.disk.paths(".seg");
        let mut of_topic = segments.iter().filter(|path| path.to_string_lossy().contains("/p-"));
        let dir = of_topic.next().and_then(|path| path.parent()).expect("the topic has a segment");
        let uuid = inspect::uuid_of(&self.disk, dir).ok().flatten().expect("segments say whose");
        let report = inspect::verify(&self.disk, dir, uuid);
        (dir.to_owned(), report.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed)))
    }

    /// Flips one bit, and returns the offsets of the batch that holds it.
    fn flip(&mut self, spot: Spot) -> Range<u64> {
        let (_, report) = self.report();
        assert!(report.segments.len() > 1, "seed {}: a segment is sealed", self.seed);
        let mut batches: Vec<(&Path, Range<u64>, Range<u64>)> = Vec::new();
        for segment in &report.segments {
            let see = |dumped| {
                if let Dumped::Batch { position, header, .. } = dumped {
                    let bytes = position..position + header.stored_len() as u64;
                    let offsets = header.base_offset.0..header.end_offset().0;
                    batches.push((&segment.path, bytes, offsets));
                }
                true
            };
            inspect::dump(&self.disk, segment, see).expect("the disk is whole until now");
        }
        let hit = match spot {
            Spot::LastBatch => batches.iter().rposition(|(.., offsets)| !offsets.is_empty()),
            Spot::Sealed => {
                batches.retain(|(path, ..)| *path == report.segments[0].path);
                Some(self.random.usize(..batches.len()))
            }
        };
        let (path, bytes, offsets) = batches.swap_remove(hit.expect("records were published"));
        let damage = Damage::Bit { position: self.random.u64(bytes), bit: self.random.u8(..8) };
        self.disk.damage(path, &damage);
        offsets
    }

    /// Reads everything, and goes on behind what is refused. Returns what that is.
    fn read_around(&mut self, era: u64) -> Range<u64> {
        self.in_runtime(era, async |world, trace| {
            let (_broker, client) = world.start(era).await;
            let Err(lost) = world.read(&client, trace, 0..MESSAGES).await else { return 0..0 };
            let behind = world.read(&client, trace, lost.end..MESSAGES).await;
            assert_eq!(behind, Ok(()), "seed {}: only one bit", world.seed);
            lost
        })
    }

    /// Reads these offsets; an error is the range of them that is refused.
    async fn read(
        &self,
        client: &Client,
        trace: &mut Trace,
        offsets: Range<u64>,
    ) -> Result<(), Range<u64>> {
        // A batch at a time: the client hands the error over in front of what it has buffered.
        let credit = Limits { messages: 1, bytes: 1 };
        let reader = client.reader(TOPIC).from(Start::Offset(offsets.start)).credit(credit);
        let reader = reader.subscribe().await;
        let mut reader = reader.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        for number in offsets {
            let read = reader.next().await;
            match read.unwrap_or_else(|| panic!("the reader ended at {number}")) {
                Ok(message) => {
                    assert_eq!(message.offset(), number, "seed {}", self.seed);
                    assert_eq!(message.payload()[..], content(self.seed, number)[..], "{number}");
                    trace.note("read", number);
                }
                Err(error) => {
                    assert_eq!(error.error_code(), Some(ErrorCode::DamagedRange), "{error}");
                    trace.note("refused", number);
                    return Err(number..offset_to_go_on_from(&error.to_string()));
                }
            }
        }
        Ok(())
    }

    /// Publishes a few more, if the partition takes any.
    fn publish_more(&mut self, era: u64, first: u64) -> bool {
        self.in_runtime(era, async |world, trace| {
            let (_broker, client) = world.start(era).await;
            for number in first..first + MORE {
                let publisher = client.publisher(TOPIC).partition(0).build().await;
                let published = match &publisher {
                    Ok(publisher) => world.publish_one(publisher, number).await,
                    Err(error) => Err(error.clone()),
                };
                if let Err(error) = published {
                    assert_eq!(error.error_code(), Some(ErrorCode::DamagedRange), "{error}");
                    assert_eq!(number, first, "seed {}: all or nothing", world.seed);
                    return false;
                }
                trace.note("acknowledged", number);
            }
            tokio::time::sleep(IDLE).await;
            true
        })
    }

    async fn publish_one(
        &self,
        publisher: &Publisher,
        number: u64,
    ) -> Result<(), weir_client::Error> {
        let stored = publisher.publish(Message::new(content(self.seed, number))).await?;
        assert_eq!(stored.offset, number, "seed {}: nothing is renumbered", self.seed);
        Ok(())
    }

    /// Gives up what cannot be read, as the offline tool does.
    fn accept_loss(&mut self, era: u64) {
        let (dir, LogReport { uuid, .. }) = self.report();
        self.in_runtime(era, async |world, _| {
            let executor = SimExecutor::new(world.seed ^ era);
            let disk = Arc::new(world.disk.clone());
            let device = Device::open(disk, executor, Path::new("/data"), world.seed);
            let device = device.unwrap_or_else(|error| panic!("seed {}: {error}", world.seed));
            let options = LogOptions { uuid, accept_loss: true, ..LogOptions::default() };
            let opened = Log::open(device, &dir, options);
            let (_, found) = opened.unwrap_or_else(|error| panic!("seed {}: {error}", world.seed));
            assert!(found.damaged.iter().all(|range| range.accepted), "{:?}", found.damaged);
        });
    }

    /// Reads everything but what is lost, and meets no refusal.
    fn read_past(&mut self, era: u64, lost: &Range<u64>, end: u64) {
        self.in_runtime(era, async |world, trace| {
            let (_broker, client) = world.start(era).await;
            let reader = client.reader(TOPIC).from(Start::Earliest).subscribe().await;
            let mut reader = reader.unwrap_or_else(|error| panic!("seed {}: {error}", world.seed));
            for number in (0..end).filter(|number| !lost.contains(number)) {
                let message = reader.next().await.unwrap_or_else(|| panic!("ended at {number}"));
                let message = message.unwrap_or_else(|error| panic!("{number}: {error}"));
                assert_eq!(message.offset(), number, "seed {}", world.seed);
                assert_eq!(message.payload()[..], content(world.seed, number)[..], "{number}");
                trace.note("read", number);
            }
        });
    }
}

/// The client's error carries the text only.
fn offset_to_go_on_from(text: &str) -> u64 {
    let behind = text.rsplit_once("subscribe from offset ").map(|(_, rest)| rest);
    let offset = behind.and_then(|rest| rest.split(' ').next()?.parse().ok());
    offset.unwrap_or_else(|| panic!("where to go on: {text}"))
}
