use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn log() -> LogName {
    "example.org/log/issuer-1".parse().unwrap()
}

const SVID: &str = r#"{"v":1,"at":1800000000,"kind":"svid","outcome":"issued","host":"web-01","agent":"mailer","instance":"0192","owner":"mail-team@example.org","tier":"advanced","custody":"tpm-certified","serial":"4f2a","certificate_sha256":"ab","not_after":1800000600,"selectors":["unix:uid:1001"]}"#;

/// Reads CEF as its specification says, knowing nothing of how it is written here: seven header fields up to an
/// unescaped pipe each, then keys up to an unescaped equals sign.
fn read_cef(line: &str) -> Option<(Vec<String>, BTreeMap<String, String>)> {
    let mut rest = line.strip_prefix("CEF:0|")?.chars();
    let mut header = Vec::new();
    while header.len() < 6 {
        let mut field = String::new();
        loop {
            match rest.next()? {
                '\\' => field.push(rest.next().filter(|c| ['|', '\\'].contains(c))?),
                '|' => break,
                c => field.push(c),
            }
        }
        header.push(field);
    }
    let (mut extension, mut tokens) = (BTreeMap::new(), Vec::new());
    // An unescaped equals sign ends a key; the key begins after the last space before it.
    let mut text = String::new();
    while let Some(c) = rest.next() {
        match c {
            '\\' => text.push(match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                c @ ('\\' | '=') => c,
                _ => return None,
            }),
            '=' => tokens.push(std::mem::take(&mut text)),
            c => text.push(c),
        }
    }
    tokens.push(text);
    let mut key = tokens.first()?.clone();
    for (n, token) in tokens.iter().enumerate().skip(1) {
        let (value, next) =
            if n + 1 == tokens.len() { (token.as_str(), "") } else { token.rsplit_once(' ')? };
        if extension.insert(std::mem::replace(&mut key, next.to_owned()), value.to_owned()).is_some() {
            return None;
        }
    }
    Some((header, extension))
}

/// Reads a syslog message up to its text.
fn read_syslog(message: &str) -> Option<(u8, Vec<&str>, &str)> {
    let (priority, rest) = message.strip_prefix('<')?.split_once('>')?;
    let mut parts = rest.splitn(8, ' ');
    let header: Vec<&str> = parts.by_ref().take(7).collect();
    Some((priority.parse().ok()?, header, parts.next()?))
}

#[test]
fn cef_of_an_issued_certificate() {
    let log = log();
    let line = Event::new(&log, 7, SVID.as_bytes()).line(Form::Cef);
    let (header, extension) = read_cef(&line).unwrap();
    assert_eq!(header[..2], ["Hallmark", "Hallmark"]);
    assert_eq!(
        header[3..],
        ["svid:issued", "svid issued: agent mailer on host web-01 for owner mail-team@example.org", "3"]
    );
    for (key, value) in [
        ("rt", "1800000000000"),
        ("externalId", "example.org/log/issuer-1/7"),
        ("duser", "mailer"),
        ("duid", "spiffe://example.org/agent/mailer"),
        ("dhost", "web-01"),
        ("cs1Label", "owner"),
        ("cs1", "mail-team@example.org"),
        ("cs3", "4f2a"),
        ("flexString2", "unix:uid:1001"),
        ("cn1", "7"),
    ] {
        assert_eq!(extension.get(key).map(String::as_str), Some(value), "{key}: {line}");
    }
}

#[test]
fn ocsf_of_each_kind_has_what_its_class_demands() {
    let log = log();
    for (kind, outcome, class, activity) in [
        ("svid", "issued", 3002, 3),
        ("svid", "refused", 3002, 3),
        ("issuer-svid", "issued", 3002, 3),
        ("host-attestation", "attested", 3002, 1),
        ("host-quote", "accepted", 3002, 99),
        ("instance-end", "ended", 3002, 2),
        ("registration", "created", 3004, 1),
        ("registration", "changed", 3004, 3),
        ("registration", "removed", 3004, 4),
        ("enrolment", "allowed", 3004, 6),
        ("enrolment", "removed", 3004, 7),
        ("enrolment", "enabled", 3004, 8),
        ("enrolment", "disabled", 3004, 9),
        ("trust-domain", "made", 3004, 1),
        ("something", "new", 3004, 99),
    ] {
        let entry = format!(
            r#"{{"v":1,"at":9,"kind":"{kind}","outcome":"{outcome}","unmet":[{{"code":"c","detail":"d"}}]}}"#
        );
        let line = Event::new(&log, 3, entry.as_bytes()).line(Form::Ocsf);
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&event["class_uid"], &event["activity_id"]), (&class.into(), &activity.into()), "{line}");
        assert_eq!(event["type_uid"], class * 100 + activity);
        assert_eq!((&event["time"], &event["status_detail"]), (&9000.into(), &"c: d".into()));
        assert_eq!(event["status"], if outcome == "refused" { "Failure" } else { "Success" });
        assert_eq!(event["metadata"]["uid"], "example.org/log/issuer-1/3");
        assert_eq!(event["unmapped"]["record"]["kind"], kind);
        let subject = if class == 3002 { &event["user"] } else { &event["entity"] };
        assert!(subject["name"].is_string(), "{line}");
    }
}

#[test]
fn a_record_stands_in_its_line_to_the_byte() {
    let log = log();
    let spaced = SVID.replace("\"at\":", "\"at\": ");
    let line = Event::new(&log, 7, spaced.as_bytes()).line(Form::Json);
    assert_eq!(line, format!(r#"{{"log":"example.org/log/issuer-1","index":7,"record":{spaced}}}"#));
    // A line break between fields is still JSON, but no line.
    for entry in [SVID.replace(",\"at\"", ",\n\"at\""), "\u{1b}[31m".to_owned(), "{}".to_owned()] {
        let line = Event::new(&log, 7, entry.as_bytes()).line(Form::Json);
        assert!(line.contains("entry_base64") && !line.contains('\n'), "{line}");
    }
}

#[test]
fn what_a_datagram_cannot_carry_is_left_out_and_said() {
    let log = log();
    let long = SVID.replace("unix:uid:1001", &"x".repeat(60_000));
    for form in [Form::Ocsf, Form::Json] {
        let event = Event::new(&log, 7, long.as_bytes());
        let line = event.short_line(form, 8_192);
        assert!(line.len() <= 8_192 && line.contains("left_out_bytes") && line.contains("mailer"), "{line}");
        assert_eq!(event.short_line(form, 1 << 20), event.line(form));
    }
    assert!(Event::new(&log, 7, long.as_bytes()).line(Form::Cef).len() < 8_192);
}

#[test]
fn an_entry_that_is_no_record_is_told_of() {
    let log = log();
    for form in [Form::Ocsf, Form::Cef, Form::Json] {
        let line = Event::new(&log, 7, b"\xff\x00|=\n").line(form);
        assert!(!line.contains(is_break), "{line}");
        assert!(form == Form::Json || line.contains("unreadable"), "{line}");
    }
}

/// What attackers write where a name or a reason is expected.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("|".to_owned()),
        Just("\\".to_owned()),
        Just("=".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just(" cs1=forged".to_owned()),
        Just("\\|10|".to_owned()),
        Just("\nCEF:0|Hallmark|Hallmark|1|svid:issued|x|0|".to_owned()),
        Just("<14>1 - - - - - - ".to_owned()),
        Just("\u{1b}[2J".to_owned()),
        Just("\u{85}\u{2028}\u{2029}\u{feff}".to_owned()),
        Just("\",\"outcome\":\"issued\"".to_owned()),
        Just("12 <14>1".to_owned()),
        any::<String>(),
    ];
    prop::collection::vec(piece, 1..6).prop_map(|pieces| pieces.concat())
}

/// What is left of a value in CEF: bounded, trimmed, other control characters blank.
fn as_cef(value: &str, most: usize) -> String {
    let kept = short(value.trim(), most).into_owned();
    kept.chars().map(|c| if is_break(c) && c != '\n' && c != '\r' { ' ' } else { c }).collect()
}

proptest! {
    #[test]
    fn no_value_breaks_out_of_its_field(
        agent in hostile(), owner in hostile(), reason in hostile(), operator in hostile(), selector in hostile(),
        kind in hostile(), outcome in hostile(),
    ) {
        let entry = serde_json::json!({
            "v": 1, "at": 1_800_000_000, "kind": kind, "outcome": outcome, "agent": agent, "owner": owner,
            "reason": reason, "operator": operator, "selectors": [selector],
        }).to_string();
        let log = log();
        let event = Event::new(&log, 5, entry.as_bytes());
        let origin = Origin { host: reason.clone(), process: 1 };
        let cef = event.line(Form::Cef);
        prop_assert!(!cef.contains(is_break));
        let (header, extension) = read_cef(&cef).expect("it reads as CEF");
        prop_assert_eq!(header[5].as_str(), if outcome == "refused" { "6" } else { "3" });
        prop_assert_eq!(extension.get("externalId").map(String::as_str), Some("example.org/log/issuer-1/5"));
        prop_assert_eq!(extension.get("cn1").map(String::as_str), Some("5"));
        for (key, value, most) in [
            ("duser", &agent, 1023), ("cs1", &owner, 4000), ("reason", &reason, 1023), ("suser", &operator, 1023),
            ("flexString2", &selector, 1023), ("cat", &kind, 1023), ("outcome", &outcome, 63),
        ] {
            let expected = as_cef(value, most);
            prop_assert_eq!(extension.get(key).cloned().unwrap_or_default(), expected, "{}: {}", key, cef);
        }
        let known = [
            "rt", "externalId", "cat", "outcome", "duser", "duid", "suser", "reason", "cs1Label", "cs1",
            "flexString2Label", "flexString2", "cn1Label", "cn1",
        ];
        prop_assert!(extension.keys().all(|key| known.contains(&key.as_str())), "{:?}", extension.keys());

        for form in [Form::Ocsf, Form::Json] {
            let line = event.line(form);
            prop_assert!(!line.contains(is_break));
            let json: serde_json::Value = serde_json::from_str(&line).unwrap();
            let record = if form == Form::Ocsf { &json["unmapped"]["record"] } else { &json["record"] };
            prop_assert_eq!(&record["agent"], agent.as_str());
            prop_assert_eq!(&record["outcome"], outcome.as_str());
        }

        for form in [Form::Ocsf, Form::Cef, Form::Json] {
            let message = origin.message(&event, &event.line(form));
            prop_assert!(!message.contains(is_break));
            let (priority, header, text) = read_syslog(&message).expect("it reads as syslog");
            prop_assert_eq!(priority, if outcome == "refused" { 108 } else { 110 });
            prop_assert_eq!(header[0], "1");
            prop_assert_eq!(header[1], "2027-01-15T08:00:00Z");
            prop_assert_eq!(header[3], "hallmark");
            prop_assert_eq!(header[6], "-");
            prop_assert!(header.iter().all(|name| name.bytes().all(|b| b.is_ascii_graphic())));
            prop_assert!(header[2].len() <= 255 && header[5].len() <= 32);
            prop_assert_eq!(text, event.line(form));
            let framed = octet_counted(&message);
            let (length, rest) = framed.split_once(' ').unwrap();
            prop_assert_eq!(length.parse::<usize>().unwrap(), rest.len());
        }
    }
}
