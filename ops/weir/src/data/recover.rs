//! `weir data recover`: opens logs as a start would, and gives up what is damaged if told to.
//!
//! Owns: the question before anything is given up, and what is said of every log.
//! Never: gives up more than it printed: the lock is held from the look that is printed to the last
//! change. Changes anything with `--accept-loss` where nothing is damaged.

use super::directory::{Directory, Owner, Place};
use super::survey::{Found, Surveyed, Verdict, lacks_checkpoint, survey};
use super::words::{
    details, given_up, headline, identity_json, identity_line, lost_state_line, offsets_line,
    place_json, range_json, range_line, surveyed_json,
};
use super::{disk, in_use, lock};
use crate::arguments::{DataOutput, RecoverArguments};
use crate::failure::Failure;
use crate::output::print_json;
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use weir_storage::inspect::SegmentReport;
use weir_storage::{
    DamagedRange, Device, DeviceError, Executor, Job, Lane, Log, LogBounds, OpenError, Recovered,
};

pub(super) fn run(root: &Path, arguments: &RecoverArguments) -> Result<(), Failure> {
    let disk = Arc::new(disk());
    // Looked at first: a folder that is none of ours is not made one.
    drop(Directory::open(disk.clone(), root)?);
    if arguments.accept_loss {
        let _lock = lock(&*disk, root)?;
        let directory = Directory::open(disk.clone(), root)?;
        let all = survey(&directory, arguments.partition.as_deref(), |_| Ok(()))?;
        if !all.iter().any(Surveyed::can_be_accepted) {
            let left_alone = |surveyed| Outcome { surveyed, opened: None };
            return report(&directory, all.into_iter().map(left_alone).collect(), arguments);
        }
    }
    let device = Device::open(disk.clone(), Arc::new(Inline), root, RandomState::new().hash_one(0));
    let device = device.map_err(|error| match error {
        DeviceError::InUse(_) => in_use(root),
        DeviceError::Unusable { .. } => Failure::NotDone(error.to_string()),
    })?;
    let directory = Directory::open(disk, root)?;
    let all = survey(&directory, arguments.partition.as_deref(), |_| Ok(()))?;
    if arguments.accept_loss {
        ask(&directory, &all, arguments.yes)?;
    }
    let recovered =
        all.into_iter().map(|surveyed| match is_opened(&surveyed, arguments.accept_loss) {
            true => open(&device, &directory, surveyed, arguments.accept_loss),
            false => Outcome { surveyed, opened: None },
        });
    let recovered = recovered.collect();
    report(&directory, recovered, arguments)
}

fn report(
    directory: &Directory,
    all: Vec<Outcome>,
    arguments: &RecoverArguments,
) -> Result<(), Failure> {
    match arguments.output.output {
        DataOutput::Text => {
            writeln!(io::stdout(), "{}", identity_line(directory))?;
            all.iter().try_for_each(print)?;
        }
        DataOutput::Json => print_json(&json!({
            "data_dir": directory.root.display().to_string(),
            "identity": identity_json(directory),
            "logs": all.iter().map(outcome_json).collect::<Vec<Value>>(),
        }))?,
    }
    judge(directory, &all)
}

/// Runs every job at once: when a log is open, nothing of it is still to be written.
#[derive(Debug)]
pub(crate) struct Inline;

impl Executor for Inline {
    fn submit(&self, _lane: Lane, job: Job) {
        job();
    }
}

/// What became of a log.
struct Outcome {
    /// As it was found.
    surveyed: Surveyed,
    /// None where it was left alone.
    opened: Option<Result<(Recovered, LogBounds), OpenError>>,
}

/// A start opens what the metadata names; with `accept_loss` only what is damaged is touched.
fn is_opened(surveyed: &Surveyed, accept_loss: bool) -> bool {
    let Surveyed { place, .. } = surveyed;
    match accept_loss {
        true => surveyed.can_be_accepted(),
        false => place.is_there && place.owner != Owner::Nobody,
    }
}

fn open(device: &Arc<Device>, directory: &Directory, surveyed: Surveyed, accept: bool) -> Outcome {
    let mut options = surveyed.place.options();
    options.accept_loss = accept;
    let dir = directory.path_of(&surveyed.place);
    let opened = Log::open(device.clone(), &dir, options);
    let opened = opened.map(|(log, recovered)| (recovered, log.reader().bounds()));
    Outcome { surveyed, opened: Some(opened) }
}

/// Says what will be given up and waits for a yes.
fn ask(directory: &Directory, all: &[Surveyed], yes: bool) -> Result<(), Failure> {
    let mut prose = io::stderr().lock();
    writeln!(prose, "In {}, this will be given up for good:", directory.root.display())?;
    for surveyed in all.iter().filter(|surveyed| surveyed.can_be_accepted()) {
        writeln!(prose, "  {}", surveyed.place.name())?;
        for line in given_up(surveyed) {
            writeln!(prose, "    {line}")?;
        }
    }
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::NotDone(
            "there is no terminal to ask on; nothing was changed; --yes goes on without a question"
                .to_owned(),
        ));
    }
    is_confirmed(&mut io::stdin().lock(), &mut prose)?
        .then_some(())
        .ok_or_else(|| Failure::NotDone("not confirmed; nothing was changed".to_owned()))
}

fn is_confirmed(answers: &mut impl BufRead, prose: &mut impl Write) -> io::Result<bool> {
    write!(prose, "Make a copy of the data directory first. Type yes to give this up: ")?;
    prose.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

impl Outcome {
    fn verdict(&self) -> Verdict {
        let keeps_state = !matches!(&self.surveyed.found, Found::Log(report)
            if lacks_checkpoint(report));
        match &self.opened {
            None => self.surveyed.verdict(),
            Some(Err(OpenError::Damaged(_))) => Verdict::Damaged,
            Some(Err(_)) => Verdict::Unread,
            Some(Ok((recovered, _))) => {
                let all_accepted = self.damaged(recovered).iter().all(|range| range.accepted);
                if all_accepted && keeps_state { Verdict::Whole } else { Verdict::Damaged }
            }
        }
    }

    fn place(&self) -> &Place {
        &self.surveyed.place
    }

    /// The segments as they were found, to name the files of damaged ranges.
    fn segments(&self) -> &[SegmentReport] {
        match &self.surveyed.found {
            Found::Log(report) => &report.segments,
            Found::Missing | Found::Refused(_) => &[],
        }
    }

    /// What is damaged now: opening does not read what an index tells it, the look before it did.
    fn damaged(&self, recovered: &Recovered) -> Vec<DamagedRange> {
        let mut all = recovered.damaged.clone();
        if let Found::Log(report) = &self.surveyed.found {
            let place = |range: &DamagedRange| (range.sequence, range.positions.start);
            let is_new = |range: &&DamagedRange| {
                recovered.damaged.iter().all(|known| place(known) != place(range))
            };
            all.extend(report.damaged.iter().filter(is_new).cloned());
        }
        all
    }

    fn has_lost_tail(&self) -> bool {
        matches!(&self.surveyed.found, Found::Log(report) if report.lost_tail.is_some())
    }
}

fn print(outcome: &Outcome) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let (verdict, name) = (outcome.verdict().word(), outcome.place().name());
    let lines = match &outcome.opened {
        None => {
            writeln!(out, "{}; left alone", headline(&outcome.surveyed))?;
            details(&outcome.surveyed)
        }
        Some(Err(error)) => {
            writeln!(out, "{verdict:<8} {name}: does not open: {error}")?;
            details(&outcome.surveyed)
        }
        Some(Ok((recovered, bounds))) => {
            let offsets = offsets_line(bounds.log_start, bounds.log_end);
            writeln!(out, "{verdict:<8} {name}: opens, {offsets}")?;
            done(outcome, recovered)
        }
    };
    lines.iter().try_for_each(|line| writeln!(out, "         {line}"))
}

/// What opening did.
fn done(outcome: &Outcome, recovered: &Recovered) -> Vec<String> {
    let mut lines = Vec::new();
    match (recovered.bytes_cut, outcome.has_lost_tail()) {
        (0, _) => {}
        (_, true) => lines.push("the lost end was cut off; the loss is accepted".to_owned()),
        (bytes, false) => {
            lines.push(format!("{bytes} bytes of a torn tail were cut, never acknowledged"));
        }
    }
    if recovered.bytes_rewritten > 0 {
        let bytes = recovered.bytes_rewritten;
        lines.push(format!("{bytes} bytes that nothing proved to be flushed were written again"));
    }
    let damaged = outcome.damaged(recovered);
    lines.extend(damaged.iter().map(|range| range_line(range, &outcome.surveyed)));
    if let Found::Log(report) = &outcome.surveyed.found
        && lacks_checkpoint(report)
    {
        lines.push(lost_state_line(report));
    }
    lines
}

fn outcome_json(outcome: &Outcome) -> Value {
    let mut object = place_json(outcome.place());
    object["verdict"] = json!(outcome.verdict().word());
    object["opened"] = json!(matches!(outcome.opened, Some(Ok(_))));
    match &outcome.opened {
        None => object["left_alone"] = surveyed_json(&outcome.surveyed),
        Some(Err(error)) => object["error"] = json!(error.to_string()),
        Some(Ok((recovered, bounds))) => {
            let damaged = outcome.damaged(recovered);
            let ranges = damaged.iter().map(|range| range_json(range, outcome.segments()));
            object["log_start"] = json!(bounds.log_start.0);
            object["log_end"] = json!(bounds.log_end.0);
            object["bytes_cut"] = json!(recovered.bytes_cut);
            object["bytes_rewritten"] = json!(recovered.bytes_rewritten);
            object["lost_tail_accepted"] = json!(outcome.has_lost_tail());
            object["damaged"] = ranges.collect();
        }
    }
    object
}

fn judge(directory: &Directory, all: &[Outcome]) -> Result<(), Failure> {
    let root = directory.root.display();
    let identity = directory.identity.as_ref().err().map(|error| error.verdict());
    match all.iter().map(Outcome::verdict).chain(identity).max() {
        None | Some(Verdict::Whole) => Ok(()),
        Some(Verdict::Unread) => {
            Err(Failure::NotDone(format!("{root}: not everything could be read")))
        }
        Some(Verdict::Damaged) => Err(Failure::Damaged(format!(
            "{root}: something is still damaged; `weir data recover --help` says what comes next"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_yes_goes_on() {
        for (answer, goes_on) in
            [("yes\n", true), (" yes \r\n", true), ("y\n", false), ("no\n", false), ("", false)]
        {
            let mut prose = Vec::new();
            let confirmed = is_confirmed(&mut answer.as_bytes(), &mut prose).unwrap();
            assert_eq!(confirmed, goes_on, "{answer:?}");
            assert!(String::from_utf8(prose).unwrap().contains("yes"));
        }
    }
}
