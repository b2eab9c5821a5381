//! What an append costs before its flush: the header's stamp and the one copy into the segment,
//! the roll to the next segment included.
//!
//! `cargo bench -p weir-bench --bench append`

mod samples;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use samples::{BATCH_BYTES, BenchLog, scratch};
use std::time::Duration;
use weir_bench::clock;
use weir_storage::limits::{SEGMENT_LADDER_BYTES, UNFLUSHED_BYTES_MAX};

/// Appends between two flushes, which are not measured: half of what may be unflushed.
const ROUND: u64 = UNFLUSHED_BYTES_MAX / 2 / BATCH_BYTES as u64;
/// Appends through the whole ladder of segment sizes, so that only the largest is measured.
const WARM_UP: u64 = 2 * SEGMENT_LADDER_BYTES[4] / BATCH_BYTES as u64;

fn append(criterion: &mut Criterion) {
    let dir = scratch();
    let mut log = BenchLog::open(dir.path());
    for _ in 0..WARM_UP / ROUND {
        (0..ROUND).for_each(|_| log.append());
        log.settle();
    }
    let mut group = criterion.benchmark_group("log");
    // Every measured second is gigabytes that the disk has to take in between.
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    group.sample_size(20);
    group.throughput(Throughput::Bytes(log.header().wire_len() as u64));
    group.bench_function("append a batch of 64 KiB", |bencher| {
        bencher.iter_custom(|count| {
            let (mut left, mut time) = (count, Duration::ZERO);
            while left > 0 {
                let round = left.min(ROUND);
                let started = clock::now();
                (0..round).for_each(|_| log.append());
                time += started.elapsed();
                log.settle();
                left -= round;
            }
            time
        });
    });
    group.finish();
}

criterion_group!(benches, append);
criterion_main!(benches);
