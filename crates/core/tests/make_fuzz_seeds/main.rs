//! Writes the seeds and fixtures of `tests/fuzz` anew. They are part of the repository; this is run by hand
//! when a format changes: `cargo test -p hallmark-core --test make_fuzz_seeds -- --ignored`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod evidence;
#[path = "../../../../tests/fuzz/src/log.rs"]
pub mod log;
#[path = "../../../../tests/fuzz/src/parts.rs"]
pub mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hallmark_core::id::{InstanceId, SpiffeId, TrustDomain};
use hallmark_core::registration::parse_files;
use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::{
    AgentInfo, AgentLeaf, CaKey, CaParams, CrlParams, Curve, Delegation, IssuingCa, LeafParams, OidArc,
    Reason, Revoked, Serial, SoftwareCaKey, TaskInfo, issuing, root,
};

/// 2027-01-15T08:00:00Z, as in `tests/fuzz/src/certificates.rs`.
const NOW: i64 = 1_800_000_000;

fn write(path: &str, data: &[u8]) {
    let path = top().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, data).unwrap();
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz")
}

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn certificates() {
    for (name, algorithm) in
        [("p256", &rcgen::PKCS_ECDSA_P256_SHA256), ("p384", &rcgen::PKCS_ECDSA_P384_SHA384)]
    {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = "spiffe://example.org/agent/mailer".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        write(&format!("seeds/csr/{name}"), params.serialize_request(&key).unwrap().der());
    }
    let mut roots = vec![];
    for (n, tier) in (1u8..).zip(Tier::ALL) {
        let (root_der, ca) = hierarchy(n, tier);
        roots.push(root_der);
        let id: SpiffeId = "spiffe://example.org/agent/mailer".parse().unwrap();
        let leaf = ca.leaf(&LeafParams {
            spiffe_id: &id,
            spki_der: key(Curve::P256).spki_der(),
            dns_names: &[],
            serial: Serial::from_random([n; 16]),
            now: NOW,
            lifetime: Duration::from_secs(600),
            agent: Some(AgentLeaf { instance: InstanceId::from_bytes([5; 16]), info: &info(tier) }),
        });
        let chain = parts::join(&[&leaf.unwrap().der, ca.certificate()]);
        write(&format!("seeds/chain/{tier}"), &chain);
        write(&format!("seeds/agent_info/{tier}"), &info(tier).encode().unwrap());
        if tier == Tier::Enterprise {
            lists(&ca);
        }
    }
    let full = AgentInfo {
        task: Some(TaskInfo { task_id: "t-1".parse().unwrap(), grant_digest: [3; 32] }),
        delegation: Some(Delegation {
            parent: "spiffe://example.org/agent/planner".parse().unwrap(),
            chain_digest: [4; 32],
            depth: 2,
        }),
        ..info(Tier::Enterprise)
    };
    write("seeds/agent_info/full", &full.encode().unwrap());
    let roots: Vec<&[u8]> = roots.iter().map(Vec::as_slice).collect();
    write("fixtures/roots", &parts::join(&roots));
}

fn key(curve: Curve) -> SoftwareCaKey {
    let algorithm = match curve {
        Curve::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        Curve::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
    };
    SoftwareCaKey::from_pkcs8(&rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_der()).unwrap()
}

fn hierarchy(n: u8, tier: Tier) -> (Vec<u8>, IssuingCa) {
    let trust_domain: TrustDomain = "example.org".parse().unwrap();
    let arc = OidArc::documentation();
    let params = |serial| CaParams {
        trust_domain: &trust_domain,
        hierarchy: Hierarchy::Tier(tier),
        lab: false,
        arc: &arc,
        serial: Serial::from_random([serial; 16]),
        now: NOW,
        lifetime: Duration::from_secs(365 * 86_400),
    };
    let (root_key, ca_key) = (key(Curve::P384), key(Curve::P256));
    let root_der = root(&params(10 + n), &root_key).unwrap();
    let ca = issuing(&params(20 + n), ca_key.spki_der(), &root_der, &root_key).unwrap();
    (root_der.to_vec(), IssuingCa::new(&ca, Arc::new(ca_key)).unwrap())
}

fn info(tier: Tier) -> AgentInfo {
    AgentInfo {
        version: AgentInfo::VERSION,
        tier,
        custody: if tier == Tier::Advanced { Custody::TpmCertified } else { Custody::Software },
        owner_id: [1; 16],
        attested_at: NOW - 10,
        evidence_digest: [2; 32],
        task: None,
        delegation: None,
    }
}

fn lists(ca: &IssuingCa) {
    let revoked = [1, 2].map(|n| Revoked {
        serial: Serial::from_random([n; 16]),
        at: NOW - 60,
        reason: if n == 1 { Reason::CessationOfOperation } else { Reason::KeyCompromise },
    });
    for (name, revoked) in [("empty", &revoked[..0]), ("two", &revoked[..])] {
        let params = CrlParams { this_update: NOW - 30, next_update: NOW + 3600, number: 7, revoked };
        write(&format!("seeds/crl/{name}"), &ca.crl(&params).unwrap());
    }
    write("fixtures/issuing", ca.certificate());
}

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn words() {
    for (n, id) in ["agent/mailer", "agent/mailer/task/t-1", "host/web-01", "issuer/a"].iter().enumerate() {
        write(&format!("seeds/spiffe_id/{n}"), format!("spiffe://example.org/{id}").as_bytes());
    }
    let digest = "ab".repeat(32);
    let selectors = [
        "unix:uid:1001",
        "unix:gid:0",
        "unix:supplementary-gid:4",
        "unix:user:mailbot",
        "exe:path:/usr/bin/python3",
        &format!("exe:sha256:{digest}"),
        "systemd:unit:mailer@1.service",
        "cgroup:path:/system.slice/mailer.service",
        &format!("container:id:{digest}"),
        &format!("container:image-digest:sha256:{digest}"),
    ];
    for (n, selector) in selectors.iter().enumerate() {
        write(&format!("seeds/selector/{n}"), selector.as_bytes());
    }
    write("seeds/capability/some", b"* **\nmail.* mailbox/*/**\nmail.read mailbox/alice/*\nmail.read a/b\n");
    write("seeds/registration/two", REGISTRATIONS.as_bytes());
    for registration in parse_files(&[("a.toml", REGISTRATIONS)]).unwrap() {
        let name = registration.name().to_string();
        write(&format!("seeds/registration_json/{name}"), registration.canonical().as_bytes());
    }
}

const REGISTRATIONS: &str = r#"[[agent]]
name = "summarizer"
owner = "mail-team@example.org"
tier = "enterprise"
hosts = ["web-01", "db-*"]
selectors = ["unix:user:mailbot", "systemd:unit:mailbot.service"]
lifetime = "45m"
dns_names = ["mail.example.org"]
description = "reads and sums up"

[[agent.capability]]
action = "mail.read"
resource = "mailbox/alice/*"

[[agent]]
name = "signer"
owner = "ops@example.org"
tier = "advanced"
hosts = ["*"]
selectors = ["unix:uid:1001", "unix:supplementary-gid:4", "systemd:unit:signer.service"]
key = { custody = "tpm-certified", bind_pcrs = [0, 7] }
"#;

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn the_log() {
    use hallmark_core::log::{
        Checkpoint, Tiles, Tree, bundle, leaf_hash, prove_inclusion, sign_checkpoint, write_proof,
    };
    let entries: Vec<String> = (0..300).map(|i| format!("entry {i}")).collect();
    let (mut tree, mut tiles) = (Tree::new(), Tiles::new());
    for entry in &entries {
        tiles.extend(tree.append(leaf_hash(entry.as_bytes())).into_iter().map(|t| (t.id, t.hashes)));
    }
    let edge = (0..tree.levels()).filter_map(|level| tree.partial(level));
    tiles.extend(edge.map(|(id, hashes)| (id, hashes.to_vec())));
    let (key, verifier) = log::key();
    let checkpoint = Checkpoint { size: tree.size(), root: tree.root() };
    let signed = sign_checkpoint(&verifier, &key, &checkpoint).unwrap();
    let proof = prove_inclusion(&checkpoint, 77, leaf_hash(b"entry 77"), &tiles).unwrap();
    write("seeds/log_checkpoint/signed", &signed);
    let more = [&signed[..], "\u{2014} witness.example AAAAAAAA\n".as_bytes()].concat();
    write("seeds/log_checkpoint/cosigned", &more);
    write("seeds/log_proof/of_77", &write_proof(77, &proof, &signed));
    let three = bundle(entries[..3].iter().map(String::as_bytes)).unwrap();
    write("seeds/log_bundle/three", &[&[3], &three[..]].concat());
    write("seeds/log_bundle/none", &[0]);
    write("seeds/log_verifier/own", verifier.to_string().as_bytes());
    write(
        "seeds/log_verifier/specification",
        b"PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    );
    let svid = r#"{"v":1,"at":1,"kind":"svid","outcome":"issued","host":"a","agent":"x","instance":"i","serial":"40"}"#;
    write("seeds/log_record/svid", svid.as_bytes());
    let attested = r#"{"v":1,"kind":"host-attestation","outcome":"attested","host":"a","ek_sha256":"e"}"#;
    write("seeds/log_record/attested", attested.as_bytes());
    write("seeds/log_event/svid", svid.as_bytes());
    let refused = r#"{"v":1,"at":1800000000,"kind":"svid","outcome":"refused","host":"a","agent":"a|b=c\\","reason":"line\nbreak \u0085","operator":"root","unmet":[{"code":"pcr-policy","detail":"PCR 7"}],"selectors":["unix:uid:0"]}"#;
    write("seeds/log_event/refused", refused.as_bytes());
    write("seeds/log_path/tile", b"tile/1/x001/273.p/112");
    write("seeds/log_path/entries", b"tile/entries/000");
}
