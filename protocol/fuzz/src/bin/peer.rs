//! A stream of frames between brokers.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weir_protocol_fuzz::peer(input));
