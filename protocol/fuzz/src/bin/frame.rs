//! A stream of frames.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weir_protocol_fuzz::frame(input));
