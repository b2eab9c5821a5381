//! What must hold of a log whatever became of its files.
//!
//! Owns: the promises, each as code that panics when one breaks.
//! Never: bends anything. Returns in words what the log turned out to be.

use crate::logs::{
    self, DIR, Folder, Original, UUID, content_of, device_on, disk_of, files_of, index_of,
};
use crate::mend;
use std::collections::BTreeSet;
use std::path::Path;
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Offset};
use weir_sim::disk::SimDisk;
use weir_storage::inspect::{self, Dumped, LogReport};
use weir_storage::{
    BatchSlice, Log, LogReader, OpenError, Read, ReadError, ScrubPlace, SegmentView,
};

/// A read hands out at most so much: no index is larger.
const READ_BYTES_MAX: usize = 1 << 20;
/// A segment that the log made has so much room behind what it was given.
const SHRUNK_ROOM_BYTES: usize = 1_024;
/// What the appended batch holds that a log is tried with.
const APPENDED_BYTES: usize = 90;

/// What is known of how files were bent, and so what may be asked of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bent {
    /// In a way that must be noticed: nothing that was flushed may be missing without a word.
    Plainly,
    /// In a way that may look like a tail that was never flushed.
    Oddly,
    /// And a checksum was made right over what nobody wrote: batches that nobody appended may be
    /// served, and an index may hide some until all is read again.
    Forged,
}

/// Holds every promise against the log in `files`.
pub(crate) fn check(original: &Original, files: &Folder, bent: Bent) -> String {
    let mut may_be_served = original.contents.clone();
    if bent == Bent::Forged {
        let segments = || files.iter().filter(|(name, _)| name.ends_with(".seg"));
        let salts: Vec<u64> = segments().flat_map(|(_, bytes)| mend::salts_of(bytes)).collect();
        for (_, bytes) in segments() {
            let whole = mend::whole_batches(bytes, &salts);
            may_be_served.extend(whole.map(|(header, body)| content_of(&header, body)));
        }
    }
    let verified = check_verify(files);
    let opened = check_open(files, (&may_be_served, bent), false);
    // Where a segment was cut, only its successor knows: who gives that up gets the cut back.
    may_be_served.extend(original.cut.iter().cloned());
    let accepted = check_open(files, (&may_be_served, bent), true);
    format!("{verified} / {opened} / {accepted}")
}

// ---- what the offline tools say ----

fn check_verify(files: &Folder) -> String {
    let disk = disk_of(files);
    let dir = Path::new(DIR);
    if let Err(error) = inspect::uuid_of(&disk, dir) {
        check_refusal(&error);
    }
    let report = inspect::verify(&disk, dir, UUID);
    let again = inspect::verify(&disk, dir, UUID);
    assert_eq!(format!("{report:?}"), format!("{again:?}"), "verifying twice finds the same");
    let outcome = match report {
        Err(error) => check_refusal(&error),
        Ok(report) => {
            check_dumps(&disk, &report);
            let LogReport { lost_tail, damaged, torn_bytes, checkpoints, .. } = report;
            let kind = lost_tail.map(|lost| lost.kind);
            let whole = checkpoints.iter().filter(|(_, whole)| *whole).count();
            let torn = torn_bytes > 0;
            format!("{} damaged, torn {torn}, lost {kind:?}, {whole} checkpoints", damaged.len())
        }
    };
    assert_eq!(&files_of(&disk), files, "who looks changes nothing");
    outcome
}

fn check_dumps(disk: &SimDisk, report: &LogReport) {
    for segment in &report.segments {
        let mut behind = mend::SEGMENT_HEADER_BYTES as u64;
        let dumped = inspect::dump(disk, segment, |dumped| {
            let (position, end) = match dumped {
                Dumped::Batch { position, header, body } => {
                    assert_eq!(body.len(), header.body_len as usize);
                    (position, position + header.stored_len() as u64)
                }
                Dumped::Unreadable { position, end, .. } => (position, end),
            };
            assert!(position == behind && end > position, "a dump goes on without holes");
            behind = end;
            true
        });
        dumped.expect("a dump of a disk without faults");
    }
}

/// A refusal names a file of the log, or its folder, and says what is wrong with it: the disk has
/// no faults, so none is the device's.
fn check_refusal(error: &OpenError) -> String {
    match error {
        OpenError::Damaged(corruption) => {
            assert!(corruption.file.starts_with(DIR), "{error}");
            format!("{:?}", corruption.kind)
        }
        OpenError::Newer { file, .. } => {
            assert!(file.starts_with(DIR) && file != Path::new(DIR), "{error}");
            "newer".to_owned()
        }
        OpenError::NoSpace(_) | OpenError::Device { .. } => {
            panic!("refused as if the device had failed: {error}")
        }
    }
}

// ---- the log itself ----

fn check_open(
    files: &Folder,
    (may_be_served, bent): (&BTreeSet<Vec<u8>>, Bent),
    accept_loss: bool,
) -> String {
    let disk = disk_of(files);
    let opened = Log::open(device_on(&disk), Path::new(DIR), logs::options(accept_loss));
    let (mut log, recovered) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let outcome = check_refusal(&error);
            assert_eq!(&files_of(&disk), files, "a log that does not open is not changed");
            return outcome;
        }
    };
    let served = check_served(&log.reader(), may_be_served, bent);
    let mut outcome = format!("{} damaged, {} refused", recovered.damaged.len(), served.refused);
    if recovered.bytes_cut > 0 {
        outcome += ", cut";
    }
    if accept_loss {
        let mut left = recovered.damaged.iter().filter(|range| !range.accepted);
        assert_eq!(left.next(), None, "what is accepted is not refused");
    }
    check_questions(&log);
    // What is damaged in a segment that was not read by the open is known only now.
    let served = check_served(&log.reader(), may_be_served, bent);
    if bent == Bent::Plainly && !accept_loss {
        check_complete(&log.reader(), may_be_served, &served);
    }
    let checkpoint = log.latest_checkpoint(Index(u64::MAX)).expect("a disk without faults");
    outcome += if checkpoint.is_some() { ", checkpoint" } else { "" };
    let added = check_append(&mut log);
    let mut allowed = may_be_served.clone();
    allowed.insert(added.clone());
    let expected: Vec<Vec<u8>> = served.contents.into_iter().chain([added]).collect();
    drop(log);
    let fresh = disk.paths(".seg").into_iter().filter(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        path.starts_with(DIR) && name.is_some_and(|name| !files.contains_key(&name))
    });
    fresh.for_each(|path| logs::shrink(&disk, &path, SHRUNK_ROOM_BYTES));
    for life in ["second", "third"] {
        let opened = Log::open(device_on(&disk), Path::new(DIR), logs::options(false));
        let (log, _) = opened.unwrap_or_else(|error| panic!("a {life} open: {error}"));
        let again = check_served(&log.reader(), &allowed, bent);
        // A chain that was broken by a forged batch is noticed only where all is read again.
        assert!(bent == Bent::Forged || again.contents == expected, "a {life} open finds the same");
    }
    outcome
}

/// The log goes on: returns what it was given.
fn check_append(log: &mut Log) -> Vec<u8> {
    let next = log.reader().bounds().last_index.0 + 1;
    let batch = logs::data(next, 2, APPENDED_BYTES);
    log.append(vec![batch]).unwrap_or_else(|error| panic!("an append: {error}"));
    log.flush(Box::new(|flushed| flushed.expect("a disk without faults flushes")));
    log.leave_watermark().expect("a disk without faults takes it");
    let slices = slices_from(&log.reader(), Index(next)).expect("it was just appended");
    assert_eq!(slices.len(), 1, "what was appended is all that stands at its index");
    content_of(&slices[0].header, body_of(&slices[0]))
}

/// What a log serves.
struct Served {
    contents: Vec<Vec<u8>>,
    /// Ranges that it refuses.
    refused: usize,
}

/// Reads everything by index; asks for what is behind every range that is refused.
fn check_served(reader: &LogReader, may_be_served: &BTreeSet<Vec<u8>>, bent: Bent) -> Served {
    let bounds = reader.bounds();
    let mut served = Served { contents: Vec::new(), refused: 0 };
    let (mut next, mut end) = (bounds.first_index, Offset(0));
    while next <= bounds.last_index {
        let behind = match slices_from(reader, next) {
            Ok(slices) => {
                for BatchSlice { header, .. } in &slices {
                    assert!(header.index >= next, "a read does not go back");
                    assert!(header.base_offset >= end || bent == Bent::Forged, "offsets rise");
                    end = header.end_offset();
                }
                let contents = slices.iter().map(|slice| content_of(&slice.header, body_of(slice)));
                served.contents.extend(contents);
                let Some(last) = slices.last() else { break };
                last.header.index
            }
            Err(ReadError::Damaged(range)) => {
                assert!(range.last_index >= next, "a refusal holds what was asked for: {range}");
                served.refused += 1;
                range.last_index
            }
            Err(error) => panic!("index {next} of {bounds:?}: {error}"),
        };
        let Some(number) = behind.0.checked_add(1) else { break };
        next = Index(number);
    }
    let foreign = served.contents.iter().find(|content| !may_be_served.contains(*content));
    let told = foreign.map(|content| &content[8..40]);
    assert_eq!(told, None, "what is served was appended");
    served
}

/// Everything that was flushed is served, or its range is known to be damaged.
fn check_complete(reader: &LogReader, flushed: &BTreeSet<Vec<u8>>, served: &Served) {
    let damaged = reader.damaged_ranges();
    for content in flushed.iter().filter(|content| !served.contents.contains(content)) {
        let index = index_of(content);
        let is_refused =
            damaged.iter().any(|range| (range.first_index.0..=range.last_index.0).contains(&index));
        let is_trimmed = index < reader.bounds().first_index.0;
        assert!(
            is_refused || is_trimmed,
            "index {index} was flushed, and is missing without a word"
        );
    }
}

/// All batches of one read from `index` on.
pub(crate) fn slices_from(reader: &LogReader, index: Index) -> Result<Vec<BatchSlice>, ReadError> {
    run(reader.read_from_index(index, READ_BYTES_MAX)?)
}

fn run(read: Read) -> Result<Vec<BatchSlice>, ReadError> {
    match read {
        Read::Hot(slices) => Ok(slices),
        Read::Cold(read) => read.run(),
    }
}

fn body_of(slice: &BatchSlice) -> &[u8] {
    &slice.bytes[BATCH_HEADER_BYTES..slice.header.wire_len()]
}

/// Everything else that a log can be asked: no answer panics, and no refusal is the device's.
fn check_questions(log: &Log) {
    let reader = log.reader();
    let bounds = reader.bounds();
    let refused = |error: ReadError| match error {
        ReadError::Device { .. } => panic!("refused as if the device had failed: {error}"),
        ReadError::OutOfRange { .. } | ReadError::Damaged(_) => {}
    };
    let indexes = [bounds.first_index.0, bounds.last_index.0, 7, 0, u64::MAX];
    for index in indexes.map(Index) {
        reader.headers(index, 50).map(drop).unwrap_or_else(refused);
        reader.header_at(index);
    }
    for offset in [bounds.log_start.0, bounds.log_end.0 / 2, bounds.log_end.0, 0, u64::MAX] {
        let read = reader.read_from_offset(Offset(offset), READ_BYTES_MAX);
        read.and_then(run).map(drop).unwrap_or_else(refused);
    }
    for time_ms in [0, 1_100, u64::MAX] {
        reader.offset_for_time(time_ms).map(drop).unwrap_or_else(refused);
    }
    for SegmentView { first_index, last_index, .. } in reader.sealed_segments() {
        assert!(first_index.0 <= last_index.0 + 1);
    }
    reader.terms();
    reader.config_indexes();
    let mut place = ScrubPlace::default();
    while let Some(piece) = reader.scrub_from(place) {
        match piece.run() {
            Ok(scrubbed) => {
                assert_ne!(scrubbed.next, place, "a scrub goes on");
                place = scrubbed.next;
            }
            Err(error) => return refused(error),
        }
    }
}
