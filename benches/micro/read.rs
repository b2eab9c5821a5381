//! What a read of a warm log costs: finding an offset and slicing batches out of the map.
//!
//! `cargo bench -p weir-bench --bench read`

mod samples;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use samples::{BATCH_BYTES, BenchLog, scratch};
use std::hint::black_box;
use weir_protocol::limits::{BATCH_HEADER_BYTES, DELIVERY_BYTES_TARGET};
use weir_protocol::types::Offset;
use weir_storage::limits::HOT_BYTES;
use weir_storage::{BatchSlice, LogReader, Read};

/// Batches in the log: half of what counts as hot.
const BATCHES: u64 = HOT_BYTES / 2 / BATCH_BYTES as u64;
/// From offset to offset: a prime, so that reads begin everywhere in a batch and in the log.
const STRIDE: u64 = 7_919;

fn read_hot(reader: &LogReader, offset: Offset, bytes_max: usize) -> Vec<BatchSlice> {
    match reader.read_from_offset(offset, bytes_max).expect("the offset is held") {
        Read::Hot(slices) => slices,
        Read::Cold(_) => panic!("offset {offset} is cold in a log of {BATCHES} batches"),
    }
}

fn read(criterion: &mut Criterion) {
    let dir = scratch();
    let mut log = BenchLog::open(dir.path());
    (0..BATCHES).for_each(|_| log.append());
    let (reader, batch_bytes) = (log.reader(), log.header().stored_len());
    let log_end = reader.bounds().log_end;
    assert_eq!(log_end.0, BATCHES * u64::from(log.header().record_count));
    let mut offset = Offset(0);
    let mut next = || {
        offset = Offset((offset.0 + STRIDE) % log_end.0);
        offset
    };
    let mut group = criterion.benchmark_group("read by offset");
    // No throughput: slicing reads headers only.
    for bytes_max in [batch_bytes, DELIVERY_BYTES_TARGET] {
        group.bench_function(BenchmarkId::new("slice", bytes_max), |bencher| {
            bencher.iter(|| read_hot(&reader, black_box(next()), bytes_max));
        });
        group.bench_function(BenchmarkId::new("slice and check bodies", bytes_max), |bencher| {
            bencher.iter(|| {
                for slice in read_hot(&reader, black_box(next()), bytes_max) {
                    let body = &slice.bytes[BATCH_HEADER_BYTES..slice.header.wire_len()];
                    slice.header.check_body(body).expect("nothing is damaged");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, read);
criterion_main!(benches);
