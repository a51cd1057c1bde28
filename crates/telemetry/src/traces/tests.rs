//! Spans in a process of their own: there is one tracer for it. A real collector is in the end-to-end tests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// In one test, since it is about what is before the start and after it.
#[tokio::test(flavor = "multi_thread")]
async fn off_is_nothing_and_on_is_within_its_parent() {
    let parent: TraceParent = PARENT.parse().unwrap();
    let mut off = Span::server("a", Some(&parent));
    assert!(!on() && off.0.is_none() && off.child("b").0.is_none() && off.traceparent().is_none());
    assert_eq!(size_of::<Span>(), size_of::<usize>(), "off is one null pointer");
    off.say("key", &"value");
    off.fail(&"why");

    // Nobody listens there: spans are lost, and nothing waits for them.
    let config = TracesConfig { endpoint: "http://127.0.0.1:9".to_owned(), ca: None, sample: 1.0 };
    let running = start(&config, "test", "t".to_owned(), "1").unwrap();
    assert!(on());
    let server = Span::server("a", Some(&parent));
    let child = server.client("b");
    let (of_server, of_child) = (server.traceparent().unwrap(), child.traceparent().unwrap());
    for span in [&of_server, &of_child] {
        assert_eq!(span.trace_id(), parent.trace_id());
        assert!(span.is_sampled());
    }
    assert_ne!(of_server.parent_id(), parent.parent_id());
    assert_ne!(of_child.parent_id(), of_server.parent_id());

    // What its beginner does not keep is not kept here, and passed on as such.
    let unkept: TraceParent = PARENT.replace("-01", "-00").parse().unwrap();
    let let_go = Span::server("a", Some(&unkept));
    assert!(!let_go.0.as_ref().unwrap().is_recording());
    assert!(!let_go.child("b").traceparent().unwrap().is_sampled());
    assert_eq!(let_go.traceparent().unwrap().trace_id(), unkept.trace_id());

    // A trace of our own has an id of its own.
    let own = Span::of_our_own("renewal", Some(&parent));
    assert_ne!(own.traceparent().unwrap().trace_id(), parent.trace_id());
    drop((own, child, server, let_go));
    running.stop().await;
    assert_eq!(unsent(), 3);
}

#[test]
fn a_share_is_the_same_for_all_who_keep_it() {
    let share = Share(Sampler::TraceIdRatioBased(0.5));
    let decided = |id: [u8; 16], flags| {
        let parent = TraceParent::new(id, [1; 8], flags).unwrap();
        let context = Context::new().with_remote_span_context(remote(&parent));
        let id = TraceId::from_bytes(id);
        share.should_sample(Some(&context), id, "a", &SpanKind::Server, &[], &[]).decision
    };
    let (mut low, mut high) = ([0; 16], [0xff; 16]);
    (low[15], high[15]) = (1, 1);
    assert_eq!(decided(low, 1), SamplingDecision::RecordAndSample);
    // An agent that says "keep it" gets no more than the share.
    assert_eq!(decided(high, 1), SamplingDecision::Drop);
    assert_eq!(decided(low, 0), SamplingDecision::Drop);
}
