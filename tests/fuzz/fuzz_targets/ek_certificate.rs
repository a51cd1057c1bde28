#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hallmark_fuzz::evidence::ek_certificate(data);
});
