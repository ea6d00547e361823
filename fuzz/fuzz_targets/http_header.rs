#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oncekey_fuzz::http_header(data));
