//! What counting and tracing cost on the way of one issuance: `cargo run --release -p hallmark-telemetry --example
//! cost`. Prints nanoseconds each.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use hallmark_telemetry::{SECONDS, Span};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

/// How often each is done.
const TIMES: u32 = 5_000_000;

fn main() {
    let issued = Family::<[(&str, &str); 2], Counter>::default();
    let labels = [("tier", "enterprise"), ("custody", "software")];
    each("a counter with two labels", || {
        issued.get_or_create(black_box(&labels)).inc();
    });
    let duration = Histogram::new(SECONDS);
    each("a histogram", || duration.observe(black_box(0.000_25)));
    each("a span and one within it, traces off", || {
        let mut span = Span::server("Issue", None);
        let child = span.child(black_box("decide"));
        drop(child);
        span.say("hallmark.agent", &"a");
    });
}

fn each(what: &str, mut work: impl FnMut()) {
    let begun = Instant::now();
    for _ in 0..TIMES {
        work();
    }
    println!("{what}: {:.1} ns", begun.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES));
}
