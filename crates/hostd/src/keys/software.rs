//! Keys in this process's memory, never on disk: P-256 by aws-lc-rs.

use std::sync::Arc;

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use hallmark_core::tier::Custody;
use hallmark_proto::issuer::{SoftwareKey as Evidence, issue_item};
use tonic::codegen::Bytes;
use zeroize::Zeroizing;

use super::{AgentKey, KeyError, KeyFuture, KeySpec, KeyStore};

/// Makes keys in memory.
#[derive(Debug)]
pub struct SoftwareKeys;

impl KeyStore for SoftwareKeys {
    fn create<'a>(&'a self, _spec: &'a KeySpec) -> KeyFuture<'a, Arc<dyn AgentKey>> {
        Box::pin(async { Ok(Arc::new(SoftwareKey::generate()?) as Arc<dyn AgentKey>) })
    }
}

/// One key; aws-lc wipes it when it is dropped.
pub(crate) struct SoftwareKey {
    pair: EcdsaKeyPair,
}

impl SoftwareKey {
    pub(crate) fn generate() -> Result<Self, KeyError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(|pair| Self { pair })
            .map_err(|_| KeyError::Software("the key could not be generated"))
    }

    /// The key as PKCS#8.
    pub(crate) fn pkcs8(&self) -> Option<Zeroizing<Vec<u8>>> {
        // The document wipes itself when it is dropped.
        self.pair.to_pkcs8v1().ok().map(|document| Zeroizing::new(document.as_ref().to_vec()))
    }

    fn sign_digest(&self, digest: [u8; 32]) -> Result<Vec<u8>, KeyError> {
        Digest::import_less_safe(&digest, &SHA256)
            .and_then(|digest| self.pair.sign_digest(&digest))
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| KeyError::Software("the signature could not be made"))
    }
}

impl AgentKey for SoftwareKey {
    fn custody(&self) -> Custody {
        Custody::Software
    }

    fn public_point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>> {
        Box::pin(async move { self.sign_digest(digest) })
    }

    fn fits(&self, _custody: Custody, _spec: &KeySpec) -> bool {
        // It was given away with the certificate it was made for.
        false
    }

    fn evidence(&self) -> issue_item::Key {
        issue_item::Key::Software(Evidence {})
    }

    fn release(&self) -> Option<Bytes> {
        self.pkcs8().map(Bytes::from_owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

    #[tokio::test]
    async fn signatures_verify_and_the_released_key_is_the_same_key() {
        let key = SoftwareKeys.create(&KeySpec::default()).await.unwrap();
        let digest = aws_lc_rs::digest::digest(&SHA256, b"message");
        let signature = key.sign(digest.as_ref().try_into().unwrap()).await.unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_point());
        public.verify(b"message", &signature).unwrap();
        let released =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.release().unwrap()).unwrap();
        assert_eq!(released.public_key().as_ref(), key.public_point());
    }
}
