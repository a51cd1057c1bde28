//! pkilint on every kind of certificate and on CRLs: no finding without a reason.

use std::path::{Path, PathBuf};

use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::{CrlParams, Reason, Revoked};
use hallmark_kit::pki::{Shape, pem, serial};

use super::files::Files;
use super::{oracle, run, venv};

/// Every kind of certificate, with its issuer.
fn every_kind(files: &Files) -> Vec<(String, PathBuf, PathBuf)> {
    let domain = &files.domain;
    let mut kinds = Vec::new();
    let mut add = |name: String, issuer: &[u8], subject: &[u8]| {
        let issuer = files.write(&format!("{name}.issuer.pem"), &pem(issuer));
        kinds.push((name.clone(), issuer, files.write(&format!("{name}.pem"), &pem(subject))));
    };
    for hierarchy in Hierarchy::ALL {
        let (root, ca) = (domain.root(hierarchy), domain.ca(hierarchy).certificate());
        add(format!("{hierarchy} root"), root, root);
        add(format!("{hierarchy} issuing CA"), root, ca);
        let paths = match hierarchy {
            Hierarchy::Tier(_) => ["agent/mailer", "agent/mailer/task/t1"],
            Hierarchy::Infrastructure => ["host/web-01", "issuer/a"],
        };
        for path in paths {
            add(
                format!("{hierarchy} {}", path.replace('/', " ")),
                ca,
                &domain.identity(hierarchy, path).unwrap().chain[0],
            );
        }
    }
    let hierarchy = Hierarchy::Tier(Tier::Advanced);
    let shape = Shape {
        custody: Some(Custody::Simulated),
        dns_names: vec!["mail.example.org".to_owned()],
        ..domain.shape()
    };
    let server = domain.identity_shaped(hierarchy, "agent/server", &shape).unwrap();
    add("advanced agent with DNS name".to_owned(), domain.ca(hierarchy).certificate(), &server.chain[0]);
    kinds
}

/// The findings that stay, each with its reason.
const ACCEPTED: [(&str, &str); 1] = [(
    "ERROR pkix.invalid_uri_syntax subjectAltName",
    "pkilint asks the package `validators`, which knows common schemes only; spiffe:// is a URI (RFC 3986)",
)];

fn lint(kind: &str, files: &[&Path]) -> Option<Vec<(String, Vec<String>)>> {
    let script = oracle("lint.py");
    let mut arguments = vec![script.as_str(), kind];
    arguments.extend(files.iter().map(|f| f.to_str().unwrap()));
    let (fine, text) = run(&format!("pkilint {kind}"), venv("python"), &arguments)?;
    assert!(fine, "{text}");
    Some(
        text.lines()
            .map(|line| {
                let report: serde_json::Value = serde_json::from_str(line).unwrap();
                let findings =
                    report["findings"].as_array().unwrap().iter().map(|f| f.as_str().unwrap().to_owned());
                let file = Path::new(report["file"].as_str().unwrap())
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                (file, findings.collect())
            })
            .collect(),
    )
}

fn no_findings(reports: Vec<(String, Vec<String>)>) {
    let mut unexplained = Vec::new();
    for (file, findings) in reports {
        for finding in findings {
            match ACCEPTED.iter().find(|(known, _)| *known == finding) {
                Some((_, reason)) => println!("{file}: {finding}: accepted, {reason}"),
                None => unexplained.push(format!("{file}: {finding}")),
            }
        }
    }
    assert!(unexplained.is_empty(), "{unexplained:#?}");
}

#[test]
fn pkilint_finds_nothing_unexplained() {
    let files = Files::new();
    let kinds = every_kind(&files);
    let certificates: Vec<&Path> = kinds.iter().map(|k| k.2.as_path()).collect();
    let Some(reports) = lint("cert", &certificates) else { return };
    assert_eq!(reports.len(), 17);
    no_findings(reports);
    let pairs: Vec<&Path> = kinds
        .iter()
        .filter(|k| !k.0.ends_with("root"))
        .flat_map(|k| [k.1.as_path(), k.2.as_path()])
        .collect();
    let reports = lint("chain", &pairs).unwrap();
    assert_eq!(reports.len(), 13);
    no_findings(reports);
}

#[test]
fn pkilint_on_crls() {
    let files = Files::new();
    let now = files.domain.now;
    let entries: Vec<_> =
        [Reason::KeyCompromise, Reason::CessationOfOperation, Reason::PrivilegeWithdrawn, Reason::Superseded]
            .map(|reason| Revoked { serial: serial(), at: now - 60, reason })
            .to_vec();
    let mut lists = Vec::new();
    for (name, revoked) in [("empty", &entries[..0]), ("full", &entries[..])] {
        let params = CrlParams { this_update: now, next_update: now + 86_400, number: 1, revoked };
        let der = files.domain.ca(Hierarchy::Tier(Tier::Enterprise)).crl(&params).unwrap();
        lists.push(files.write(&format!("{name}.crl"), &pem::encode(&pem::Pem::new("X509 CRL", der))));
    }
    let paths: Vec<&Path> = lists.iter().map(PathBuf::as_path).collect();
    if let Some(reports) = lint("crl", &paths) {
        no_findings(reports);
    }
}
