//! The verifier against tpm2-tools and real software TPMs: what we make they open, what they make we read, and
//! where we refuse they refuse.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use hallmark_core::ek::templates::{self, EkTemplate};
use hallmark_core::ek::{EkError, EkRoots, Leniency, appraise_certificate, public_digest};
use hallmark_core::evidence::{
    KeyCertification, KeyRefusal, Quote, QuoteRefusal, appraise_ak, appraise_key, appraise_refresh,
    refresh_transcript,
};
use hallmark_core::pcr::{PcrSelection, PcrValues};
use hallmark_core::tpm::{
    Attest, ClockInfo, Name, Public, RH_ENDORSEMENT, make_credential, policy_pcr_digest,
};
use hallmark_kit::swtpm::{EkProfile, NV_EK_P256, NV_EK_P384, NV_EK_RSA2048, Swtpm, SwtpmCa};
use rand_core::OsRng;

const NONCE: [u8; 32] = [0x5a; 32];
const HOST: &str = "oracle-host";

fn file(tpm: &Swtpm, name: &str) -> PathBuf {
    tpm.dir().join(name)
}

fn read(tpm: &Swtpm, name: &str) -> Vec<u8> {
    std::fs::read(file(tpm, name)).unwrap()
}

fn write(tpm: &Swtpm, name: &str, bytes: &[u8]) {
    std::fs::write(file(tpm, name), bytes).unwrap();
}

fn tool(tpm: &Swtpm, line: &str) {
    let mut words = line.split_whitespace();
    tpm.tool(words.next().unwrap(), words).unwrap();
    // No resource manager stands between: what a tool leaves loaded stays loaded.
    tpm.tool("tpm2_flushcontext", ["-t"]).unwrap();
}

fn tool_refuses(tpm: &Swtpm, line: &str) -> bool {
    let mut words = line.split_whitespace();
    let refused = tpm.tool(words.next().unwrap(), words).is_err();
    tpm.tool("tpm2_flushcontext", ["-t"]).unwrap();
    refused
}

/// A TPM2B_PUBLIC file, without its size.
fn public(tpm: &Swtpm, name: &str) -> Public {
    Public::parse(&read(tpm, name)[2..]).unwrap()
}

fn openssl(args: &[&str], dir: &Path) -> Vec<u8> {
    let out = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// An AK as ours is: a primary of the endorsement hierarchy.
fn make_ak(tpm: &Swtpm, algorithm: &str) -> Public {
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign";
    tool(tpm, &format!("tpm2_createprimary -C e -g sha256 -G {algorithm} -a {attributes} -c ak.ctx"));
    tool(tpm, "tpm2_readpublic -c ak.ctx -f tss -o ak.pub -n ak.name");
    tool(tpm, "tpm2_readpublic -c ak.ctx -f pem -o ak.pem");
    let ak = public(tpm, "ak.pub");
    assert_eq!(ak.name().as_bytes(), read(tpm, "ak.name"), "the TPM's own name for it");
    ak
}

fn blank() -> Swtpm {
    let mut tpm = Swtpm::blank().unwrap();
    tpm.start().unwrap();
    tpm
}

#[test]
fn our_credentials_open_in_a_tpm_and_only_there() {
    let tpm = blank();
    for (algorithm, template, with_session) in [
        ("rsa", EkTemplate::L1Rsa2048, true),
        ("ecc", EkTemplate::L2P256, true),
        ("ecc384", EkTemplate::H3P384, false),
    ] {
        tool(&tpm, &format!("tpm2_createek -c ek.ctx -G {algorithm} -u ek.pub -f tss"));
        let ek = public(&tpm, "ek.pub");
        assert_eq!(templates::appraise(&ek), Ok(template), "{algorithm}");
        let ak = make_ak(&tpm, "ecc256:ecdsa-sha256:null");
        appraise_ak(&ak, &ek).unwrap();

        let activate = |made: &hallmark_core::tpm::Credential| -> bool {
            // The tools' file: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.
            let header = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];
            write(&tpm, "cred", &[&header[..], &made.id_object, &made.encrypted_secret].concat());
            let mut line = "tpm2_activatecredential -c ak.ctx -C ek.ctx -i cred -o opened".to_owned();
            if with_session {
                tool(&tpm, "tpm2_startauthsession --policy-session -S s.ctx");
                tool(&tpm, "tpm2_policysecret -S s.ctx -c e");
                line.push_str(" -P session:s.ctx");
            }
            let _ = std::fs::remove_file(file(&tpm, "opened"));
            let refused = tool_refuses(&tpm, &line);
            if with_session {
                tool(&tpm, "tpm2_flushcontext s.ctx");
            }
            !refused
        };
        let secret = [0x33; 32];
        let made = make_credential(&ek, ak.name(), &secret, &mut OsRng).unwrap();
        assert!(activate(&made), "{algorithm}");
        assert_eq!(read(&tpm, "opened"), secret, "{algorithm}");

        // A credential for another name, and one whose halves belong to different credentials.
        let mut other = ak.name().as_bytes().to_vec();
        other[10] ^= 1;
        let for_other = make_credential(&ek, &Name::parse(&other).unwrap(), &secret, &mut OsRng).unwrap();
        assert!(!activate(&for_other), "{algorithm}: opened for another AK");
        let mut swapped = make_credential(&ek, ak.name(), &secret, &mut OsRng).unwrap();
        swapped.encrypted_secret = made.encrypted_secret;
        assert!(!activate(&swapped), "{algorithm}: opened a swapped blob");
    }
}

/// A quote by the tools over sha256:0,4,7 and what they say of it.
#[derive(Clone)]
struct Quoted {
    attest: Vec<u8>,
    signature: Vec<u8>,
    values: Vec<u8>,
}

impl Quoted {
    fn by(tpm: &Swtpm, scheme: &str, hash: &str, qualifying: &[u8]) -> Self {
        let qualifying = hex::encode(qualifying);
        tool(
            tpm,
            &format!(
                "tpm2_quote -c ak.ctx -l sha256:0,4,7 -q {qualifying} --scheme {scheme} -g {hash} -m quote.msg -s quote.sig -o quote.pcrs"
            ),
        );
        tool(tpm, "tpm2_pcrread sha256:0,4,7 -o values");
        Self {
            attest: read(tpm, "quote.msg"),
            signature: read(tpm, "quote.sig"),
            values: read(tpm, "values"),
        }
    }

    fn pcrs(&self) -> PcrValues {
        PcrValues::new([0, 4, 7].into_iter().zip(self.values.chunks(32))).unwrap()
    }

    fn ours(&self, ak: &Public) -> Result<(), QuoteRefusal> {
        let pcrs = self.pcrs();
        let quote = Quote { attest: &self.attest, signature: &self.signature, pcrs: &pcrs, event_log: &[] };
        let wanted = PcrSelection::new([0, 4, 7]).unwrap();
        appraise_refresh(
            &quote,
            ak,
            HOST,
            &NONCE,
            &wanted,
            &ClockInfo { safe: true, firmware_version: 0, ..ClockInfo::default() },
        )
        .map(drop)
    }

    /// OpenSSL on the same bytes: tpm2_checkquote does not know RSAPSS.
    fn openssl_accepts_pss(&self, tpm: &Swtpm) -> bool {
        write(tpm, "check.msg", &self.attest);
        // TPMT_SIGNATURE: algorithm, hash and size stand before the signature.
        write(tpm, "check.sig", &self.signature[6..]);
        let pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:auto"];
        Command::new("openssl")
            .args(["dgst", "-sha256", "-verify", "ak.pem", "-signature", "check.sig"])
            .args(pss)
            .arg("check.msg")
            .current_dir(tpm.dir())
            .output()
            .unwrap()
            .status
            .success()
    }

    /// tpm2_checkquote on the same bytes.
    fn theirs(&self, tpm: &Swtpm, hash: &str, qualifying: &[u8]) -> bool {
        write(tpm, "check.msg", &self.attest);
        write(tpm, "check.sig", &self.signature);
        let qualifying = hex::encode(qualifying);
        let line = format!(
            "tpm2_checkquote -u ak.pem -m check.msg -s check.sig -f quote.pcrs -g {hash} -q {qualifying}"
        );
        !tool_refuses(tpm, &line)
    }
}

#[test]
fn our_quote_check_agrees_with_theirs() {
    let tpm = blank();
    tpm.extend(4, &[0x77; 32]).unwrap();
    for (algorithm, scheme, hash) in [
        ("ecc256:ecdsa-sha256:null", "ecdsa", "sha256"),
        ("rsa2048:rsassa-sha256:null", "rsassa", "sha256"),
        ("ecc384:ecdsa-sha384:null", "ecdsa", "sha384"),
    ] {
        let ak = make_ak(&tpm, algorithm);
        let qualifying = refresh_transcript(&NONCE, ak.name(), HOST);
        let quoted = Quoted::by(&tpm, scheme, hash, &qualifying);
        let attest = Attest::parse(&quoted.attest).unwrap();
        assert_eq!(attest.qualified_signer, ak.name().qualified_under(RH_ENDORSEMENT), "{algorithm}");
        assert!(quoted.theirs(&tpm, hash, &qualifying), "{algorithm}");
        quoted.ours(&ak).unwrap();

        // One bit of the statement, one of the signature.
        let last = quoted.attest.len() - 1;
        for at in [6, 40, last] {
            let mut forged = quoted.clone();
            forged.attest[at] ^= 1;
            assert!(
                forged.ours(&ak).is_err() && !forged.theirs(&tpm, hash, &qualifying),
                "{algorithm} at {at}"
            );
        }
        let mut forged = quoted.clone();
        *forged.signature.last_mut().unwrap() ^= 1;
        assert!(forged.ours(&ak).is_err() && !forged.theirs(&tpm, hash, &qualifying), "{algorithm}");
        // Another nonce.
        let stale = Quoted::by(&tpm, scheme, hash, &[1; 32]);
        assert!(matches!(stale.ours(&ak), Err(QuoteRefusal::Nonce { .. })), "{algorithm}");
        assert!(!stale.theirs(&tpm, hash, &qualifying), "{algorithm}");
        // A PCR that moved after the quote: the values no longer belong to it.
        let mut moved = Quoted::by(&tpm, scheme, hash, &qualifying);
        moved.values[63] ^= 1;
        assert!(matches!(moved.ours(&ak), Err(QuoteRefusal::PcrDigest { .. })), "{algorithm}");
    }
}

#[test]
fn our_pss_check_agrees_with_openssl() {
    let tpm = blank();
    let ak = make_ak(&tpm, "rsa2048:rsapss-sha256:null");
    let quoted = Quoted::by(&tpm, "rsapss", "sha256", &refresh_transcript(&NONCE, ak.name(), HOST));
    assert!(quoted.openssl_accepts_pss(&tpm));
    quoted.ours(&ak).unwrap();
    let mut forged = quoted.clone();
    forged.attest[40] ^= 1;
    assert!(!forged.openssl_accepts_pss(&tpm));
    assert!(matches!(forged.ours(&ak), Err(QuoteRefusal::Signature(_))));
}

#[test]
fn a_quote_under_the_owner_hierarchy_is_refused() {
    let tpm = blank();
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign";
    tool(
        &tpm,
        &format!("tpm2_createprimary -C o -g sha256 -G ecc256:ecdsa-sha256:null -a {attributes} -c ak.ctx"),
    );
    tool(&tpm, "tpm2_readpublic -c ak.ctx -f tss -o ak.pub");
    let ak = public(&tpm, "ak.pub");
    let quoted = Quoted::by(&tpm, "ecdsa", "sha256", &refresh_transcript(&NONCE, ak.name(), HOST));
    assert!(matches!(quoted.ours(&ak), Err(QuoteRefusal::QualifiedSigner { .. })));
}

#[test]
fn certified_keys_are_told_from_exportable_ones() {
    let tpm = blank();
    let ak = make_ak(&tpm, "ecc256:ecdsa-sha256:null");
    tool(&tpm, "tpm2_createprimary -C o -G ecc256 -c srk.ctx");
    let certify = |attributes: &str, extra: &str| {
        tool(
            &tpm,
            &format!(
                "tpm2_create -C srk.ctx -G ecc256:ecdsa-sha256 -a {attributes} {extra} -u key.pub -r key.priv"
            ),
        );
        tool(&tpm, "tpm2_load -C srk.ctx -u key.pub -r key.priv -c key.ctx");
        tool(&tpm, "tpm2_certify -c key.ctx -C ak.ctx -g sha256 -o key.attest -s key.sig");
        tool(&tpm, "tpm2_readpublic -c key.ctx -f der -o key.der");
    };
    let appraise = |policy: &PcrSelection, pcrs: &PcrValues| {
        let area = read(&tpm, "key.pub");
        appraise_key(
            &KeyCertification {
                public: &area[2..],
                attest: &read(&tpm, "key.attest"),
                signature: &read(&tpm, "key.sig"),
            },
            &ak,
            &read(&tpm, "key.der"),
            policy,
            pcrs,
        )
    };
    let none = PcrSelection::default();
    let no_values = PcrValues::default();
    certify("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign", "");
    let appraised = appraise(&none, &no_values).unwrap();
    assert_eq!(appraised.spki, read(&tpm, "key.der"));
    certify("sensitivedataorigin|userwithauth|sign", "");
    assert!(matches!(appraise(&none, &no_values), Err(KeyRefusal::Lacks { .. })));

    // A key that the TPM refuses to use once PCR 7 or 0 has changed.
    tool(&tpm, "tpm2_startauthsession -S trial.ctx");
    tool(&tpm, "tpm2_policypcr -S trial.ctx -l sha256:0,7 -L policy");
    tool(&tpm, "tpm2_flushcontext trial.ctx");
    tool(&tpm, "tpm2_pcrread sha256:0,7 -o values");
    let values = read(&tpm, "values");
    let digest =
        policy_pcr_digest(&[(7, values[32..].try_into().unwrap()), (0, values[..32].try_into().unwrap())]);
    assert_eq!(digest.as_slice(), read(&tpm, "policy"), "the TPM's own policy digest");
    let pcrs = PcrValues::new([(0, &values[..32]), (7, &values[32..])]).unwrap();
    let bound = PcrSelection::new([0, 7]).unwrap();
    certify("fixedtpm|fixedparent|sensitivedataorigin|sign", "-L policy");
    assert_eq!(appraise(&bound, &pcrs).unwrap().policy_pcrs, bound);
    assert!(matches!(appraise(&none, &pcrs), Err(KeyRefusal::Policy { .. })));
    let mut other = values.clone();
    other[40] ^= 1;
    let other = PcrValues::new([(0, &other[..32]), (7, &other[32..])]).unwrap();
    assert!(matches!(appraise(&bound, &other), Err(KeyRefusal::Policy { .. })));
    certify("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign", "-L policy");
    assert!(matches!(appraise(&bound, &pcrs), Err(KeyRefusal::PolicyOptional)));
}

#[test]
fn a_manufactured_tpms_certificates_lead_to_its_makers_root() {
    let home = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(home.path().join("maker")).unwrap();
    let stranger = SwtpmCa::new(home.path().join("stranger")).unwrap();
    let tpm = Swtpm::started(&ca, "oracle").unwrap();
    tpm.add_p256_ek(&ca, &EkProfile::default()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let roots = |ca: &SwtpmCa| {
        let mut roots = EkRoots::new();
        let pem = std::fs::read_to_string(ca.root_path()).unwrap()
            + &std::fs::read_to_string(ca.issuer_path()).unwrap();
        let report = roots.import_pem(&pem, now);
        assert!(report.refused.is_empty(), "{report:?}");
        roots
    };
    let (maker, strangers, none) = (roots(&ca), roots(&stranger), EkRoots::new());
    for (index, algorithm) in [(NV_EK_RSA2048, "rsa"), (NV_EK_P384, "ecc384"), (NV_EK_P256, "ecc")] {
        tool(&tpm, &format!("tpm2_createek -c ek.ctx -G {algorithm} -u ek.pub -f tss"));
        tool(&tpm, "tpm2_readpublic -c ek.ctx -f pem -o ek.pem");
        let ek = public(&tpm, "ek.pub");
        let spki = openssl(&["pkey", "-pubin", "-in", "ek.pem", "-outform", "DER"], tpm.dir());
        write(&tpm, "ek.spki", &spki);
        let digest = openssl(&["dgst", "-sha256", "-binary", "ek.spki"], tpm.dir());
        assert_eq!(public_digest(&ek).unwrap().as_slice(), digest, "{algorithm}");

        let mut certificate = tpm.read_nv(index).unwrap();
        let appraised =
            appraise_certificate(std::slice::from_ref(&certificate), &ek, &none, &maker, now).unwrap();
        assert!(appraised.simulated, "{algorithm}");
        assert_eq!(appraised.manufacturer.as_deref().map(str::to_lowercase).as_deref(), Some("id:00001014"));
        println!(
            "{algorithm}: {:?} by {:?}, leniencies {:?}",
            appraised.subject, appraised.issuer, appraised.leniencies
        );
        // Even under a vendor's root it says what it is.
        let chain = [certificate.clone()];
        assert!(appraise_certificate(&chain, &ek, &maker, &none, now).unwrap().simulated);
        let refused = appraise_certificate(&chain, &ek, &strangers, &strangers, now).unwrap_err();
        assert!(matches!(refused, EkError::UnknownIssuer { .. }), "{algorithm}: {refused}");
        certificate.resize(1600, 0xff);
        let padded = appraise_certificate(&[certificate], &ek, &none, &maker, now).unwrap();
        assert!(padded.leniencies.contains(&Leniency::NvPadding { fill: 0xff }));
        // A real certificate, but of this TPM's other EK.
        let other = if algorithm == "rsa" { NV_EK_P384 } else { NV_EK_RSA2048 };
        let other = tpm.read_nv(other).unwrap();
        assert!(matches!(
            appraise_certificate(&[other], &ek, &none, &maker, now),
            Err(EkError::OtherKey { .. })
        ));
    }
}
