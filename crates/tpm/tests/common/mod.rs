//! What every test here needs: a software TPM of its own, and the oracles.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::new_without_default)]

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use hallmark_kit::swtpm::{Swtpm, SwtpmCa};
use hallmark_tpm::{HostTpm, Tpm, TpmConfig, TpmKey};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use tempfile::TempDir;

/// A running software TPM with RSA and P-384 EK certificates, and the authority that made them.
pub struct Rig {
    pub ca: SwtpmCa,
    pub swtpm: Swtpm,
    _dir: TempDir,
}

impl Rig {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
        let swtpm = Swtpm::started(&ca, "host").unwrap();
        Self { ca, swtpm, _dir: dir }
    }

    pub fn config(&self) -> TpmConfig {
        TpmConfig::new(self.swtpm.tcti())
    }

    pub async fn open(&self) -> Tpm {
        Tpm::open(self.config()).await.unwrap()
    }

    /// Stops or continues the TPM's process, which makes a TPM that hangs.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.swtpm.pid().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// A credential made by tpm2-tools for an EK (TPMT_PUBLIC) and an AK name: id object and encrypted secret.
    pub fn make_credential(&self, ek_public: &[u8], ak_name: &[u8], secret: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let dir = self.swtpm.dir();
        fs::write(dir.join("ek.tpm2b"), tpm2b(ek_public)).unwrap();
        fs::write(dir.join("secret"), secret).unwrap();
        let name = hex::encode(ak_name);
        // With -T none the tool computes in software: the TPM that is asked later has no part in it.
        let arguments = ["-T", "none", "-u", "ek.tpm2b", "-s", "secret", "-n", &name, "-o", "cred"];
        self.swtpm.tool("tpm2_makecredential", arguments).unwrap();
        let blob = fs::read(dir.join("cred")).unwrap();
        // Magic 0xbadcc0de and version 1, then both TPM2Bs.
        assert_eq!([0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1], blob[..8]);
        let rest = &blob[8..];
        let split = 2 + usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        (rest[..split].to_vec(), rest[split..].to_vec())
    }

    pub fn credential_for(&self, host: &HostTpm, secret: &[u8]) -> (Vec<u8>, Vec<u8>) {
        self.make_credential(&host.ek_public, &host.ak_name, secret)
    }
}

/// With the size in front.
pub fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

/// Verifies with aws-lc: the message's digest is what the TPM signed.
pub fn verify(key: &TpmKey, message: &[u8], signature: &[u8]) {
    let point = &key.spki_der()[key.spki_der().len() - 65..];
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature).unwrap();
}
