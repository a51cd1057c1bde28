//! Our certificates before independent judges: OpenSSL, Java, Go, Python's cryptography, GnuTLS, webpki
//! and pkilint. A judge that is not installed is reported as skipped, by name; Python's live in
//! `target/venv` (`pkilint==0.13.0`, `cryptography==50.0.2`).

#![allow(clippy::unwrap_used, clippy::expect_used)] // clippy.toml's leave covers #[test] functions alone

#[path = "x509_oracle/files.rs"]
mod files;
#[path = "x509_oracle/lint.rs"]
mod lint;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use files::Files;
use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_core::x509::{ChainError, CrlParams, Demand, Reason, Revoked, Usage, verify_chain};
use hallmark_kit::pki::pem;
use rustls_pki_types::{CertificateDer, UnixTime};

const ARC: &str = "1.3.6.1.4.1.32473";

/// Runs a judge; none if it is not installed.
fn run(test: &str, program: impl AsRef<Path>, arguments: &[&str]) -> Option<(bool, String)> {
    let program = program.as_ref();
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            hallmark_e2e::skip(&format!("{test} ({} is not installed)", program.display()));
            return None;
        }
        Err(error) => panic!("{}: {error}", program.display()),
    };
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn oracle(file: &str) -> String {
    format!("{}/tests/x509_oracle/{file}", env!("CARGO_MANIFEST_DIR"))
}

fn venv(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin").join(program)
}

/// (demanded tier, leaf) → accepted, or why not.
type Matrix = BTreeMap<(String, String), Result<(), String>>;

/// The lines `what DEMANDED LEAF accept|refuse WHY` of a judge's output.
fn matrix(what: &str, output: &str) -> Matrix {
    let mut matrix = Matrix::new();
    for line in output.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        if let [kind, demanded, leaf, verdict] = words[..]
            && kind == what
        {
            let verdict = if verdict == "accept" { Ok(()) } else { Err(verdict.to_owned()) };
            matrix.insert((demanded.to_owned(), leaf.to_owned()), verdict);
        }
    }
    matrix
}

/// Prints the matrix and holds it against the order of the tiers.
#[track_caller]
fn is_the_tier_order(judge: &str, matrix: &Matrix) {
    println!("{judge}: relying party that demands (rows) × leaf (columns)");
    println!("{:>12} | foundation | enterprise | advanced", "");
    for demanded in Tier::ALL {
        let verdicts = Tier::ALL.map(|leaf| &matrix[&(demanded.to_string(), leaf.to_string())]);
        let word = |i: usize| if verdicts[i].is_ok() { "accept" } else { "refuse" };
        println!("{demanded:>12} | {:10} | {:10} | {}", word(0), word(1), word(2));
        for (leaf, verdict) in Tier::ALL.into_iter().zip(verdicts) {
            assert_eq!(verdict.is_ok(), leaf >= demanded, "{judge}: {leaf} at {demanded}: {verdict:?}");
        }
    }
}

fn each(mut judge: impl FnMut(Tier, Tier) -> Result<(), String>) -> Matrix {
    let mut matrix = Matrix::new();
    for demanded in Tier::ALL {
        for leaf in Tier::ALL {
            matrix.insert((demanded.to_string(), leaf.to_string()), judge(demanded, leaf));
        }
    }
    matrix
}

#[test]
fn webpki_roots_enforce_the_tier() {
    let files = Files::new();
    let now = u64::try_from(files.domain.now).unwrap();
    let demand = |usage| Demand {
        usage,
        now: UnixTime::since_unix_epoch(Duration::from_secs(now)),
        accept_simulated: false,
    };
    let verify = |demanded, chain: Vec<Vec<u8>>| {
        let chain: Vec<CertificateDer<'_>> = chain.into_iter().map(CertificateDer::from).collect();
        let roots = files.domain.tier_roots().unwrap().at_least(demanded);
        verify_chain(&chain, &roots, &demand(Usage::Server))?;
        verify_chain(&chain, &roots, &demand(Usage::Client)).map(drop)
    };
    let matrix = each(|demanded, leaf| verify(demanded, files.leaf(leaf).chain).map_err(|e| e.to_string()));
    is_the_tier_order("hallmark-core (webpki)", &matrix);
    let issuing = files.domain.ca(Hierarchy::Tier(Tier::Foundation)).certificate().to_vec();
    let forged = verify(Tier::Foundation, vec![files.forged(), issuing]);
    assert!(matches!(forged, Err(ChainError::Policies { root: Tier::Foundation, .. })), "{forged:?}");
}

fn openssl_verify(
    files: &Files,
    roots: &str,
    leaf: &str,
    issuing: &str,
    more: &[&str],
) -> Option<Result<(), String>> {
    let path = |name: &str| files.path(name).to_str().unwrap().to_owned();
    let (roots, leaf, issuing) = (path(roots), path(leaf), path(issuing));
    let fixed =
        ["verify", "-no-CApath", "-no-CAstore", "-x509_strict", "-CAfile", &roots, "-untrusted", &issuing];
    let arguments: Vec<&str> = fixed.iter().chain(more).copied().chain([leaf.as_str()]).collect();
    let (fine, text) = run("openssl verify", "openssl", &arguments)?;
    Some(if fine { Ok(()) } else { Err(text) })
}

#[test]
fn openssl_roots_enforce_the_tier() {
    let files = Files::new();
    for purpose in ["sslclient", "sslserver"] {
        let mut skipped = false;
        let matrix = each(|demanded, leaf| {
            let roots = format!("roots-{demanded}.pem");
            let (leaf, issuing) = (format!("leaf-{leaf}.pem"), format!("issuing-{leaf}.pem"));
            openssl_verify(&files, &roots, &leaf, &issuing, &["-purpose", purpose]).unwrap_or_else(|| {
                skipped = true;
                Ok(())
            })
        });
        if skipped {
            return;
        }
        is_the_tier_order(&format!("openssl verify -purpose {purpose}"), &matrix);
    }
}

/// All roots trusted, the policy demanded: cumulative policies give the same order, and the foundation CA
/// cannot mint enterprise.
#[test]
fn openssl_policies_under_explicit_policy() {
    let files = Files::new();
    let mut skipped = false;
    let mut judge = |demanded: Tier, leaf: &str, issuing: Tier| {
        let number = Tier::ALL.iter().position(|t| *t == demanded).unwrap() + 1;
        let policy = format!("{ARC}.1.{number}");
        let more = ["-policy_check", "-explicit_policy", "-policy", &policy];
        let issuing = format!("issuing-{issuing}.pem");
        openssl_verify(&files, "roots-foundation.pem", leaf, &issuing, &more).unwrap_or_else(|| {
            skipped = true;
            Ok(())
        })
    };
    let matrix = each(|demanded, leaf| judge(demanded, &format!("leaf-{leaf}.pem"), leaf));
    let minted = judge(Tier::Enterprise, "forged.pem", Tier::Foundation);
    let plain = judge(Tier::Foundation, "forged.pem", Tier::Foundation);
    if skipped {
        return;
    }
    is_the_tier_order("openssl verify -policy … -explicit_policy", &matrix);
    plain.unwrap();
    assert!(minted.unwrap_err().contains("no explicit policy"));
}

#[test]
fn openssl_reads_what_we_mean() {
    let files = Files::new();
    let text = |name: &str| {
        let path = files.path(name);
        run("openssl x509", "openssl", &["x509", "-noout", "-text", "-in", path.to_str().unwrap()])
    };
    let Some((_, advanced)) = text("leaf-advanced.pem") else { return };
    for expected in [
        "Version: 3 (0x2)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Subject: O = example.org, CN = mailer, serialNumber = ",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Basic Constraints: critical\n                CA:FALSE",
        "URI:spiffe://example.org/agent/mailer\n",
        "Policy: 1.3.6.1.4.1.32473.1.1\n",
        "Policy: 1.3.6.1.4.1.32473.1.2\n",
        "Policy: 1.3.6.1.4.1.32473.1.3\n",
        "URI:http://crl.example.org/x\n",
        "1.3.6.1.4.1.32473.2.1: \n",
    ] {
        assert!(advanced.contains(expected), "{expected:?} in\n{advanced}");
    }
    assert_eq!(advanced.matches(": critical").count(), 2, "{advanced}");
    let (_, root) = text("root-advanced.pem").unwrap();
    assert!(root.contains("CN = Hallmark advanced root (LAB: software TPMs accepted)"), "{root}");
    assert!(root.contains("CA:TRUE, pathlen:1"), "{root}");
    let (_, issuing) = text("issuing-enterprise.pem").unwrap();
    assert!(issuing.contains("CA:TRUE, pathlen:0"), "{issuing}");
    assert!(issuing.contains("Certificate Sign, CRL Sign"), "{issuing}");
}

/// AgentInfo as the ASN.1 module in its documentation says, read by OpenSSL's parser.
#[test]
fn openssl_reads_agent_info() {
    let files = Files::new();
    let path = files.path("leaf-advanced.pem");
    let Some((_, dump)) = run("openssl asn1parse", "openssl", &["asn1parse", "-in", path.to_str().unwrap()])
    else {
        return;
    };
    let oid = dump.lines().position(|l| l.contains("1.3.6.1.4.1.32473.2.1")).unwrap();
    let octets = dump.lines().nth(oid + 1).unwrap();
    assert!(octets.contains("OCTET STRING"), "{octets}");
    let offset = octets.split(':').next().unwrap().trim();
    let arguments = ["asn1parse", "-in", path.to_str().unwrap(), "-strparse", offset];
    let (fine, info) = run("openssl asn1parse", "openssl", &arguments).unwrap();
    assert!(fine, "{info}");
    let shapes: Vec<&str> = info.lines().filter_map(|l| l.split("prim: ").nth(1)).map(str::trim).collect();
    let kinds: Vec<&str> = shapes.iter().map(|s| s.split([' ', ':']).next().unwrap()).collect();
    assert_eq!(kinds, ["INTEGER", "ENUMERATED", "ENUMERATED", "OCTET", "GENERALIZEDTIME", "OCTET"], "{info}");
    assert!(shapes[0].ends_with(":01") && shapes[1].ends_with(":03") && shapes[2].ends_with(":03"), "{info}");
}

#[test]
fn openssl_checks_the_crl() {
    let files = Files::new();
    let hierarchy = Hierarchy::Tier(Tier::Enterprise);
    let (good, bad) = (files.leaf(Tier::Enterprise), files.leaf(Tier::Enterprise));
    let now = files.domain.now;
    let revoked = [Revoked { serial: bad.leaf.serial, at: now, reason: Reason::KeyCompromise }];
    let list = CrlParams { this_update: now, next_update: now + 600, number: 1, revoked: &revoked };
    let crl = files.domain.ca(hierarchy).crl(&list).unwrap();
    let crl = files.write("enterprise.crl", &pem::encode(&pem::Pem::new("X509 CRL", crl)));
    files.write("good.pem", &pem(&good.chain[0]));
    files.write("bad.pem", &pem(&bad.chain[0]));
    let judge = |leaf: &str| {
        let more = ["-crl_check", "-CRLfile", crl.to_str().unwrap()];
        openssl_verify(&files, "roots-enterprise.pem", leaf, "issuing-enterprise.pem", &more)
    };
    let Some(good) = judge("good.pem") else { return };
    good.unwrap();
    assert!(judge("bad.pem").unwrap().unwrap_err().contains("certificate revoked"));
}

#[test]
fn java_agrees() {
    let files = Files::new();
    let directory = files.directory.path().to_str().unwrap();
    let Some((fine, text)) = run("java_agrees", "java", &[&oracle("Validate.java"), directory]) else {
        return;
    };
    assert!(fine, "{text}");
    is_the_tier_order("java CertPathValidator", &matrix("roots", &text));
    let policies = matrix("policy", &text);
    is_the_tier_order("java CertPathValidator, explicit policy", &policies);
    let verdict = |demanded: Tier| &policies[&(demanded.to_string(), "forged".to_owned())];
    assert_eq!(verdict(Tier::Foundation), &Ok(()));
    assert!(verdict(Tier::Enterprise).is_err(), "a foundation CA minted enterprise");
}

#[test]
fn go_agrees() {
    let files = Files::new();
    let directory = files.directory.path().to_str().unwrap();
    let Some((fine, text)) = run("go_agrees", "go", &["run", &oracle("validate.go"), directory]) else {
        return;
    };
    assert!(fine, "{text}");
    is_the_tier_order("go crypto/x509", &matrix("roots", &text));
}

#[test]
fn python_agrees() {
    let files = Files::new();
    let directory = files.directory.path().to_str().unwrap();
    let python = venv("python");
    let Some((fine, text)) = run("python_agrees", python, &[&oracle("validate.py"), directory]) else {
        return;
    };
    assert!(fine, "{text}");
    is_the_tier_order("python cryptography", &matrix("roots", &text));
}

#[test]
fn gnutls_agrees() {
    let files = Files::new();
    let mut skipped = false;
    let matrix = each(|demanded, leaf| {
        let read = |name: String| std::fs::read_to_string(files.path(&name)).unwrap();
        let chain = read(format!("leaf-{leaf}.pem")) + &read(format!("issuing-{leaf}.pem"));
        let chain = files.write("chain.pem", &chain);
        let roots = files.path(&format!("roots-{demanded}.pem"));
        let arguments = [
            "--verify",
            "--load-ca-certificate",
            roots.to_str().unwrap(),
            "--infile",
            chain.to_str().unwrap(),
        ];
        match run("gnutls_agrees", "certtool", &arguments) {
            Some((true, _)) => Ok(()),
            Some((false, text)) => Err(text),
            None => {
                skipped = true;
                Ok(())
            }
        }
    });
    if !skipped {
        is_the_tier_order("gnutls certtool --verify", &matrix);
    }
}
