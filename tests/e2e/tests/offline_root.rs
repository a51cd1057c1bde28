//! Issuing CAs that an offline root signs, with openssl as that root; and what an installation must refuse.

#[path = "rotation/bench.rs"]
mod bench;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use bench::{Bench, cas, json};
use hallmark_e2e::{Bed, BedOptions, binary, skip, wait_until};
use hallmark_kit::softhsm::run;

const HIERARCHIES: [&str; 4] = ["foundation", "enterprise", "advanced", "infrastructure"];
const LAB: &str = "(LAB: software TPMs accepted)";
const ARC: &str = "1.3.6.1.4.1.32473.1";

fn bed() -> Result<Bed> {
    let extra = "[ca.rotation]\noverlap = \"4s\"\ntaint_grace = \"4s\"\n".to_owned();
    Bed::start(BedOptions { ca: "root = \"offline\"".to_owned(), extra, ..BedOptions::default() })
}

fn openssl(args: &[&str]) -> Result<String> {
    run(Command::new("openssl").args(args))
}

/// A root on another machine: openssl and two files.
struct Root {
    dir: PathBuf,
    name: String,
}

impl Root {
    fn new(bed: &Bed, name: &str, more: &[&str]) -> Result<Self> {
        let root = Self { dir: bed.path(""), name: name.to_owned() };
        let subject = format!("/O=Example Corporation/CN=Example {name} {LAB}");
        let (key, certificate) = (root.path("key"), root.path("pem"));
        let mut args =
            vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha384"];
        args.extend(["-nodes", "-days", "3650", "-subj", &subject, "-keyout", &key, "-out", &certificate]);
        args.extend(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        args.extend(more);
        openssl(&args)?;
        Ok(root)
    }

    fn path(&self, extension: &str) -> String {
        self.dir.join(format!("{}.{extension}", self.name)).display().to_string()
    }

    /// Signs a request as the command's own help says.
    fn sign(&self, csr: &str, extensions: &str, more: &[&str]) -> Result<String> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let extfile = format!("{csr}.{number}.ext");
        std::fs::write(&extfile, extensions)?;
        let out = format!("{csr}.{number}.pem");
        let (key, certificate) = (self.path("key"), self.path("pem"));
        let mut args = vec!["x509", "-req", "-in", csr, "-CA", &certificate, "-CAkey", &key, "-sha384"];
        args.extend(["-extfile", &extfile, "-out", &out]);
        args.extend(more);
        openssl(&args)?;
        Ok(out)
    }

    /// As it should be.
    fn signed(&self, csr: &str) -> Result<String> {
        self.sign(csr, "authorityKeyIdentifier=keyid\n", &["-days", "365", "-copy_extensions", "copyall"])
    }
}

fn csr(bed: &Bed, hierarchy: &str) -> Result<String> {
    let pem = bed.hallmark_ok(&["ca", "csr", hierarchy])?;
    let path = bed.path(&format!("{hierarchy}.csr"));
    std::fs::write(&path, pem)?;
    Ok(path.display().to_string())
}

fn install(bed: &Bed, hierarchy: &str, certificate: &str, root: &Root) -> Result<String> {
    bed.hallmark_ok(&["ca", "install", hierarchy, certificate, "--root", &root.path("pem")])
}

/// What an installation is refused for.
fn refused(bed: &Bed, hierarchy: &str, certificate: &str, root: &str) -> Result<String> {
    let output = bed.hallmark(&["ca", "install", hierarchy, certificate, "--root", root])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{certificate} was installed");
    Ok(said)
}

#[test]
fn an_offline_root_makes_a_trust_domain_and_replaces_its_cas() -> Result<()> {
    let mut bed = bed()?;
    // It runs, says what is missing, and serves nobody.
    let missing = json(&bed, &["ca", "list"])?["notes"].to_string();
    for hierarchy in HIERARCHIES {
        assert!(missing.contains(&format!("hallmark ca csr {hierarchy}")), "{missing}");
    }
    assert!(bed.issuer()?.log().contains("no issuing CA"), "run says what is missing");
    assert!(json(&bed, &["doctor"])?.to_string().contains("nothing of this hierarchy can be signed"));
    let roots: Vec<Root> = HIERARCHIES.iter().map(|h| Root::new(&bed, h, &[])).collect::<Result<_>>()?;
    for (hierarchy, root) in HIERARCHIES.into_iter().zip(&roots) {
        let asked = csr(&bed, hierarchy)?;
        openssl(&["req", "-in", &asked, "-verify", "-noout"])?;
        install(&bed, hierarchy, &root.signed(&asked)?, root)?;
        assert!(cas(&bed, &[])?.iter().any(|ca| ca.signs(hierarchy)), "{hierarchy} does not sign at once");
    }
    let mut bench = Bench::of(bed, "")?;
    for tier in ["foundation", "enterprise", "advanced"] {
        bench.verify(&bench.watch(tier)?.identity()?)?;
    }
    // No root's key was ever here.
    assert!(!bench.keys()?.iter().any(|key| key.contains(" root ")), "{:?}", bench.keys()?);
    assert_eq!(json(&bench.bed, &["ca", "list"])?["notes"].as_array().map(Vec::len), Some(0));

    // An order that needs the root says what to do instead.
    let rotate = bench.bed.hallmark(&["ca", "rotate", "enterprise"])?;
    assert!(String::from_utf8_lossy(&rotate.stderr).contains("hallmark ca csr enterprise"));
    let taint = bench.bed.hallmark(&["ca", "taint", "enterprise", "--reason", "test"])?;
    assert!(String::from_utf8_lossy(&taint.stderr).contains("nothing could take its place"));
    assert_eq!(cas(&bench.bed, &[])?.iter().filter(|ca| ca.signs("enterprise")).count(), 1);

    // The next issuing CA under the same root, over a restart while the request waits: it signs at once.
    let old = bench.watch("enterprise")?;
    let first = old.identity()?;
    let asked = csr(&bench.bed, "enterprise")?;
    bench.bed.kill_issuer()?;
    bench.bed.start_issuer()?;
    let again = csr(&bench.bed, "enterprise")?;
    let subject = |path: &str| openssl(&["req", "-in", path, "-noout", "-subject", "-pubkey"]);
    assert_eq!(subject(&asked)?, subject(&again)?, "the key that waits is asked for again");
    let signed = roots[1].signed(&asked)?;
    bench.bed.hallmark_ok(&["ca", "install", "enterprise", &signed])?;
    bench.host.wait_connected(&bench.bed)?;
    let next = bench.watch("enterprise")?.identity()?;
    bench.verify(&next)?;
    assert_ne!(next.chain[1], first.chain[1]);
    let twice = bench.bed.hallmark(&["ca", "install", "enterprise", &signed])?;
    assert!(String::from_utf8_lossy(&twice.stderr).contains("waits for a certificate"));
    // Now the one before it can be tainted.
    let taint = ["ca", "taint", "enterprise", "--generation", "1", "--reason", "test"];
    bench.bed.hallmark_ok(&taint)?;
    loop {
        let renewed = old.identity()?;
        if renewed.chain[1] == next.chain[1] {
            break;
        }
    }

    // A new root is shown for the overlap first.
    let new = Root::new(&bench.bed, "enterprise-2", &[])?;
    let asked = csr(&bench.bed, "enterprise")?;
    install(&bench.bed, "enterprise", &new.signed(&asked)?, &new)?;
    let published = bench.bundle()?;
    assert_eq!(published.matches("BEGIN").count(), 4);
    assert!(cas(&bench.bed, &[])?.iter().any(|ca| ca.signs("enterprise") && ca.root == 1));
    wait_until("the new root", || {
        cas(&bench.bed, &[]).ok()?.iter().any(|ca| ca.signs("enterprise") && ca.root == 2).then_some(())
    })?;
    let under = bench.watch("enterprise")?.identity()?;
    bench.verify_by(&under, &published)?;
    bench.verify_by(&under, &std::fs::read_to_string(new.path("pem"))?)?;
    let installed = bench.records("ca")?.into_iter().filter(|r| r["outcome"] == "installed");
    assert_eq!(installed.count(), 11, "5 roots and 6 issuing CAs, each with its record");
    Ok(())
}

const GOOD: [(&str, &str); 5] = [
    ("basicConstraints", "critical,CA:TRUE,pathlen:0"),
    ("keyUsage", "critical,keyCertSign,cRLSign"),
    ("subjectKeyIdentifier", "hash"),
    ("authorityKeyIdentifier", "keyid"),
    ("certificatePolicies", "1.3.6.1.4.1.32473.1.1,1.3.6.1.4.1.32473.1.2"),
];

/// The good extensions with one of them otherwise, or left out.
fn extensions(otherwise: &[(&str, Option<&str>)]) -> String {
    let changed = |name: &str| otherwise.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let kept = GOOD.iter().filter_map(|(name, value)| Some((*name, changed(name).unwrap_or(Some(value))?)));
    let new = otherwise.iter().filter(|(n, _)| !GOOD.iter().any(|(g, _)| g == n));
    let new = new.filter_map(|(name, value)| Some((*name, (*value)?)));
    kept.chain(new).map(|(name, value)| format!("{name}={value}\n")).collect()
}

#[test]
fn an_installation_is_refused_for_each_fault_by_its_name() -> Result<()> {
    let bed = bed()?;
    let root = Root::new(&bed, "enterprise", &[])?;
    let asked = csr(&bed, "enterprise")?;
    let year = ["-days", "365"];
    let lower = format!("{ARC}.1");
    for (otherwise, fault) in [
        (("basicConstraints", Some("critical,CA:TRUE,pathlen:1")), "basicConstraints"),
        (("basicConstraints", Some("critical,CA:TRUE")), "basicConstraints"),
        (("basicConstraints", Some("CA:TRUE,pathlen:0")), "basicConstraints"),
        (("basicConstraints", Some("critical,CA:FALSE")), "basicConstraints"),
        (("keyUsage", Some("critical,keyCertSign")), "keyUsage"),
        (("keyUsage", Some("critical,keyCertSign,cRLSign,digitalSignature")), "keyUsage"),
        (("keyUsage", None), "keyUsage"),
        (("subjectKeyIdentifier", Some("none")), "subject key identifier"),
        (("authorityKeyIdentifier", Some("none")), "authority key identifier"),
        (("certificatePolicies", None), "certificatePolicies"),
        (("certificatePolicies", Some(lower.as_str())), "certificatePolicies"),
        (("certificatePolicies", Some("2.5.29.32.0")), "certificatePolicies"),
        (("nameConstraints", Some("critical,permitted;URI:example.org")), "nameConstraints"),
        (("policyConstraints", Some("critical,requireExplicitPolicy:0")), "policyConstraints"),
        (("extendedKeyUsage", Some("clientAuth")), "extendedKeyUsage"),
        (("1.2.3.4", Some("critical,DER:0500")), "1.2.3.4 is critical"),
        (("subjectAltName", Some("URI:spiffe://other.example")), "subjectAltName"),
        (("subjectAltName", Some("URI:spiffe://test.example,DNS:test.example")), "subjectAltName"),
    ] {
        let made = root.sign(&asked, &extensions(&[otherwise]), &year)?;
        let said = refused(&bed, "enterprise", &made, &root.path("pem"))?;
        assert!(said.contains("for 1 fault:") && said.contains(fault), "{otherwise:?}: {said}");
    }
    let refuse = |what: &str, certificate: &str, root: &str, words: &[&str]| -> Result<()> {
        let said = refused(&bed, "enterprise", certificate, root)?;
        for word in words {
            assert!(said.contains(word), "{what}: no {word:?} in {said}");
        }
        Ok(())
    };
    let good = root.signed(&asked)?;
    let short = root.sign(&asked, &extensions(&[]), &["-days", "0"])?;
    refuse("no life left", &short, &root.path("pem"), &["valid from"])?;
    let long = root.sign(&asked, &extensions(&[]), &["-days", "5000"])?;
    refuse("beyond its root", &long, &root.path("pem"), &["for 1 fault:", "within the root's own time"])?;
    let renamed = root.sign(&asked, &extensions(&[]), &["-days", "365", "-subj", "/O=test.example/CN=Other"]);
    if let Ok(renamed) = renamed {
        refuse("another name", &renamed, &root.path("pem"), &["subject"])?;
    } else {
        skip("a certificate of another subject (this openssl cannot)");
    }
    // A key that is not the issuer's.
    let key = bed.path("foreign.key").display().to_string();
    let foreign = bed.path("foreign.csr").display().to_string();
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key])?;
    let subject = openssl(&["req", "-in", &asked, "-noout", "-subject", "-nameopt", "compat"])?;
    let subject = subject.trim().trim_start_matches("subject=").to_owned();
    openssl(&["req", "-new", "-key", &key, "-subj", &subject, "-out", &foreign])?;
    let made = root.sign(&foreign, &extensions(&[]), &year)?;
    refuse("another key", &made, &root.path("pem"), &["its key is not the requested one"])?;
    // Another root than the one that signed, and what is none.
    let other = Root::new(&bed, "other", &[])?;
    refuse("another root", &good, &other.path("pem"), &["issuer", "signature is not the root's"])?;
    refuse("no root", &good, &good, &["it is no root"])?;
    refuse("junk", &key, &root.path("pem"), &["not a DER certificate"])?;
    let unmarked = {
        let root = Root { dir: bed.path(""), name: "unmarked".to_owned() };
        let (key, pem) = (root.path("key"), root.path("pem"));
        let mut args =
            vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-sha256"];
        args.extend(["-nodes", "-days", "3650", "-subj", "/CN=Plain", "-keyout", &key, "-out", &pem]);
        args.extend(["-addext", "keyUsage=critical,keyCertSign"]);
        openssl(&args)?;
        root
    };
    let made = unmarked.sign(
        &asked,
        "authorityKeyIdentifier=keyid\n",
        &["-days", "365", "-copy_extensions", "copyall"],
    );
    let made = made.context("sha384 by a P-256 root")?;
    refuse(
        "a lab's root that does not say so",
        &made,
        &unmarked.path("pem"),
        &["lab trust domain", "ecdsa-with-SHA256"],
    )?;
    let constrained =
        Root::new(&bed, "constrained", &["-addext", "nameConstraints=critical,permitted;URI:test.example"])?;
    refuse(
        "a constrained root",
        &constrained.signed(&asked)?,
        &constrained.path("pem"),
        &["for 1 fault:", "nameConstraints"],
    )?;

    // Nothing of all that has left a trace; the good one is taken, and its root stands for no other hierarchy.
    let missing = bed.hallmark(&["ca", "install", "enterprise", &good])?;
    assert!(String::from_utf8_lossy(&missing.stderr).contains("give it along"), "no root is known yet");
    install(&bed, "enterprise", &good, &root)?;
    let shared = root.signed(&csr(&bed, "advanced")?)?;
    let said = refused(&bed, "advanced", &shared, &root.path("pem"))?;
    assert!(said.contains("its key is the enterprise root's"), "{said}");
    Ok(())
}

#[test]
fn orders_about_cas_are_operators_alone() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        skip("another user's process needs root to be started");
        return Ok(());
    }
    let bed = Bed::start(BedOptions::default())?;
    let everybody = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
    };
    everybody(&bed.admin_socket(), 0o666)?;
    everybody(&bed.path(""), 0o755)?;
    let copy = bed.path("hallmark-for-all");
    std::fs::copy(binary("hallmark")?, &copy)?;
    everybody(&copy, 0o755)?;
    let pem = bed.path("some.pem");
    std::fs::copy(bed.path("data/public/foundation.pem"), &pem)?;
    everybody(&pem, 0o644)?;
    let pem = pem.display().to_string();
    for order in [
        &["ca", "list"][..],
        &["ca", "rotate"],
        &["ca", "rotate", "enterprise", "--root"],
        &["ca", "taint", "enterprise", "--reason", "mine now"],
        &["ca", "csr", "enterprise"],
        &["ca", "install", "enterprise", &pem],
    ] {
        let out = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&copy)
            .arg("--admin-socket")
            .arg(bed.admin_socket())
            .args(order)
            .output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains("not an operator"), "{order:?}: {said}");
    }
    assert!(cas(&bed, &["--all"])?.iter().all(|ca| ca.generation == 1 && ca.state == "active"));
    Ok(())
}
