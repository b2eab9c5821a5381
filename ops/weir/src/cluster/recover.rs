//! `weir cluster recover`: a stopped broker goes on alone.
//!
//! Owns: what is shown before anything is given up, and the order in which logs are changed.
//! Never: changes anything without being told the cluster and that the loss is accepted; goes on over
//! a log that is damaged.
//! Invariant: the metadata is changed first, and says of each log where it ended; a run that was
//! stopped is finished by the next.

use crate::arguments::{DataOutput, RecoverClusterArguments};
use crate::data::directory::{Directory, Owner, Place};
use crate::data::survey::{Found, Surveyed, Verdict, survey};
use crate::data::{Inline, data_dir, disk, in_use, lock};
use crate::failure::Failure;
use crate::output::print_json;
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use weir_broker::Identity;
use weir_broker::replication::metadata::{Catalog, Survivor, commands_of};
use weir_broker::replication::offline::{Group, read_group, stand_alone};
use weir_broker::seams::{OsWallClock, WallClock};
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::inspect::LogReport;
use weir_storage::{Device, DeviceError, Log};

pub(super) fn run(arguments: &RecoverClusterArguments) -> Result<(), Failure> {
    let root = data_dir(&arguments.directory)?;
    let disk = Arc::new(disk());
    // Looked at first: a folder that is none of ours gets no lock file.
    let identity = identity_of(&Directory::open(disk.clone(), &root)?)?;
    let Some(cluster) = &arguments.cluster else {
        let _lock = lock(&*disk, &root)?;
        let found = look(&Directory::open(disk, &root)?, identity)?;
        show(&found, arguments)?;
        return if found.all.iter().all(Row::is_alone) { Ok(()) } else { Err(found.refusal()) };
    };
    if *cluster != cluster_id(identity) {
        return Err(Failure::Usage(format!(
            "{} belongs to cluster {}, not to {cluster}; nothing was changed",
            root.display(),
            cluster_id(identity)
        )));
    }
    let seed = RandomState::new().hash_one(0);
    let device = Device::open(disk.clone(), Arc::new(Inline), &root, seed);
    let device = device.map_err(|error| match error {
        DeviceError::InUse(_) => in_use(&root),
        DeviceError::Unusable { .. } => Failure::NotDone(error.to_string()),
    })?;
    let directory = Directory::open(disk, &root)?;
    look(&directory, identity)?.recover(&device, &directory)?;
    show(&look(&directory, identity)?, arguments)?;
    writeln!(
        io::stderr(),
        "Every log here goes on alone. Start this broker now. The data directories of all the other \
         brokers must never be used again: move them away; empty ones join anew."
    )?;
    Ok(())
}

fn identity_of(directory: &Directory) -> Result<Identity, Failure> {
    let identity = directory.identity.as_ref();
    identity.copied().map_err(|error| Failure::NotDone(error.to_string()))
}

fn cluster_id(identity: Identity) -> String {
    format!("{:032x}", identity.cluster)
}

/// A log with a replica on this broker.
struct Row {
    place: Place,
    report: LogReport,
    group: Group,
    replica: ReplicaId,
}

impl Row {
    fn is_alone(&self) -> bool {
        self.group.is_only(self.replica)
    }

    fn is_metadata(&self) -> bool {
        self.place.owner == Owner::Metadata
    }
}

/// What there is to recover.
struct Seen {
    identity: Identity,
    catalog: Arc<Catalog>,
    /// The metadata first.
    all: Vec<Row>,
}

/// Looks at every log that has a replica here. A damaged one ends it.
fn look(directory: &Directory, identity: Identity) -> Result<Seen, Failure> {
    let surveyed = survey(directory, None, |_| Ok(()))?;
    let hurt = surveyed.iter().filter(|log| log.place.is_there).find(|log| !is_usable(log));
    if let Some(hurt) = hurt {
        return Err(Failure::Damaged(format!(
            "{} is damaged or cannot be read; nothing was changed; `weir data verify` says what is \
             wrong, and `weir data recover` comes first",
            hurt.place.name()
        )));
    }
    let mut catalog = None;
    let mut all = Vec::new();
    for Surveyed { place, found, .. } in surveyed {
        let Found::Log(report) = found else { continue };
        let (disk, dir) = (&*directory.disk, directory.path_of(&place));
        let not_done =
            |error: &dyn std::fmt::Display| Failure::NotDone(format!("{}: {error}", place.name()));
        if place.owner == Owner::Metadata {
            catalog = Some(directory.catalog(&report).map_err(|error| not_done(&error))?);
        }
        let group = read_group(disk, &dir, &report).map_err(|error| not_done(&error))?;
        // A replica that its group has forgotten is nobody's.
        let Some(replica) = group.replica_on(identity.broker) else { continue };
        if place.owner != Owner::Nobody {
            all.push(Row { place, report, group, replica });
        }
    }
    let catalog = catalog.ok_or_else(|| {
        Failure::NotDone("the metadata is not here; nothing was changed".to_owned())
    })?;
    Ok(Seen { identity, catalog, all })
}

fn is_usable(log: &Surveyed) -> bool {
    matches!(log.found, Found::Log(_)) && log.verdict() == Verdict::Whole
}

impl Seen {
    /// What is said instead of changing anything.
    fn refusal(&self) -> Failure {
        Failure::NotDone(format!(
            "nothing was changed. Where other brokers are left, stop them and compare: the greatest \
             term, then the greatest index of a last batch has most. If the majority is lost for \
             good: weir cluster recover --accept-loss --cluster {}",
            cluster_id(self.identity)
        ))
    }

    /// Makes every log that is not alone go on alone: the metadata first, which says what became of
    /// the others.
    fn recover(&self, device: &Arc<Device>, directory: &Directory) -> Result<(), Failure> {
        let survivors: Vec<Survivor> = self
            .all
            .iter()
            .filter(|row| !row.is_alone())
            .map(|row| Survivor {
                uuid: if row.is_metadata() { 0 } else { row.place.uuid },
                last: row.report.last_index,
            })
            .collect();
        let now_ms = OsWallClock.now_ms();
        let mut commands = commands_of(&self.catalog, self.identity.broker, &survivors, now_ms);
        for row in &self.all {
            let commands =
                if row.is_metadata() { std::mem::take(&mut commands) } else { Vec::new() };
            if !row.is_alone() || !commands.is_empty() {
                self.recover_one(device, &directory.path_of(&row.place), (row, commands))?;
            }
        }
        Ok(())
    }

    fn recover_one(
        &self,
        device: &Arc<Device>,
        dir: &Path,
        (row, commands): (&Row, Vec<Vec<u8>>),
    ) -> Result<(), Failure> {
        let name = row.place.name();
        let not_done = |error: &dyn std::fmt::Display| {
            Failure::NotDone(format!("{name}: {error}; run this again once that is mended"))
        };
        let opened = Log::open(device.clone(), dir, row.place.options());
        let (mut log, _) = opened.map_err(|error| not_done(&error))?;
        let member = (row.replica, self.identity.broker);
        let done = stand_alone(&mut log, member, row.group.voted, commands);
        done.map_err(|error| not_done(&error))
    }
}

fn show(seen: &Seen, arguments: &RecoverClusterArguments) -> Result<(), Failure> {
    let (cluster, broker) = (cluster_id(seen.identity), seen.identity.broker);
    if arguments.output.output == DataOutput::Json {
        return Ok(print_json(&json!({
            "cluster": cluster,
            "broker": broker.0,
            "logs": seen.all.iter().map(|row| row_json(row, &seen.catalog)).collect::<Vec<Value>>(),
        }))?);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "broker {broker} of cluster {cluster}")?;
    for row in &seen.all {
        let Row { place, report, group, replica } = row;
        writeln!(out, "{}: replica {replica} of {}", place.name(), voters_text(group))?;
        writeln!(
            out,
            "    last batch: term {}, index {}; log end {}; recovery epoch {}",
            group.last.term,
            group.last.index,
            report.log_end,
            epoch_of(row, &seen.catalog)
        )?;
    }
    Ok(())
}

/// Who votes, and where.
fn voters_text(group: &Group) -> String {
    let on = |replica: &ReplicaId| {
        let broker = group.brokers.get(replica).copied().unwrap_or(BrokerId(0));
        format!("{replica} on broker {broker}")
    };
    let text = |voters: &std::collections::BTreeSet<ReplicaId>| {
        let voters: Vec<String> = voters.iter().map(on).collect();
        format!("{} voters ({})", voters.len(), voters.join(", "))
    };
    let sets: Vec<String> = group.voters.iter().map(text).collect();
    sets.join(" changing to ")
}

fn epoch_of(row: &Row, catalog: &Catalog) -> u32 {
    let of_partition = |uuid| catalog.partitions().find(|(_, partition)| partition.uuid == uuid);
    match row.is_metadata() {
        true => catalog.recovery.epoch,
        false => of_partition(row.place.uuid).map_or(0, |(_, partition)| partition.recovery.epoch),
    }
}

fn row_json(row: &Row, catalog: &Catalog) -> Value {
    let voters = row.group.voters.iter().map(|set| set.iter().map(|r| r.0).collect::<Vec<u64>>());
    json!({
        "folder": row.place.folder,
        "name": row.place.name(),
        "replica": row.replica.0,
        "voters": voters.collect::<Vec<_>>(),
        "last_term": row.group.last.term.0,
        "last_index": row.group.last.index.0,
        "log_end": row.report.log_end.0,
        "recovery_epoch": epoch_of(row, catalog),
        "alone": row.is_alone(),
    })
}
