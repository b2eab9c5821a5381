//! The index of a sealed segment.

#![no_main]

use weir_storage_fuzz::{Part, part};

libfuzzer_sys::fuzz_target!(|input: &[u8]| part(Part::Index, input));
