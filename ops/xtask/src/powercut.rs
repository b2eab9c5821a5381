//! Cuts the power under a loaded broker, again and again, on the real kernel.
//!
//! Owns: the proof that no cut loses an acknowledged message: each is there exactly once, in the
//! order of its producer, byte for byte, whatever else of the page cache got to the disk.
//! Never: counts on anything but acknowledgements.

mod ledger;
mod lines;
mod load;
mod machine;
mod pages;

use crate::mount::Filesystem;
use crate::process::weir_binary;
use fastrand::Rng;
use ledger::Account;
use lines::Lines;
use load::Load;
use machine::Machine;
use pages::PutBack;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// After so many cuts a new filesystem is made: everything is read back after every cut, so the
/// topics have to stay short.
const CUTS_PER_ERA: u32 = 6;
/// The longest time from the start of the producers to the end of the broker.
const LOAD_MS_MAX: u64 = 200;
/// The longest time that a broker has for whatever it does without a device.
const NOTICE_MS_MAX: u64 = 20;
/// So often the publisher of lines is given some more of them.
const FEED_MS: u64 = 10;
const LINES_PER_FEED: u64 = 50;

/// What happened.
#[derive(Default)]
struct Tally {
    cuts: u32,
    acknowledged: u64,
    lines: u64,
    put_back: PutBack,
}

/// Shares `cuts` among the filesystems. The seed decides when the power goes and what is put back.
pub(crate) fn check(
    root: &Path,
    cuts: u32,
    filesystems: &[Filesystem],
    seed: u64,
) -> Result<String, String> {
    let weir = weir_binary(root)?;
    let scratch = std::env::temp_dir().join(format!("weir-powercut-{}", std::process::id()));
    let began = crate::now();
    let mut tally = Tally::default();
    let mut random = Rng::with_seed(seed);
    let mut places = Vec::new();
    let kinds = filesystems.len() as u32;
    for (number, filesystem) in (0..).zip(filesystems) {
        let share = cuts / kinds + u32::from(number < cuts % kinds);
        places.push(format!("{share} on {filesystem}"));
        for done in (0..share).step_by(CUTS_PER_ERA as usize) {
            let times = CUTS_PER_ERA.min(share - done);
            let era = Era { weir: &weir, times, random: &mut random, tally: &mut tally };
            let outcome = Machine::new(*filesystem, &scratch).and_then(|machine| era.run(machine));
            let _ = fs::remove_dir_all(&scratch);
            outcome.map_err(|error| {
                format!("power cut {} ({filesystem}, seed {seed}): {error}", tally.cuts)
            })?;
        }
    }
    if tally.acknowledged == 0 {
        return Err(format!("seed {seed}: nothing was acknowledged, so nothing is proved"));
    }
    let Tally { acknowledged, lines, put_back: PutBack { pages, sectors }, .. } = tally;
    Ok(format!(
        "{cuts} power cuts ({}; seed {seed}): {acknowledged} acknowledged messages and {lines} \
         lines are there once, in order, byte for byte; {pages} unflushed pages and {sectors} \
         unflushed sectors were put back ({:.1?})",
        places.join(", "),
        began.elapsed()
    ))
}

/// The life of one filesystem.
struct Era<'a> {
    weir: &'a Path,
    times: u32,
    random: &'a mut Rng,
    tally: &'a mut Tally,
}

impl Era<'_> {
    fn run(mut self, mut machine: Machine) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| e.to_string())?;
        let outcome = runtime.block_on(self.cut_often(&mut machine));
        outcome.map_err(|error| {
            let evidence = machine.evidence().unwrap_or_else(|none| none);
            format!("{error}\n{evidence}")
        })
    }

    async fn cut_often(&mut self, machine: &mut Machine) -> Result<(), String> {
        let mut broker = machine.start(self.weir, 0)?;
        let (endpoint, port) = (broker.endpoint.clone(), broker.port()?);
        let mut client = load::connect(&endpoint).await?;
        let mut accounts = load::create_topics(&client).await?;
        let mut lines = Lines::publish(self.weir, &endpoint)?;
        let mut made = Vec::new();
        for time in 0..self.times {
            let load_ms = self.random.u64(1..LOAD_MS_MAX);
            let delay = Duration::from_millis(self.random.u64(..load_ms));
            let load = Load::start(client, accounts, (format!("made-{time}"), delay));
            for _ in 0..=load_ms / FEED_MS {
                lines.feed(LINES_PER_FEED)?;
                tokio::time::sleep(Duration::from_millis(FEED_MS)).await;
            }
            // In the middle of a flush, or between flushes: a killed process ends its own first.
            let in_a_flush = self.random.bool();
            if in_a_flush {
                machine.pull_plug()?;
                tokio::time::sleep(Duration::from_millis(self.random.u64(..NOTICE_MS_MAX))).await;
            }
            broker.kill()?;
            let ended = load.end().await?;
            if let Some(refusal) = ended.refused.filter(|_| !in_a_flush) {
                return Err(refusal);
            }
            accounts = ended.accounts;
            made.extend(ended.created);
            self.tally.cuts += 1;
            self.tally.put_back += machine.cut_power(self.random)?;
            broker = machine.start(self.weir, port)?;
            client = load::connect(&endpoint).await?;
            load::find_topics(&client, &made).await?;
            load::read_back(&client, &mut accounts).await?;
        }
        self.tally.lines += lines.finish(self.weir, &endpoint)?;
        self.tally.acknowledged += accounts.iter().map(Account::acknowledged).sum::<u64>();
        broker.kill()
    }
}

/// For `map_err`: an I/O error with its path.
fn at<E: Display>(path: &Path) -> impl FnOnce(E) -> String {
    move |error| format!("{}: {error}", path.display())
}
