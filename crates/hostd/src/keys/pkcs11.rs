//! Keys on a PKCS#11 token, of which its module asserts that they cannot leave it.

use std::sync::Arc;

use hallmark_core::tier::Custody;
use hallmark_hsm::{HsmError, Token};
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::issue_item;
use tonic::codegen::Bytes;

use super::{AgentKey, KeyError, KeyFuture, KeySpec, KeyStore, public_point};

/// Makes keys on the token. PKCS#11 calls block, so they are made where blocking is allowed.
pub struct Pkcs11Keys {
    token: Token,
}

impl Pkcs11Keys {
    /// On this token.
    pub fn new(token: Token) -> Self {
        Self { token }
    }
}

impl KeyStore for Pkcs11Keys {
    fn create<'a>(&'a self, _spec: &'a KeySpec) -> KeyFuture<'a, Arc<dyn AgentKey>> {
        Box::pin(async move {
            let token = self.token.clone();
            let key = blocking(move || token.generate_agent_key()).await?;
            let public_point = public_point(key.spki_der())?;
            Ok(Arc::new(Key { key: Arc::new(key), public_point }) as Arc<dyn AgentKey>)
        })
    }
}

struct Key {
    key: Arc<hallmark_hsm::AgentKey>,
    public_point: Vec<u8>,
}

impl AgentKey for Key {
    fn custody(&self) -> Custody {
        Custody::Pkcs11Asserted
    }

    fn public_point(&self) -> &[u8] {
        &self.public_point
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>> {
        let key = self.key.clone();
        Box::pin(blocking(move || key.sign_digest(digest)))
    }

    fn fits(&self, custody: Custody, spec: &KeySpec) -> bool {
        // A token knows nothing of PCRs; the issuer refuses registrations that want both.
        custody == Custody::Pkcs11Asserted && spec.bind_pcrs.is_empty()
    }

    fn evidence(&self) -> issue_item::Key {
        let said = self.key.assertion();
        issue_item::Key::Pkcs11(wire::Pkcs11Key {
            token_label: said.token_label.clone(),
            token_model: said.token_model.clone(),
            token_serial: said.token_serial.clone(),
            sensitive: said.sensitive,
            always_sensitive: said.always_sensitive,
            never_extractable: said.never_extractable,
            local: said.local,
        })
    }

    fn release(&self) -> Option<Bytes> {
        None
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HsmError> + Send + 'static,
) -> Result<T, KeyError> {
    let custody = Custody::Pkcs11Asserted;
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            let lost = matches!(error, HsmError::AgentKeyLost { .. });
            Err(KeyError::Hardware { custody, reason: error.to_string(), lost })
        }
        Err(error) => Err(KeyError::Hardware { custody, reason: error.to_string(), lost: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::digest::{SHA256, digest};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use hallmark_kit::softhsm::{SoftHsm, in_child};

    fn open(hsm: &SoftHsm) -> Token {
        Token::open(hallmark_hsm::TokenConfig {
            module: hsm.module_path().to_owned(),
            label: hsm.label().to_owned(),
            pin: zeroize::Zeroizing::new(hsm.pin().to_owned()),
            max_sessions: 4,
        })
        .unwrap()
    }

    #[test]
    fn keys_sign_on_the_token_and_are_destroyed_with_their_instance() {
        in_child(
            "keys::pkcs11::tests::keys_sign_on_the_token_and_are_destroyed_with_their_instance",
            |hsm| {
                let token = open(hsm);
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(async {
                    let keys = Pkcs11Keys::new(token.clone());
                    let key = keys.create(&KeySpec::default()).await.unwrap();
                    let hash = digest(&SHA256, b"message");
                    let signature = key.sign(hash.as_ref().try_into().unwrap()).await.unwrap();
                    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_point());
                    public.verify(b"message", &signature).unwrap();
                    assert!(key.release().is_none());
                    let issue_item::Key::Pkcs11(said) = key.evidence() else { panic!("PKCS#11 evidence") };
                    assert!(said.sensitive && said.never_extractable && said.local);
                    assert_eq!(said.token_label, hsm.label());
                    assert_eq!(token.agent_keys().unwrap(), 1);
                    drop(key);
                    assert_eq!(token.agent_keys().unwrap(), 0);
                });
            },
        );
    }
}
