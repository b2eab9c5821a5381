//! A whole log, bent in several ways at once.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weir_storage_fuzz::recovery(input));
