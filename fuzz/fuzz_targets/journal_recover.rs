#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oncekey_fuzz::journal_recover(data));
