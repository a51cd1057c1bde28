use super::*;

const LATER: Duration = Duration::from_secs(2);

fn limits() -> Limits {
    Limits {
        max_connections: 8,
        max_strangers: 6,
        connections_per_address: 3,
        connections_per_host: 2,
        max_attestations: 6,
        reserved_attestations: 2,
        attestations_per_address: 2,
        attestations_per_minute: 100,
        address_attestations_per_minute: 50,
        max_stranger_bytes: 1000,
        ..Limits::default()
    }
}

fn from(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 4711)
}

fn host(name: &str) -> PeerInfo {
    let id = format!("spiffe://example.org/host/{name}").parse().unwrap();
    PeerInfo { spiffe_id: Some(id), ..PeerInfo::default() }
}

/// A connection whose handshake is over.
fn open(gate: &Arc<Gate>, ip: &str, peer: &PeerInfo, now: Instant) -> Result<Ticket, Full> {
    let mut ticket = gate.arrive(from(ip), now)?;
    ticket.identify(peer)?;
    Ok(ticket)
}

fn stranger(gate: &Arc<Gate>, ip: &str, now: Instant) -> Result<Ticket, Full> {
    open(gate, ip, &PeerInfo::default(), now)
}

fn is_over(ticket: &Ticket) -> bool {
    ticket.0.end.is_cancelled()
}

/// Nothing is counted any more.
fn empty(gate: &Gate) {
    let state = gate.lock();
    assert!(state.connections.is_empty() && state.parties.is_empty(), "{state:?}");
    let counts = [state.strangers, state.shaking, state.stranger_attestations, state.host_attestations];
    assert_eq!((counts, state.stranger_bytes), ([0; 4], 0));
}

#[test]
fn an_address_is_a_host_of_ipv4_and_a_network_of_ipv6() {
    let net = |ip| Net::of(from(ip));
    assert_ne!(net("192.0.2.1"), net("192.0.2.2"));
    assert_eq!(net("192.0.2.1"), net("::ffff:192.0.2.1"));
    assert_eq!(net("2001:db8:0:1::1"), net("2001:db8:0:1:ffff::2"));
    assert_ne!(net("2001:db8:0:1::1"), net("2001:db8:0:2::1"));
}

#[test]
fn one_address_holds_no_more_than_its_share_and_its_oldest_makes_room() {
    let gate = Gate::new(limits());
    let start = Instant::now();
    let held: Vec<_> = (0..3).map(|_| stranger(&gate, "192.0.2.1", start).unwrap()).collect();
    // All at once, none is ended for another.
    assert_eq!(stranger(&gate, "192.0.2.1", start).unwrap_err(), Full::Address);
    assert_eq!(gate.arrive(from("192.0.2.1"), start).unwrap_err(), Full::Address);
    let other = stranger(&gate, "192.0.2.2", start).unwrap();
    let next = stranger(&gate, "192.0.2.1", start + LATER).unwrap();
    assert_eq!(held.iter().map(is_over).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(held[0].pass().begin_attestation().unwrap_err(), Full::Ended);
    drop((held, other, next));
    empty(&gate);
}

#[test]
fn a_full_house_loses_a_stranger_of_the_address_that_fills_it_and_no_attestation() {
    let gate = Gate::new(limits());
    let start = Instant::now();
    let lone = stranger(&gate, "192.0.2.9", start).unwrap();
    let greedy: Vec<_> = (0..3).map(|_| stranger(&gate, "192.0.2.1", start).unwrap()).collect();
    let attesting = greedy[0].pass().begin_attestation().unwrap();
    let two: Vec<_> = (0..2).map(|_| stranger(&gate, "192.0.2.2", start).unwrap()).collect();
    assert_eq!(stranger(&gate, "192.0.2.3", start).unwrap_err(), Full::Strangers);
    let _more = stranger(&gate, "192.0.2.3", start + LATER).unwrap();
    assert_eq!(greedy.iter().map(is_over).collect::<Vec<_>>(), [false, true, false]);
    assert!(!is_over(&lone) && !two.iter().any(is_over));
    drop((attesting, lone, greedy, two, _more));
    empty(&gate);
}

#[test]
fn hosts_are_never_ended_for_strangers_and_strangers_are_for_hosts() {
    let gate = Gate::new(Limits { max_connections: 4, max_strangers: 3, ..limits() });
    let start = Instant::now();
    let hosts: Vec<_> =
        (0..3).map(|n| open(&gate, "192.0.2.1", &host(&format!("h{n}")), start).unwrap()).collect();
    let idle = stranger(&gate, "192.0.2.2", start).unwrap();
    let fourth = open(&gate, "192.0.2.1", &host("h3"), start + LATER).unwrap();
    assert!(is_over(&idle) && !hosts.iter().any(is_over));
    // Nobody is left to make room.
    assert_eq!(stranger(&gate, "192.0.2.2", start + 2 * LATER).unwrap_err(), Full::Connections);
    drop((hosts, idle, fourth));
    empty(&gate);
}

#[test]
fn a_host_that_has_too_many_loses_its_oldest() {
    let gate = Gate::new(limits());
    let start = Instant::now();
    let other = open(&gate, "192.0.2.1", &host("b"), start).unwrap();
    let held: Vec<_> = (0..3).map(|_| open(&gate, "192.0.2.1", &host("a"), start).unwrap()).collect();
    assert_eq!(held.iter().map(is_over).collect::<Vec<_>>(), [true, false, false]);
    assert!(!is_over(&other));
}

#[test]
fn strangers_leave_the_reserved_attestations_to_hosts() {
    let gate = Gate::new(limits());
    let now = Instant::now();
    let ticket = |ip| stranger(&gate, ip, now).unwrap();
    let (one, two, three) = (ticket("192.0.2.1"), ticket("192.0.2.2"), ticket("192.0.2.3"));
    let mut under_way: Vec<_> = (0..2).map(|_| one.pass().begin_attestation().unwrap()).collect();
    assert_eq!(one.pass().begin_attestation().unwrap_err(), Full::AttestationsOfOne);
    // Another connection of the same address changes nothing.
    assert_eq!(ticket("192.0.2.1").pass().begin_attestation().unwrap_err(), Full::AttestationsOfOne);
    under_way.extend((0..2).map(|_| two.pass().begin_attestation().unwrap()));
    assert_eq!(three.pass().begin_attestation().unwrap_err(), Full::Attestations);

    let known = open(&gate, "192.0.2.1", &host("a"), now).unwrap();
    let again: Vec<_> = (0..2).map(|_| known.pass().begin_attestation().unwrap()).collect();
    assert_eq!(known.pass().begin_attestation().unwrap_err(), Full::Attestations);
    under_way.pop();
    let other = open(&gate, "192.0.2.4", &host("b"), now).unwrap();
    assert_eq!(known.pass().begin_attestation().unwrap_err(), Full::AttestationsOfOne);
    let third = other.pass().begin_attestation().unwrap();
    // The place that came back went to a host; the next goes to a stranger again.
    assert_eq!(three.pass().begin_attestation().unwrap_err(), Full::Attestations);
    drop(again);
    three.pass().begin_attestation().unwrap();
    drop((under_way, third, known, other, one, two, three));
    empty(&gate);
}

#[test]
fn attestations_that_strangers_begin_are_counted_by_the_minute() {
    let few = Limits { attestations_per_minute: 5, address_attestations_per_minute: 3, ..limits() };
    let gate = Gate::new(few);
    let start = Instant::now();
    let begin = |ticket: &Ticket, now| ticket.pass().begin_attestation_at(now).map(drop);
    let (one, two) =
        (stranger(&gate, "192.0.2.1", start).unwrap(), stranger(&gate, "192.0.2.2", start).unwrap());
    for _ in 0..3 {
        begin(&one, start).unwrap();
    }
    assert_eq!(begin(&one, start).unwrap_err(), Full::Rate);
    for _ in 0..2 {
        begin(&two, start).unwrap();
    }
    assert_eq!(begin(&two, start).unwrap_err(), Full::Rate);
    let known = open(&gate, "192.0.2.1", &host("a"), start).unwrap();
    for _ in 0..10 {
        begin(&known, start).unwrap();
    }
    begin(&one, start + WINDOW + LATER).unwrap();
}

#[test]
fn bytes_have_a_share_by_address_and_a_sum() {
    let gate = Gate::new(limits());
    let now = Instant::now();
    let tickets: Vec<_> = (1..=5).map(|n| stranger(&gate, &format!("192.0.2.{n}"), now).unwrap()).collect();
    assert_eq!(tickets[0].pass().charge(251).unwrap_err(), Full::Bytes);
    for ticket in &tickets[..4] {
        ticket.pass().charge(250).unwrap();
        assert_eq!(ticket.pass().charge(1).unwrap_err(), Full::Bytes);
    }
    assert_eq!(tickets[4].pass().charge(1).unwrap_err(), Full::Bytes);
    let known = open(&gate, "192.0.2.1", &host("a"), now).unwrap();
    known.pass().charge(BYTES_PER_HOST).unwrap();
    assert_eq!(known.pass().charge(1).unwrap_err(), Full::Bytes);
    tickets[0].pass().give_back(250);
    tickets[4].pass().charge(250).unwrap();
    for ticket in &tickets[1..] {
        ticket.pass().give_back(250);
    }
    known.pass().give_back(BYTES_PER_HOST);
    drop((tickets, known));
    empty(&gate);
}

#[test]
fn other_limits_are_in_force_at_once() {
    let gate = Gate::new(limits());
    let now = Instant::now();
    let _one = stranger(&gate, "192.0.2.1", now).unwrap();
    gate.set_limits(Limits { connections_per_address: 1, ..limits() });
    assert_eq!(stranger(&gate, "192.0.2.1", now).unwrap_err(), Full::Address);
}

#[tokio::test(start_paused = true)]
async fn the_next_handshake_waits_for_one_to_end() {
    let many =
        Limits { max_connections: 4096, max_strangers: 1024, connections_per_address: 1024, ..limits() };
    let gate = Gate::new(many);
    let now = Instant::now();
    let mut held: Vec<_> = (0..HANDSHAKES).map(|_| gate.arrive(from("192.0.2.1"), now).unwrap()).collect();
    let room = begun(gate.handshake_room()).await;
    held.pop();
    room.await;
    // Those that are over do not count.
    for ticket in &mut held {
        ticket.identify(&PeerInfo::default()).unwrap();
    }
    gate.handshake_room().await;
}

/// Polls once, which must not be enough.
async fn begun<'a>(
    future: impl Future<Output = ()> + 'a,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>> {
    let mut future = Box::pin(future);
    tokio::select! {
        biased;
        () = &mut future => panic!("it did not wait"),
        () = std::future::ready(()) => {}
    }
    future
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_does_nothing_overstays_and_one_that_attests_does_not() {
    let gate = Gate::new(limits());
    let ticket = stranger(&gate, "192.0.2.1", Instant::now()).unwrap();
    let start = tokio::time::Instant::now();
    ticket.pass().overstayed().await;
    assert_eq!(start.elapsed().as_secs(), limits().stranger_idle.as_secs());

    // Past its age it goes as soon as its attestation is over, and not before.
    let permit = ticket.pass().begin_attestation().unwrap();
    let over = ticket.pass();
    let waiting = tokio::spawn(async move { over.overstayed().await });
    tokio::time::sleep(3 * limits().attestation_timeout).await;
    assert!(!waiting.is_finished());
    drop(permit);
    waiting.await.unwrap();
}
