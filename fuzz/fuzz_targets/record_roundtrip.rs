#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oncekey_fuzz::record_roundtrip(data));
