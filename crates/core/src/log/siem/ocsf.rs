//! Open Cybersecurity Schema Framework, version 1.5.0 (schema.ocsf.io/1.5.0).
//!
//! Whoever asked for a credential authenticated itself: *Authentication* (3002). What an operator ordered changed
//! something that is managed: *Entity Management* (3004). Each record stands whole in `unmapped.record`, whatever
//! the schema has no place for.

use serde_json::{Map, Value, json};

use super::Event;

/// The version of the schema.
pub const SCHEMA: &str = "1.5.0";

const CATEGORY: u32 = 3;
const AUTHENTICATION: u32 = 3002;
const ENTITY_MANAGEMENT: u32 = 3004;
/// `activity_id`, `type_id` and others: something that the schema does not name.
const OTHER: u32 = 99;

pub(super) fn event(event: &Event<'_>) -> Value {
    let record = event.record();
    let (class, activity) = class(&record.kind, &record.outcome);
    let refused = record.is_refusal();
    let mut fields = json!({
        "category_uid": CATEGORY,
        "category_name": "Identity & Access Management",
        "class_uid": class,
        "activity_id": activity.0,
        "activity_name": activity.1,
        "type_uid": class * 100 + activity.0,
        "time": record.at.saturating_mul(1000),
        "severity_id": if refused { 3 } else { 1 },
        "severity": if refused { "Medium" } else { "Informational" },
        "status_id": if refused { 2 } else { 1 },
        "status": if refused { "Failure" } else { "Success" },
        "message": event.message(),
        "metadata": {
            "version": SCHEMA,
            "product": { "name": "Hallmark", "vendor_name": "Hallmark", "version": env!("CARGO_PKG_VERSION") },
            "uid": event.uid(),
            "log_name": event.log.as_str(),
            "event_code": format!("{}/{}", record.kind, record.outcome),
        },
        "unmapped": { "log": event.log.as_str(), "index": event.index, "record": whole(event) },
    });
    let Value::Object(map) = &mut fields else { return fields };
    if let Some(why) = record.why() {
        map.insert("status_detail".to_owned(), why.into());
    }
    if class == AUTHENTICATION {
        authentication(event, map)
    } else {
        entity_management(event, map)
    }
    fields
}

/// Class, and activity with its name.
fn class(kind: &str, outcome: &str) -> (u32, (u32, String)) {
    let named = |id: u32, name: &str| (id, name.to_owned());
    let managed = |activity| (ENTITY_MANAGEMENT, activity);
    let authentication = |activity| (AUTHENTICATION, activity);
    match (kind, outcome) {
        ("svid" | "issuer-svid", _) => authentication(named(3, "Authentication Ticket")),
        ("host-attestation", _) => authentication(named(1, "Logon")),
        ("instance-end", _) => authentication(named(2, "Logoff")),
        ("host-quote", _) => authentication(named(OTHER, "host-quote")),
        ("registration", "created") | ("trust-domain", "made") => managed(named(1, "Create")),
        ("registration", "changed") => managed(named(3, "Update")),
        ("registration", "removed") => managed(named(4, "Delete")),
        ("enrolment", "allowed") => managed(named(6, "Enroll")),
        ("enrolment", "removed") => managed(named(7, "Unenroll")),
        ("enrolment", "enabled") => managed(named(8, "Enable")),
        ("enrolment", "disabled") => managed(named(9, "Disable")),
        _ => managed((OTHER, format!("{kind} {outcome}"))),
    }
}

fn authentication(event: &Event<'_>, map: &mut Map<String, Value>) {
    let record = event.record();
    map.insert("class_name".to_owned(), "Authentication".into());
    map.insert("user".to_owned(), subject(event));
    map.insert("service".to_owned(), json!({ "name": "hallmark-issuer", "uid": event.log.as_str() }));
    map.insert("is_remote".to_owned(), true.into());
    map.insert("auth_protocol_id".to_owned(), OTHER.into());
    let protocol = if record.kind.starts_with("host-") { "host attestation" } else { "X.509-SVID" };
    map.insert("auth_protocol".to_owned(), protocol.into());
    if let Some(host) = &record.host {
        map.insert("src_endpoint".to_owned(), json!({ "name": host }));
    }
    let mut session = Map::new();
    if let Some(instance) = &record.instance {
        session.insert("uid".to_owned(), instance.as_str().into());
    }
    if let Some(serial) = &record.serial {
        session.insert("credential_uid".to_owned(), serial.as_str().into());
    }
    if let Some(end) = record.not_after {
        session.insert("expiration_time".to_owned(), end.saturating_mul(1000).into());
    }
    if record.kind == "instance-end"
        && let Some(reason) = &record.reason
    {
        session.insert("expiration_reason".to_owned(), reason.as_str().into());
    }
    if !session.is_empty() {
        session.insert("issuer".to_owned(), event.log.as_str().into());
        map.insert("session".to_owned(), session.into());
    }
}

/// Who authenticated itself: an agent, a host or the issuer.
fn subject(event: &Event<'_>) -> Value {
    let record = event.record();
    let issuer = event.log.issuer();
    let (name, what) = match (&record.agent, &record.host, issuer) {
        (Some(agent), ..) => (agent.as_str(), "Agent"),
        (None, Some(host), _) => (host.as_str(), "Host"),
        (None, None, Some((_, issuer))) => (issuer, "Issuer"),
        (None, None, None) => ("unknown", "Unknown"),
    };
    let mut user = json!({ "name": name, "type_id": OTHER, "type": what });
    let Value::Object(map) = &mut user else { return user };
    if let Some(id) = record.spiffe_id(event.log) {
        map.insert("uid".to_owned(), id.into());
    }
    if let Some((trust_domain, _)) = issuer {
        map.insert("domain".to_owned(), trust_domain.into());
    }
    if let Some(owner) = &record.owner {
        map.insert("org".to_owned(), json!({ "name": owner }));
    }
    user
}

fn entity_management(event: &Event<'_>, map: &mut Map<String, Value>) {
    let record = event.record();
    map.insert("class_name".to_owned(), "Entity Management".into());
    let (name, what) = match (&record.agent, &record.host) {
        (Some(agent), _) => (agent.as_str(), "Agent"),
        (None, Some(host)) => (host.as_str(), "Host"),
        (None, None) => (event.log.issuer().map_or(event.log.as_str(), |(domain, _)| domain), "Trust domain"),
    };
    let mut entity = json!({ "name": name, "type_id": OTHER, "type": what });
    if let (Value::Object(entity), Some(id)) = (&mut entity, record.spiffe_id(event.log)) {
        entity.insert("uid".to_owned(), id.into());
    }
    map.insert("entity".to_owned(), entity);
    if let Some(note) = &record.note {
        map.insert("comment".to_owned(), note.as_str().into());
    }
    if let Some(operator) = &record.operator {
        map.insert("actor".to_owned(), json!({ "user": { "name": operator } }));
    }
}

/// The record as JSON; an entry that is none, as its bytes in base64.
fn whole(event: &Event<'_>) -> Value {
    use base64::Engine as _;
    let text = || Value::from(base64::prelude::BASE64_STANDARD.encode(event.entry));
    if event.unreadable.is_some() {
        text()
    } else {
        serde_json::from_slice(event.entry).unwrap_or_else(|_| text())
    }
}
