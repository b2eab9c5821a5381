//! What the bytes of a publish cost: building, encoding, decoding, checking, iterating.
//!
//! `cargo bench -p weir-bench --bench codec`

mod samples;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use samples::{RECORDS, batch_of, publish, publish_frame};
use std::hint::black_box;
use std::io::IoSlice;
use weir_protocol::batch::RecordIter;
use weir_protocol::codec::{Decoder, EncodeBuf, encode_to_vec};
use weir_protocol::limits::FRAME_BYTES_MAX;

fn frames(criterion: &mut Criterion) {
    let frame = publish_frame();
    let bytes = encode_to_vec(&frame);
    let mut group = criterion.benchmark_group("publish of 64 KiB");
    // No throughput: a body is neither copied nor read here.
    group.bench_function("encode", |bencher| {
        let mut buffer = EncodeBuf::new();
        bencher.iter(|| {
            buffer.push(black_box(&frame));
            let mut slices = [IoSlice::new(&[]); 4];
            black_box(buffer.fill_slices(&mut slices));
            buffer.advance(buffer.len());
        });
    });
    group.bench_function("decode", |bencher| {
        let mut decoder = Decoder::new(FRAME_BYTES_MAX);
        let read = || BytesMut::from(&bytes[..]);
        let decode = |mut input: BytesMut| decoder.decode(&mut input).expect("it was just encoded");
        bencher.iter_batched(read, decode, BatchSize::SmallInput);
    });
    group.bench_function("peek", |bencher| {
        let decoder = Decoder::new(FRAME_BYTES_MAX);
        bencher.iter(|| decoder.peek_publish(black_box(&bytes)).expect("it was just encoded"));
    });
    group.finish();
}

fn batches(criterion: &mut Criterion) {
    let publish = publish();
    let (header, body) = (&publish.header, &publish.body[..]);
    let mut group = criterion.benchmark_group("batch of 64 records of 1 KiB");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("build", |bencher| bencher.iter(|| batch_of(black_box(RECORDS))));
    group.bench_function("check_body", |bencher| {
        bencher.iter(|| header.check_body(black_box(body)).expect("it was just built"));
    });
    group.throughput(Throughput::Elements(RECORDS as u64));
    group.bench_function("validate", |bencher| {
        bencher.iter(|| {
            let records = RecordIter::new(header, black_box(body)).expect("it was just built");
            records.validate().expect("it was just built");
        });
    });
    group.bench_function("iterate", |bencher| {
        bencher.iter(|| {
            let records = RecordIter::new(header, black_box(body)).expect("it was just built");
            records.flatten().map(|record| record.message.value.len()).sum::<usize>()
        });
    });
    group.finish();
}

criterion_group!(benches, frames, batches);
criterion_main!(benches);
