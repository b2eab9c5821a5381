//! Finds a log again after a stop of any kind.
//!
//! Owns: the decision what is the end of a log, what is a torn tail, and what is damage.
//! Never: truncates damage; serves a byte that was not verified.
//! Invariants: what was flushed is there or the log does not open; recovery run twice finds the
//! same; a crash within recovery loses nothing.
//!
//! At the first batch that cannot be accepted, position P, with W = the largest flushed position
//! that any valid header of the segment testifies to:
//!
//! | evidence | decision |
//! |---|---|
//! | a later segment cuts this one at P | the end of this segment |
//! | P < W | damage: the log does not open |
//! | P >= W, checksums right but chain or index wrong | damage |
//! | P >= W, only zeros behind | clean end |
//! | P >= W, anything else | torn tail: cut by rolling to a fresh segment, whole indexes only |

use crate::device::Device;
use crate::disk::remove_if_there;
use crate::error::{Corruption, CorruptionKind, OpenError};
use crate::index::SparseIndex;
use crate::limits::{SEGMENT_HEADER_BYTES, UNFLUSHED_BYTES_MAX};
use crate::log::{LogOptions, Recovered};
use crate::meta::Meta;
use crate::reader::Ends;
use crate::segment::{SEGMENT_VERSION, Segment, SegmentHeader, SegmentHeaderError};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::{BATCH_MAGIC, BatchHeader, BatchType};
use weir_protocol::limits::{BATCH_ALIGN_BYTES, BATCH_HEADER_BYTES};
use weir_protocol::types::{Index, Offset, Term};

pub(crate) struct Found {
    pub(crate) ends: Ends,
    pub(crate) meta: Meta,
    pub(crate) tail: (Term, u32),
    pub(crate) position: u64,
    pub(crate) sequence: u64,
    /// What was found; torn bytes are counted here and cut by the caller, by rolling.
    pub(crate) recovered: Recovered,
}

struct File {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn crate::disk::DiskFile>,
}

pub(crate) fn recover(
    device: &Device,
    dir: &Path,
    options: &LogOptions,
) -> Result<Found, OpenError> {
    let disk = &**device.disk();
    disk.create_dir(dir).map_err(OpenError::device(dir))?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent).map_err(OpenError::device(parent))?;
    }
    let mut files = open_files(device, dir, options)?;
    let meta = Meta::open(disk, dir, files.is_empty())?;
    let sequence = files.keys().next_back().copied().unwrap_or(0);
    let linked = linked_files(&mut files, dir)?;
    let (trimmed, linked): (Linked, Linked) =
        linked.into_iter().partition(|(file, cut)| is_trimmed(file, *cut, &meta));
    check_start(&linked, dir, &meta)?;
    let mut scan = Scan::behind(meta.first_index());
    let count = linked.len();
    for (number, (file, cut)) in linked.into_iter().enumerate() {
        let cut = if number + 1 == count { None } else { cut };
        scan.read_segment(file, cut)?;
    }
    // Only now, when nothing that is kept turned out to be damaged. Names and hard state of a
    // process that failed may be visible without being durable.
    disk.sync_dir(dir).map_err(OpenError::device(dir))?;
    meta.settle().map_err(OpenError::device(&meta.path))?;
    remove_dead(device, dir, files.into_values().chain(trimmed.into_iter().map(|(file, _)| file)))?;
    Ok(scan.finish(meta, sequence))
}

/// Every segment file by sequence. The newest may lack a header when it was never linked.
fn open_files(
    device: &Device,
    dir: &Path,
    options: &LogOptions,
) -> Result<BTreeMap<u64, File>, OpenError> {
    let disk = &**device.disk();
    let mut files = BTreeMap::new();
    for name in disk.list(dir).map_err(OpenError::device(dir))? {
        if !name.ends_with(".seg") {
            continue;
        }
        let path = dir.join(&name);
        let file = match disk.open(&path) {
            Ok(file) => file,
            // An earlier life of this log in this process still removes what it trimmed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(OpenError::device(&path)(error)),
        };
        let loaded = SegmentHeader::load(&*file).map_err(OpenError::device(&path))?;
        let damaged = |kind| Corruption { file: path.clone(), position: 0, kind };
        let header = match loaded {
            Ok(header) => header,
            Err(SegmentHeaderError::Newer(found)) => {
                return Err(OpenError::Newer { file: path, found, known: SEGMENT_VERSION });
            }
            Err(SegmentHeaderError::Damaged) => {
                return Err(damaged(CorruptionKind::SegmentHeader).into());
            }
        };
        if header.partition_uuid != options.uuid {
            return Err(damaged(CorruptionKind::OutOfPlace).into());
        }
        if file.len() < header.capacity {
            return Err(damaged(CorruptionKind::Hole).into());
        }
        files.insert(header.sequence, File { header, path, file });
    }
    Ok(files)
}

type Linked = Vec<(File, Option<u64>)>;

/// Follows the links from the newest segment back. With each, where its successor cuts it.
fn linked_files(files: &mut BTreeMap<u64, File>, dir: &Path) -> Result<Linked, OpenError> {
    let mut linked = VecDeque::new();
    let (mut wanted, mut cut) = (files.keys().next_back().copied().unwrap_or(0), None);
    while wanted != 0 {
        let Some(file) = files.remove(&wanted) else {
            // Everything older was trimmed, or it is missing: the first index tells.
            break;
        };
        if cut.is_some_and(|cut| cut > file.file.len() || cut < SEGMENT_HEADER_BYTES) {
            let kind = CorruptionKind::Hole;
            return Err(Corruption { file: dir.to_owned(), position: 0, kind }.into());
        }
        wanted = file.header.prev_sequence;
        let next_cut = Some(file.header.prev_cut_pos);
        linked.push_front((file, cut));
        cut = next_cut;
    }
    Ok(linked.into())
}

/// A segment is trimmed when its successor begins at or below the first index; the successor is
/// known to exist because only the last has no cut.
fn is_trimmed(file: &File, cut: Option<u64>, meta: &Meta) -> bool {
    cut.is_some() && file.header.base_index < meta.first_index()
}

/// Removes segments that a truncation or a trim had given up when the process ended.
fn remove_dead(
    device: &Device,
    dir: &Path,
    dead: impl Iterator<Item = File>,
) -> Result<(), OpenError> {
    let disk = &**device.disk();
    let mut removed = false;
    for file in dead {
        remove_if_there(disk, &file.path).map_err(OpenError::device(&file.path))?;
        removed = true;
    }
    if removed {
        disk.sync_dir(dir).map_err(OpenError::device(dir))?;
    }
    Ok(())
}

/// A trim never takes the last segment: without any, a log that was trimmed has lost them.
fn check_start(linked: &Linked, dir: &Path, meta: &Meta) -> Result<(), OpenError> {
    let (file, is_hole) = match linked.first() {
        Some((file, _)) => (file.path.clone(), file.header.base_index > meta.first_index()),
        None => (dir.to_owned(), meta.first_index() > Index(1)),
    };
    let kind = CorruptionKind::Hole;
    if is_hole { Err(Corruption { file, position: 0, kind }.into()) } else { Ok(()) }
}

/// Reads segments in order and carries what must hold from one batch to the next.
struct Scan {
    segments: VecDeque<Arc<Segment>>,
    recent: VecDeque<(BatchHeader, Arc<Segment>, u64)>,
    first_index: Index,
    last: Option<BatchHeader>,
    log_end: Offset,
    tail: (Term, u32),
    position: u64,
    recovered: Recovered,
}

impl Scan {
    fn behind(first_index: Index) -> Self {
        Self {
            segments: VecDeque::new(),
            recent: VecDeque::new(),
            first_index,
            last: None,
            log_end: Offset(0),
            tail: (Term(0), 0),
            position: 0,
            recovered: Recovered::default(),
        }
    }

    fn finish(self, meta: Meta, sequence: u64) -> Found {
        let mut ends = Ends {
            segments: self.segments,
            recent: VecDeque::new(),
            first_index: self.first_index,
            log_end: self.log_end,
            last: self.last,
            room: 0,
            growing: false,
        };
        for (header, segment, position) in self.recent {
            ends.remember(header, &segment, position);
        }
        Found {
            ends,
            meta,
            tail: self.tail,
            position: self.position,
            sequence,
            recovered: self.recovered,
        }
    }

    /// Reads one segment up to `cut`, or to its end where it is the last.
    fn read_segment(&mut self, file: File, cut: Option<u64>) -> Result<(), OpenError> {
        let File { header, path, file } = file;
        if self.segments.is_empty() {
            self.first_index = header.base_index;
            self.log_end = header.base_offset;
            self.tail = (header.prev_term, header.prev_chain);
        } else if header.prev_chain != self.tail.1 || header.base_offset != self.log_end {
            let kind = CorruptionKind::OutOfPlace;
            return Err(Corruption { file: path, position: 0, kind }.into());
        }
        let mut index = SparseIndex::default();
        let mut read = SegmentScan {
            file: &*file,
            path: &path,
            salt: header.salt,
            position: SEGMENT_HEADER_BYTES,
            flushed: SEGMENT_HEADER_BYTES,
            sealed: false,
        };
        let mut accepted = Vec::new();
        let limit = cut.unwrap_or(file.len());
        let stop = loop {
            if read.position >= limit || read.sealed {
                break None;
            }
            let position = read.position;
            match read.next(self)? {
                Ok(batch) => {
                    index.note(position, &batch);
                    if !batch.batch_type.is_local() {
                        accepted.push((batch, position));
                    }
                }
                Err(kind) => break Some(kind),
            }
        };
        let (end, mut flushed, sealed) = (read.position, read.flushed, read.sealed);
        self.recovered.batches_read += accepted.len() as u64;
        match (cut, stop) {
            (Some(cut), _) if end == cut => {}
            (Some(_), stop) => {
                let kind = stop.unwrap_or(CorruptionKind::OutOfPlace);
                return Err(Corruption { file: path, position: end, kind }.into());
            }
            (None, Some(kind)) => {
                flushed = flushed.max(later_evidence(&*file, &path, header.salt, end)?);
                let out_of_place = kind == CorruptionKind::OutOfPlace;
                if end < flushed || out_of_place {
                    return Err(Corruption { file: path, position: end, kind }.into());
                }
                self.recovered.bytes_cut = torn_bytes(&*file, &path, end)?;
            }
            (None, None) => {}
        }
        if cut.is_none() {
            self.rewrite(&*file, &path, flushed.min(end)..end)?;
        }
        let segment = Segment::new(header, path, file, (end, index));
        if sealed || cut.is_some() {
            segment.seal();
        }
        self.position = end;
        self.remember(accepted, &segment);
        self.segments.push_back(segment);
        Ok(())
    }

    /// Nothing proves that these bytes reached the disk: after a failed flush the cache may show
    /// what the disk does not hold. Writing them again and flushing makes them count.
    fn rewrite(
        &mut self,
        file: &dyn crate::disk::DiskFile,
        path: &Path,
        range: std::ops::Range<u64>,
    ) -> Result<(), OpenError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0; 256 << 10];
        let mut position = range.start;
        while position < range.end {
            let step = (range.end - position).min(bytes.len() as u64) as usize;
            file.read_at(position, &mut bytes[..step]).map_err(OpenError::device(path))?;
            file.write_at(position, &bytes[..step]).map_err(OpenError::device(path))?;
            position += step as u64;
        }
        self.recovered.bytes_rewritten += range.end - range.start;
        file.flush(range).map_err(OpenError::device(path))
    }

    fn remember(&mut self, accepted: Vec<(BatchHeader, u64)>, segment: &Arc<Segment>) {
        self.recent.clear();
        for (header, position) in accepted {
            self.last = Some(header);
            self.recent.push_back((header, segment.clone(), position));
        }
    }
}

struct SegmentScan<'a> {
    file: &'a dyn crate::disk::DiskFile,
    path: &'a Path,
    salt: u64,
    position: u64,
    /// The largest flushed position that a header testifies to.
    flushed: u64,
    sealed: bool,
}

impl SegmentScan<'_> {
    /// Reads and checks the batch at the position and moves behind it.
    fn next(&mut self, scan: &mut Scan) -> Result<Result<BatchHeader, CorruptionKind>, OpenError> {
        let Some(header) = read_header(self.file, self.path, self.salt, self.position)? else {
            return Ok(Err(CorruptionKind::Batch(weir_protocol::batch::HeaderError::Crc)));
        };
        if self.position + header.stored_len() as u64 > self.file.len() {
            return Ok(Err(CorruptionKind::Batch(weir_protocol::batch::HeaderError::Lengths)));
        }
        let mut body = vec![0; header.body_len as usize];
        let at = self.position + BATCH_HEADER_BYTES as u64;
        self.file.read_at(at, &mut body).map_err(OpenError::device(self.path))?;
        let control_crc = match header.check_body(&body) {
            Ok(control_crc) => control_crc,
            Err(error) => return Ok(Err(CorruptionKind::Batch(error))),
        };
        if !follows(scan, &header, control_crc) {
            return Ok(Err(CorruptionKind::OutOfPlace));
        }
        self.flushed = self.flushed.max(header.durable_pos);
        self.position += header.stored_len() as u64;
        if header.batch_type.is_local() {
            self.sealed = header.batch_type == BatchType::Seal;
        } else {
            scan.tail = (header.term, header.chain);
            scan.log_end = header.end_offset();
            scan.last = Some(header);
        }
        Ok(Ok(header))
    }
}

/// Whether a batch may stand behind the last one.
fn follows(scan: &Scan, header: &BatchHeader, control_crc: Option<u32>) -> bool {
    let last_index = scan.last.map_or(Index(scan.first_index.0 - 1), |last| last.index);
    if header.batch_type.is_local() {
        return header.index == last_index && header.chain == scan.tail.1;
    }
    let same_index = scan.last.is_some_and(|last| !last.is_last_of_index());
    let expected = if same_index { last_index } else { Index(last_index.0 + 1) };
    header.index == expected
        && header.base_offset == scan.log_end
        && header.chain == header.expected_chain(scan.tail.1, control_crc)
}

/// The valid header at `position`, if one is there.
fn read_header(
    file: &dyn crate::disk::DiskFile,
    path: &Path,
    salt: u64,
    position: u64,
) -> Result<Option<BatchHeader>, OpenError> {
    if position + BATCH_HEADER_BYTES as u64 > file.len() {
        return Ok(None);
    }
    let mut bytes = [0u8; BATCH_HEADER_BYTES];
    file.read_at(position, &mut bytes).map_err(OpenError::device(path))?;
    Ok(BatchHeader::decode(&bytes, salt).ok())
}

/// Searches behind `from` for valid headers and returns the largest flushed position they
/// testify to.
fn later_evidence(
    file: &dyn crate::disk::DiskFile,
    path: &Path,
    salt: u64,
    from: u64,
) -> Result<u64, OpenError> {
    let mut flushed = 0;
    for_each_block(file, path, from, |position, block| {
        let stride = BATCH_ALIGN_BYTES;
        for at in (0..block.len().saturating_sub(BATCH_HEADER_BYTES - 1)).step_by(stride) {
            let candidate = block[at..].first_chunk::<BATCH_HEADER_BYTES>();
            let Some(bytes) = candidate.filter(|bytes| bytes[..4] == BATCH_MAGIC) else { continue };
            if let Ok(header) = BatchHeader::decode(bytes, salt) {
                flushed = flushed.max(header.durable_pos.min(position + at as u64));
            }
        }
    })?;
    Ok(flushed)
}

/// How many bytes behind `from` a torn write left; zeros are a clean end.
fn torn_bytes(file: &dyn crate::disk::DiskFile, path: &Path, from: u64) -> Result<u64, OpenError> {
    let mut torn = 0;
    for_each_block(file, path, from, |position, block| {
        // Nearly always all zeros: compared by pages, which is as quick as memory.
        let pages = block.chunks(ZEROS.len()).enumerate();
        let is_dirty = |(_, page): &(usize, &[u8])| **page != ZEROS[..page.len()];
        let Some((number, page)) = pages.rev().find(is_dirty) else { return };
        let last = page.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        torn = position + (number * ZEROS.len() + last) as u64 - from;
    })?;
    Ok(torn)
}

const ZEROS: [u8; 4096] = [0; 4096];

/// Calls `look` with overlapping blocks of the window in which unflushed bytes may lie.
fn for_each_block(
    file: &dyn crate::disk::DiskFile,
    path: &Path,
    from: u64,
    mut look: impl FnMut(u64, &[u8]),
) -> Result<(), OpenError> {
    const BLOCK_BYTES: u64 = 1 << 20;
    let end = file.len().min(from + 2 * UNFLUSHED_BYTES_MAX);
    let mut position = from;
    while position < end {
        // A header that begins in this block is seen whole.
        let len = (end - position).min(BLOCK_BYTES + BATCH_HEADER_BYTES as u64);
        let mut block = vec![0; len as usize];
        file.read_at(position, &mut block).map_err(OpenError::device(path))?;
        look(position, &block);
        position += BLOCK_BYTES;
    }
    Ok(())
}
