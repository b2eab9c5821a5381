//! Opens a replica's log, and brings back first what damage took of it.
//!
//! Owns: whom to ask for what is missing, and what is answered to those who ask.
//! Never: believes an answer: storage puts nothing into a log unless its chain closes. Repairs a
//! replica whose votes or whose end are doubtful: it has lost what it promised, and another takes
//! its place.
//! Invariant: it runs before the log's consensus starts, so nobody counts on what is missing; what is
//! whole is served to others meanwhile, or two who need each other would wait for ever.

mod search;

use super::payload::Batches;
use super::receive::{parts_from, records_in};
use crate::peer::ask::{Answer, Ask, Asks};
use crate::seams::on_lane;
use search::{Search, Told};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::time::Duration;
use weir_protocol::peer::limits::{APPEND_BYTES_MAX, APPEND_BYTES_TARGET, SEGMENT_PARTS_MAX};
use weir_protocol::peer::{Fetch, FetchedBatches, PeerRefusal};
use weir_protocol::types::{BrokerId, Index, ReplicaId};
use weir_storage::{
    BatchSlice, Corruption, DamagedRange, Device, Hole, Lane, Log, LogOptions, LogReader,
    MendError, Mending, NewBatch, OpenError, Read, ReadError, Recovered, holes,
};

/// An answer is waited for so long: a row of 1 MiB is on its way behind catch-up traffic.
const FETCH_WITHIN: Duration = Duration::from_secs(10);
/// Looks for holes that follow one another: mending may show more of them, where there were too many
/// to be noted.
const LOOKS_MAX: usize = 8;

/// A replica whose log is to be opened.
pub struct Patient {
    /// The device of its log.
    pub device: Arc<Device>,
    /// The folder of its log.
    pub dir: PathBuf,
    /// How the log is kept.
    pub log: LogOptions,
    /// The replica.
    pub replica: ReplicaId,
    /// The others of its group, in the order in which they are asked.
    pub others: Vec<(ReplicaId, BrokerId)>,
}

/// A log that is open, and what was repaired before.
pub struct Repaired {
    /// The log.
    pub log: Log,
    /// What its recovery did; what is damaged still is told there too.
    pub recovered: Recovered,
    /// Holes that were filled.
    pub mended: usize,
    /// What is missing still, and why.
    pub left: Vec<(DamagedRange, Left)>,
}

/// Why something is missing still.
#[derive(Debug)]
pub enum Left {
    /// Everybody was asked, and nobody has it.
    NobodyHasIt,
    /// Who may have it could not be asked: try again.
    NotReachable,
    /// It has no place in this log any more: another replica has to take over.
    Unmendable(MendError),
}

/// Why a log is not open.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Nobody knows what the replica voted, or what it acknowledged at its end. It must not take
    /// part again: another replica takes its place.
    #[error("the replica is lost: {0}")]
    Lost(Corruption),
    /// The log could not be opened.
    #[error(transparent)]
    Log(OpenError),
    /// The device could not take what was brought.
    #[error(transparent)]
    Mend(MendError),
}

impl From<OpenError> for RepairError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Damaged(what) => Self::Lost(what),
            other => Self::Log(other),
        }
    }
}

/// Opens a log. Where it is damaged, others are asked for what is missing, and `serving` is told how
/// to read the rest of it meanwhile: whoever answers [`Ask::Fetch`] has to know.
pub async fn open_whole(
    patient: Patient,
    asks: &dyn Asks,
    serving: impl FnOnce(LogReader),
) -> Result<Repaired, RepairError> {
    let patient = Arc::new(patient);
    let (log, recovered) = open(&patient).await?;
    if recovered.damaged.is_empty() || patient.others.is_empty() {
        let nobody = recovered.damaged.iter().filter(|range| !range.accepted).cloned();
        let left = nobody.map(|range| (range, Left::NobodyHasIt)).collect();
        return Ok(Repaired { log, recovered, mended: 0, left });
    }
    serving(log.reader());
    // Nothing is written through it while files of the log are made anew.
    drop(log);
    let (mended, left) = mend_all(&patient, asks).await?;
    let (log, recovered) = open(&patient).await?;
    Ok(Repaired { log, recovered, mended, left })
}

async fn open(patient: &Arc<Patient>) -> Result<(Log, Recovered), OpenError> {
    let here = patient.clone();
    let open = move || Log::open(here.device.clone(), &here.dir, here.log.clone());
    on_executor(&patient.device, open).await
}

/// Waits for work that waits for the device.
pub(super) async fn on_executor<T: Send + 'static>(
    device: &Arc<Device>,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    on_lane(device.executor(), Lane::Checkpoint, work).await
}

type Missing = Vec<(DamagedRange, Left)>;

async fn mend_all(
    patient: &Arc<Patient>,
    asks: &dyn Asks,
) -> Result<(usize, Missing), RepairError> {
    let mut mended = 0;
    for look in 1.. {
        let here = patient.clone();
        let find = move || holes(&**here.device.disk(), &here.dir, here.log.uuid, false);
        let found = on_executor(&patient.device, find).await?;
        let mut left = Missing::new();
        let before = mended;
        for hole in &found {
            match mend(patient, asks, hole).await? {
                None => mended += 1,
                Some(why) => left.push((hole.range.clone(), why)),
            }
        }
        if mended == before || look == LOOKS_MAX {
            return Ok((mended, left));
        }
    }
    unreachable!("the last look ends it")
}

/// Fills one hole, or tells why not.
///
/// Any batch continues a chain that it was made for: one of a replica whose end is not committed
/// differs from ours, and shows it only behind. So each of the others has its turn to be the first.
async fn mend(
    patient: &Arc<Patient>,
    asks: &dyn Asks,
    hole: &Hole,
) -> Result<Option<Left>, RepairError> {
    let mut outcome = Left::NobodyHasIt;
    for first in 0..patient.others.len() {
        let (here, of) = (patient.clone(), hole.clone());
        let begin = move || Mending::begin(&here.device, &here.dir, here.log.uuid, &of);
        let mut mending = match on_executor(&patient.device, begin).await {
            Ok(mending) => mending,
            Err(error) => return give_up(error).map(Some),
        };
        let begins = mending.next_index();
        let mut search = Search::new(patient.replica, &patient.others, first);
        while !mending.is_closed()
            && let Some((to, fetch)) = search.ask(mending.next_index(), mending.last_index())
        {
            let answer = asks.ask(to, Ask::Fetch(fetch), FETCH_WITHIN).await;
            let told = match answer {
                Ok(Answer::Fetched(Ok(fetched))) => {
                    let (back, told) = taken(patient, mending, fetched).await?;
                    mending = back;
                    told
                }
                Ok(Answer::Fetched(Err(refusal))) => Told::from(refusal),
                Ok(_) => Told::Nothing,
                Err(lost) => Told::from(lost),
            };
            search.told(told);
        }
        let brought = mending.next_index() != begins;
        if mending.is_closed() {
            match on_executor(&patient.device, move || mending.finish()).await {
                Ok(()) => return Ok(None),
                Err(error) => outcome = give_up(error)?,
            }
        } else if search.is_somebody_away() {
            outcome = Left::NotReachable;
        }
        if !brought {
            break;
        }
    }
    Ok(Some(outcome))
}

/// What an error of storage means for a hole; an error of the device ends everything.
fn give_up(error: MendError) -> Result<Left, RepairError> {
    match error {
        MendError::NoSpace(_) | MendError::Device { .. } => Err(RepairError::Mend(error)),
        MendError::Unmendable { .. } | MendError::Unreadable(_) => Ok(Left::Unmendable(error)),
        _ => Ok(Left::NobodyHasIt),
    }
}

/// Takes what was answered as far as it fits.
async fn taken(
    patient: &Arc<Patient>,
    mut mending: Mending,
    fetched: FetchedBatches,
) -> Result<(Mending, Told), RepairError> {
    let before = mending.next_index();
    let Ok(records) = records_in(&fetched.parts) else { return Ok((mending, Told::Nothing)) };
    let batches = records.into_iter().flat_map(|record| match record.payload.batches {
        Batches::Received(batches) => batches,
        _ => unreachable!("what a peer sent is received"),
    });
    let batches: Vec<NewBatch> = batches.collect();
    let take = move || {
        let outcome = mending.take(&batches);
        (mending, outcome)
    };
    let (mending, outcome) = on_executor(&patient.device, take).await;
    if let Err(error) = outcome {
        // What came before it stays: it continued the chain.
        give_up(error)?;
    }
    let goes_on = mending.next_index() != before || mending.is_closed();
    Ok((mending, if goes_on { Told::Progress } else { Told::Nothing }))
}

/// Answers FETCH out of a log: whole indexes from the first on, about what is asked for, 1 MiB at
/// most unless one index alone is larger. Waits for the device: run it on [`Lane::Read`].
pub fn fetch(log: &LogReader, fetch: &Fetch) -> Result<FetchedBatches, PeerRefusal> {
    let room = (fetch.bytes_max as usize).min(APPEND_BYTES_TARGET);
    let (mut found, mut bytes, mut next): (Vec<BatchSlice>, usize, Index) =
        (Vec::new(), 0, fetch.first);
    let mut segments = 0;
    while next <= fetch.last && (found.is_empty() || bytes < room) && segments < SEGMENT_PARTS_MAX {
        // One read is of one segment.
        segments += 1;
        let slices = match indexes(log, next, fetch.last, room.saturating_sub(bytes)) {
            Ok(slices) => slices,
            Err(refusal) if found.is_empty() => return Err(refusal),
            Err(_) => break,
        };
        let Some(last) = slices.last() else { break };
        let len: usize = slices.iter().map(|slice| slice.bytes.len()).sum();
        if !found.is_empty() && bytes + len > APPEND_BYTES_MAX {
            break;
        }
        next = Index(last.header.index.0 + 1);
        bytes += len;
        found.extend(slices);
    }
    match found.is_empty() {
        // It was trimmed, or is not there yet.
        true => Err(PeerRefusal::Damaged),
        false => Ok(FetchedBatches { more: next <= fetch.last, parts: parts_from(found.iter()) }),
    }
}

/// Whole indexes from `first` on without a gap, all of one segment; none behind the end of the log.
fn indexes(
    log: &LogReader,
    first: Index,
    last: Index,
    bytes_max: usize,
) -> Result<Vec<BatchSlice>, PeerRefusal> {
    for bytes_max in [bytes_max, APPEND_BYTES_MAX] {
        let found = match log.read_from_index(first, bytes_max) {
            Ok(Read::Hot(slices)) => Ok(slices),
            Ok(Read::Cold(cold)) => cold.run(),
            Err(error) => Err(error),
        };
        let mut slices = found.map_err(|error| match error {
            ReadError::Damaged(_) | ReadError::OutOfRange { .. } => PeerRefusal::Damaged,
            ReadError::Device { .. } => PeerRefusal::Fenced,
        })?;
        slices.retain(|slice| !slice.header.batch_type.is_local() && slice.header.index <= last);
        if slices.first().is_some_and(|slice| slice.header.index != first) {
            // A loss was accepted here: reads pass over it.
            return Err(PeerRefusal::Damaged);
        }
        let follows = |pair: &[BatchSlice]| {
            let [before, after] = [&pair[0].header, &pair[1].header];
            match before.is_last_of_index() {
                true => after.index.0 == before.index.0 + 1 && after.is_first_of_index(),
                false => after.index == before.index,
            }
        };
        let unbroken = slices.windows(2).position(|pair| !follows(pair));
        slices.truncate(unbroken.map_or(usize::MAX, |at| at + 1));
        let whole = slices.iter().rposition(|slice| slice.header.is_last_of_index());
        slices.truncate(whole.map_or(0, |at| at + 1));
        if !slices.is_empty() {
            return Ok(slices);
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests;
