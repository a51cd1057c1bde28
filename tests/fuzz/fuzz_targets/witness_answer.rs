#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hallmark_fuzz::log::witness_answer(data);
});
