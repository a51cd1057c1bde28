use super::*;

/// A witness's key, and what its cosignatures are verified with.
fn witness(n: u8) -> (SoftwareLogKey, WitnessVerifier) {
    let key = SoftwareLogKey::from_seed(&[n; 32]).unwrap();
    let verifier = WitnessVerifier::new(format!("witness.example/w{n}").parse().unwrap(), key.public());
    (key, verifier)
}

fn three() -> Vec<WitnessVerifier> {
    [21, 22, 23].map(|n| witness(n).1).to_vec()
}

fn trust(needed: usize) -> Trust {
    Trust { log: signer().1, quorum: Quorum::new(three(), needed).unwrap() }
}

fn note(size: u64) -> Vec<u8> {
    let (key, verifier) = signer();
    sign_checkpoint(&verifier, &key, &Log::of(size).checkpoint()).unwrap()
}

fn text(note: &[u8]) -> &[u8] {
    let end = note.windows(2).rposition(|two| two == b"\n\n").unwrap();
    &note[..=end]
}

/// tlog-cosignature, "Format" and "Ed25519 signed message", to the letter.
fn line_by(n: u8, id: u32, text: &[u8], at: u64) -> Vec<u8> {
    let (key, verifier) = witness(n);
    let message = [format!("cosignature/v1\ntime {at}\n").as_bytes(), text].concat();
    let signature = [at.to_be_bytes().as_slice(), &key.sign(&message).unwrap()].concat();
    signed_note::Signature::new(verifier.name().to_string(), id, signature).unwrap().to_bytes()
}

fn line(n: u8, text: &[u8], at: u64) -> Vec<u8> {
    line_by(n, signed_note::Verifier::key_id(&witness(n).1), text, at)
}

const AT: u64 = 1_679_315_147;

#[test]
fn a_witness_key_is_a_verifier_key_of_its_own_type() {
    let (key, verifier) = witness(21);
    let text = verifier.to_string();
    assert_eq!(text.parse(), Ok(verifier.clone()));
    // The type is within the id and within the key: 0x04 is "B" in base64's first character.
    let parts: Vec<&str> = text.split('+').collect();
    assert!(parts[2].starts_with('B'), "{text}");
    let id = signed_note::key_id("witness.example/w21", &[&[4], key.public().as_slice()].concat());
    assert_eq!(parts[1], format!("{id:08x}"));
    // A log's key is no witness's, and the other way round.
    let log = signer().1.to_string();
    let wrong = VerifierError::Algorithm { expected: 4, found: 1 };
    assert_eq!(log.parse::<WitnessVerifier>(), Err(wrong));
    assert_eq!(text.parse::<LogVerifier>(), Err(VerifierError::Algorithm { expected: 1, found: 4 }));
    // The id that the same key has as a log's.
    let as_log = LogVerifier::new("witness.example/w21".parse().unwrap(), key.public());
    let mixed = text.replace(parts[1], &format!("{:08x}", as_log.id()));
    assert!(matches!(mixed.parse::<WitnessVerifier>(), Err(VerifierError::Id { .. })));
    assert!(text.to_uppercase().parse::<WitnessVerifier>().is_err());
}

#[test]
fn a_checkpoint_counts_with_its_quorum_and_not_one_short_of_it() {
    let signed = note(300);
    let one = [signed.clone(), line(21, text(&signed), AT)].concat();
    let two = [one.clone(), line(23, text(&signed), AT + 1)].concat();
    assert_eq!(trust(2).open(&two), Ok(Log::of(300).checkpoint()));
    assert_eq!(trust(1).open(&one), Ok(Log::of(300).checkpoint()));
    let short = CheckpointError::Quorum {
        size: 300,
        needed: 2,
        found: 1,
        missing: vec!["witness.example/w22".to_owned(), "witness.example/w23".to_owned()],
    };
    assert_eq!(trust(2).open(&one), Err(short));
    assert!(matches!(trust(3).open(&two), Err(CheckpointError::Quorum { found: 2, needed: 3, .. })));
    assert!(matches!(trust(1).open(&signed), Err(CheckpointError::Quorum { found: 0, .. })));
    // Without witnesses, cosignatures are not looked at.
    assert_eq!(signer().1.open(&two), Ok(Log::of(300).checkpoint()));
    assert_eq!((Trust { quorum: Quorum::none(), ..trust(1) }).open(&signed), Ok(Log::of(300).checkpoint()));
    // The log's own signature is not made up for by witnesses.
    let cosigned = Cosigned::open(&two, &signer().1, &three()).unwrap();
    let own = two.windows(3).filter(|three| *three == "\u{2014}".as_bytes()).count();
    assert_eq!((own, cosigned.note()), (3, two.clone()));
    let alone = [text(&signed), b"\n", &line(21, text(&signed), AT)].concat();
    assert!(matches!(trust(1).open(&alone), Err(CheckpointError::Unsigned { .. })));
}

#[test]
fn one_witness_counts_once() {
    let signed = note(300);
    let body = text(&signed).to_vec();
    // Twice the same, and twice at different times.
    let twice = [signed.clone(), line(21, &body, AT), line(21, &body, AT)].concat();
    assert!(matches!(trust(2).open(&twice), Err(CheckpointError::Quorum { found: 1, .. })));
    let later =
        [signed.clone(), line(21, &body, AT), line(21, &body, AT + 9), line(21, &body, AT + 5)].concat();
    assert!(matches!(trust(2).open(&later), Err(CheckpointError::Quorum { found: 1, .. })));
    let cosigned = Cosigned::open(&later, &signer().1, &three()).unwrap();
    assert_eq!(cosigned.cosignatures().iter().map(Cosignature::at).collect::<Vec<_>>(), [AT + 9]);
    // The same key under another name.
    let again = WitnessVerifier::new("other.example/w".parse().unwrap(), witness(21).0.public());
    assert!(matches!(Quorum::new(vec![witness(21).1, again], 1), Err(QuorumError::Duplicate { .. })));
}

#[test]
fn a_quorum_can_be_reached_and_demands_something() {
    assert_eq!(Quorum::new(three(), 0), Err(QuorumError::Size { needed: 0, listed: 3 }));
    assert_eq!(Quorum::new(three(), 4), Err(QuorumError::Size { needed: 4, listed: 3 }));
    assert_eq!(Quorum::new(Vec::new(), 1), Err(QuorumError::Size { needed: 1, listed: 0 }));
    let many = (0..33).map(|n| witness(n).1).collect();
    assert_eq!(Quorum::new(many, 1), Err(QuorumError::TooMany { listed: 33 }));
}

#[test]
fn cosignatures_of_anything_else_do_not_count() {
    let signed = note(300);
    let body = text(&signed).to_vec();
    let open = |line: Vec<u8>| trust(1).open(&[signed.clone(), line].concat());
    assert!(open(line(21, &body, AT)).is_ok());
    let falsely = |result| matches!(result, Err(CheckpointError::FalseCosignature { .. }));
    // An old one, for a smaller size.
    assert!(falsely(open(line(21, text(&note(299)), AT))));
    // With another's key.
    let id = signed_note::Verifier::key_id(&witness(22).1);
    let forged = String::from_utf8(line_by(21, id, &body, AT)).unwrap().replace("w21", "w22");
    assert!(falsely(open(forged.into_bytes())));
    // A time that is not the signed one, or beyond 2^63 - 1.
    let signature = |at: u64, tail: &[u8]| {
        let bytes = [at.to_be_bytes().as_slice(), tail].concat();
        let id = signed_note::Verifier::key_id(&witness(21).1);
        signed_note::Signature::new("witness.example/w21".to_owned(), id, bytes).unwrap().to_bytes()
    };
    let signs = |at: u64| {
        witness(21).0.sign(&[format!("cosignature/v1\ntime {at}\n").as_bytes(), &body].concat()).unwrap()
    };
    assert!(open(signature(AT, &signs(AT))).is_ok());
    assert!(falsely(open(signature(AT + 1, &signs(AT)))));
    assert!(falsely(open(signature(1 << 63, &signs(1 << 63)))));
    assert!(falsely(open(signature(AT, &signs(AT)[1..]))));
    // The bare text, as a log signs it: no cosignature/v1, no time.
    assert!(falsely(open(signature(AT, &witness(21).0.sign(&body).unwrap()))));
    // One who signs everything and is on no list, and a known name with another key's id.
    assert!(matches!(open(line(99, &body, AT)), Err(CheckpointError::Quorum { found: 0, .. })));
    let other_id = line_by(21, 7, &body, AT);
    assert!(matches!(open(other_id), Err(CheckpointError::Quorum { found: 0, .. })));
}

#[test]
fn one_flipped_bit_and_the_quorum_is_gone() {
    let signed = note(300);
    let cosigned = [signed.clone(), line(21, text(&signed), AT), line(22, text(&signed), AT)].concat();
    let trust = trust(2);
    assert!(trust.open(&cosigned).is_ok());
    for place in 0..cosigned.len() {
        let mut forged = cosigned.clone();
        forged[place] ^= 1 << (place % 8);
        assert!(trust.open(&forged).is_err(), "byte {place}");
    }
    for end in 0..cosigned.len() {
        assert!(trust.open(&cosigned[..end]).is_err(), "cut to {end}");
    }
}

#[test]
fn an_answer_is_taken_for_the_checkpoint_it_is_of() {
    let signed = note(300);
    let body = text(&signed).to_vec();
    let w = witness(21).1;
    let take = |answer: &[u8]| {
        let mut cosigned = Cosigned::open(&signed, &signer().1, &[]).unwrap();
        let taken = cosigned.take(&w, answer).map(Cosignature::at);
        assert_eq!(cosigned.of(&w).is_some(), taken.is_ok());
        taken
    };
    assert_eq!(take(&line(21, &body, AT)), Ok(AT));
    // Among others, of other keys.
    assert_eq!(take(&[line(99, &body, AT), line(21, &body, AT + 1)].concat()), Ok(AT + 1));
    assert_eq!(take(&line(22, &body, AT)), Err(AnswerError::Absent));
    assert_eq!(take(&line(21, text(&note(299)), AT)), Err(AnswerError::False));
    for nothing in
        [b"".as_slice(), b"\n", b"300\n", b"<html>", "\u{2014} witness.example/w21 AAAA\n".as_bytes()]
    {
        assert_eq!(take(nothing), Err(AnswerError::Form), "{nothing:?}");
    }
    assert_eq!(take(&vec![b'x'; MAX_ANSWER + 1]), Err(AnswerError::TooLong));
}

#[test]
fn a_request_is_what_the_protocol_says() {
    let request = add_checkpoint(20, &[leaf_hash(b"")], b"NOTE");
    assert_eq!(request, b"old 20\nbjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=\n\nNOTE");
    assert_eq!(add_checkpoint(0, &[], b"NOTE"), b"old 0\n\nNOTE");
    assert_eq!(read_size(b"20\n"), Some(20));
    assert_eq!(read_size(b"0\n"), Some(0));
    for none in
        [b"".as_slice(), b"20", b"020\n", b"+20\n", b"-1\n", b"20\n\n", b" 20\n", b"18446744073709551616\n"]
    {
        assert_eq!(read_size(none), None, "{none:?}");
    }
}

#[test]
fn growth_is_proven_from_a_size_alone() {
    let log = Log::of(700);
    for old in [1, 255, 256, 300, 699] {
        let then = Log::of(old).checkpoint();
        let tiles = log.wanted(&consistency_tiles(700, old).unwrap());
        let proof = prove_growth(&log.checkpoint(), old, &tiles).unwrap();
        assert_eq!(check_consistency(&log.checkpoint(), &then, &proof), Ok(()), "{old}");
    }
    assert_eq!(prove_growth(&log.checkpoint(), 700, &Tiles::new()), Ok(Vec::new()));
    assert!(matches!(prove_growth(&log.checkpoint(), 0, &log.tiles), Err(ProofError::Sizes { .. })));
    assert!(matches!(prove_growth(&log.checkpoint(), 701, &log.tiles), Err(ProofError::Sizes { .. })));
    let mut tampered = log.wanted(&consistency_tiles(700, 300).unwrap());
    tampered.values_mut().for_each(|tile| tile[0] ^= 1);
    assert!(prove_growth(&log.checkpoint(), 300, &tampered).is_err());
}

#[test]
fn a_kept_proof_carries_the_cosignatures() {
    let (files, log) = (Files::of(&entries(300)), Log::of(300));
    let signed = files.0["checkpoint"].clone();
    let cosigned = [signed.clone(), line(21, text(&signed), AT), line(22, text(&signed), AT)].concat();
    let proof = prove_inclusion(&files.checkpoint(), 77, leaf_hash(b"entry 77"), &log.tiles).unwrap();
    let with = write_proof(77, &proof, &cosigned);
    assert_eq!(check_proof(&with, b"entry 77", &trust(2)), Ok((77, files.checkpoint())));
    assert!(matches!(check_proof(&with, b"entry 78", &trust(2)), Err(KeptProofError::Proof(_))));
    let without = write_proof(77, &proof, &signed);
    assert!(matches!(
        check_proof(&without, b"entry 77", &trust(1)),
        Err(KeptProofError::Checkpoint(CheckpointError::Quorum { .. }))
    ));
}
