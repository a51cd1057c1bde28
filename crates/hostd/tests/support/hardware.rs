//! Keys that behave as if they were in hardware.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use hallmark_core::tier::Custody;
use hallmark_hostd::keys::{AgentKey, KeyError, KeyFuture, KeySpec, KeyStore};
use hallmark_proto::issuer::{TpmKey, issue_item};
use tonic::codegen::Bytes;

#[derive(Default)]
pub struct FakeHardware {
    alive: Arc<AtomicUsize>,
    made: AtomicUsize,
    lost: Arc<AtomicBool>,
}

impl FakeHardware {
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    pub fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    /// Every key made so far signs no more.
    pub fn lose_keys(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }
}

impl KeyStore for FakeHardware {
    fn create<'a>(&'a self, spec: &'a KeySpec) -> KeyFuture<'a, Arc<dyn AgentKey>> {
        Box::pin(async move {
            self.made.fetch_add(1, Ordering::SeqCst);
            self.alive.fetch_add(1, Ordering::SeqCst);
            self.lost.store(false, Ordering::SeqCst);
            Ok(Arc::new(Key {
                pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap(),
                spec: spec.clone(),
                alive: self.alive.clone(),
                lost: self.lost.clone(),
            }) as Arc<dyn AgentKey>)
        })
    }
}

struct Key {
    pair: EcdsaKeyPair,
    spec: KeySpec,
    alive: Arc<AtomicUsize>,
    lost: Arc<AtomicBool>,
}

impl Drop for Key {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AgentKey for Key {
    fn custody(&self) -> Custody {
        Custody::TpmCertified
    }

    fn public_point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>> {
        Box::pin(async move {
            if self.lost.load(Ordering::SeqCst) {
                let custody = Custody::TpmCertified;
                return Err(KeyError::Hardware { custody, reason: "policy".into(), lost: true });
            }
            let digest = Digest::import_less_safe(&digest, &SHA256).unwrap();
            Ok(self.pair.sign_digest(&digest).unwrap().as_ref().to_vec())
        })
    }

    fn fits(&self, custody: Custody, spec: &KeySpec) -> bool {
        custody == Custody::TpmCertified && *spec == self.spec
    }

    fn evidence(&self) -> issue_item::Key {
        issue_item::Key::Tpm(TpmKey { certification: None, policy_pcrs: vec![] })
    }

    fn release(&self) -> Option<Bytes> {
        None
    }
}
