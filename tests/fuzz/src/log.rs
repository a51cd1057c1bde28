//! The log: what auditors read from whoever serves it.

use hallmark_core::log::siem::{Event, Form, Origin};
use hallmark_core::log::{
    Accepts, Cosigned, Facts, LogKey, LogName, LogVerifier, Quorum, Record, ServedPath, SoftwareLogKey,
    Trust, WitnessVerifier, bundle, check_proof, open_checkpoint, read_bundle, read_size,
};

/// The entry that the proofs among the seeds are of, and the log's size and its index there.
const ENTRY: &[u8] = b"entry 77";
const SIZE: u64 = 300;

/// The key that signed the seeds.
pub fn key() -> (SoftwareLogKey, LogVerifier) {
    let key = SoftwareLogKey::from_seed(&[7; 32]).expect("32 bytes");
    let verifier = LogVerifier::new("log.example.org/issuer-1".parse().expect("a name"), key.public());
    (key, verifier)
}

/// A checkpoint is accepted only with the text that the log's key signed.
pub fn log_checkpoint(data: &[u8]) -> bool {
    let Ok(checkpoint) = open_checkpoint(data, &key().1) else { return false };
    assert_eq!(checkpoint.size, SIZE);
    assert!(data.starts_with(b"log.example.org/issuer-1\n300\n"));
    true
}

/// The witnesses of the seeds, of which both have cosigned, and when.
fn witnesses() -> Vec<WitnessVerifier> {
    let witness = |n: u8| {
        let key = SoftwareLogKey::from_seed(&[n; 32]).expect("32 bytes");
        WitnessVerifier::new(format!("witness.example/w{n}").parse().expect("a name"), key.public())
    };
    vec![witness(21), witness(22)]
}
const COSIGNED_AT: u64 = 1_679_315_147;

/// A checkpoint has its quorum only with the text that log and witnesses signed, and is written as it is read.
pub fn log_cosigned(data: &[u8]) -> bool {
    let log = key().1;
    let quorum = Quorum::new(witnesses(), 2).expect("two of two");
    let Ok(checkpoint) = (Trust { log: log.clone(), quorum }).open(data) else { return false };
    assert_eq!(checkpoint.size, SIZE);
    assert!(data.starts_with(b"log.example.org/issuer-1\n300\n"));
    let cosigned = Cosigned::open(data, &log, &witnesses()).expect("opened before");
    assert!(cosigned.cosignatures().iter().all(|cosignature| cosignature.at() == COSIGNED_AT));
    let again = Cosigned::open(&cosigned.note(), &log, &witnesses()).expect("its own note");
    assert_eq!((again.cosignatures(), again.note()), (cosigned.cosignatures(), cosigned.note()));
    true
}

/// A witness's answer is its cosignature of this checkpoint, or a size as it is written.
pub fn witness_answer(data: &[u8]) -> bool {
    const NOTE: &[u8] = include_bytes!("../seeds/log_checkpoint/signed");
    if let Some(size) = read_size(data) {
        assert_eq!(format!("{size}\n").as_bytes(), data);
        return true;
    }
    let mut cosigned = Cosigned::open(NOTE, &key().1, &[]).expect("a checkpoint");
    let taken = cosigned.take(&witnesses()[0], data).map(|cosignature| cosignature.at());
    assert_eq!(cosigned.cosignatures().len(), usize::from(taken.is_ok()));
    assert!(taken.is_err() || taken == Ok(COSIGNED_AT));
    taken.is_ok()
}

/// A proof is accepted only for the entry and the place that the log has.
pub fn log_proof(data: &[u8]) -> bool {
    let verifier = key().1;
    assert!(check_proof(data, b"entry 78", &verifier).is_err());
    let Ok((index, checkpoint)) = check_proof(data, ENTRY, &verifier) else { return false };
    assert_eq!((index, checkpoint.size), (77, SIZE));
    true
}

/// A bundle, after one byte with its number of entries, is written back as it was read.
pub fn log_bundle(data: &[u8]) -> bool {
    let Some((count, data)) = data.split_first() else { return false };
    let Ok(entries) = read_bundle(data, usize::from(*count)) else { return false };
    assert_eq!(entries.len(), usize::from(*count));
    assert_eq!(bundle(entries).expect("as long as before"), data);
    true
}

/// A verifier key is written back as it was read.
pub fn log_verifier(data: &[u8]) -> bool {
    let Some(verifier) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<LogVerifier>().ok())
    else {
        return false;
    };
    assert_eq!(verifier.to_string().as_bytes(), data);
    true
}

/// A record that was taken twice contradicts itself if it names a serial.
pub fn log_record(data: &[u8]) -> bool {
    let mut facts = Facts::default();
    let taken = facts.take(data).is_ok();
    let again = facts.take(data);
    assert!(taken || again.is_err());
    taken
}

/// A path that a log serves is written back as it was read.
pub fn log_path(data: &[u8]) -> bool {
    let Some(path) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<ServedPath>().ok()) else {
        return false;
    };
    assert_eq!(path.to_string().as_bytes(), data);
    assert!(!path.to_string().contains(".."));
    true
}

/// An entry becomes one line of each form, whatever is in it, and one syslog message.
pub fn log_event(data: &[u8]) -> bool {
    let log: LogName = "log.example.org/log/issuer-1".parse().expect("a name");
    let event = Event::new(&log, 77, data);
    let origin = Origin { host: "host".to_owned(), process: 1 };
    let ends = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    for form in [Form::Ocsf, Form::Json, Form::Cef] {
        let line = event.line(form);
        assert!(!line.contains(ends), "{line:?}");
        assert!(origin.message(&event, &line).ends_with(&line));
        match form {
            Form::Cef => assert!(line.contains(" externalId=log.example.org/log/issuer-1/77")),
            _ => drop(serde_json::from_str::<serde_json::Value>(&line).expect("JSON")),
        }
    }
    Record::parse(data).is_ok()
}
