//! Certification requests (PKCS#10, RFC 2986) for keys that sign elsewhere and take their time.
//!
//! rcgen signs synchronously. The request is therefore built twice: once to learn what is to be signed,
//! and, when the key has answered, once more with its signature.

use std::cell::RefCell;

use aws_lc_rs::digest::{SHA256, digest};
use hallmark_core::id::{SpiffeId, Subject};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SignatureAlgorithm, SigningKey,
};

use super::{KeyError, KeyFuture};

/// A request in DER for `id`, signed by `sign` over the SHA-256 digest of its
/// CertificationRequestInfo.
///
/// # Errors
/// The key did not sign.
pub async fn request<'a>(
    id: &SpiffeId,
    public_point: &[u8],
    sign: impl FnOnce([u8; 32]) -> KeyFuture<'a, Vec<u8>>,
) -> Result<Vec<u8>, KeyError> {
    let message = {
        let draft = Remote { point: public_point, seen: RefCell::default(), signature: None };
        build(id, &draft)?;
        draft.seen.into_inner()
    };
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &message).as_ref());
    let signature = sign(hash).await?;
    let signed = Remote { point: public_point, seen: RefCell::default(), signature: Some(signature) };
    let request = build(id, &signed)?;
    if signed.seen.into_inner() != message {
        return Err(KeyError::Csr("the request was not built the same way twice".into()));
    }
    Ok(request)
}

fn build(id: &SpiffeId, key: &Remote<'_>) -> Result<Vec<u8>, KeyError> {
    let wrong = |e: rcgen::Error| KeyError::Csr(e.to_string());
    let mut params = CertificateParams::default();
    let uri = id.to_string().try_into().map_err(wrong)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.distinguished_name = DistinguishedName::new();
    let name = match &id.subject {
        Subject::Agent(agent) | Subject::Task(agent, _) => agent.as_str(),
        Subject::Host(host) => host.as_str(),
        Subject::Issuer(issuer) => issuer.as_str(),
    };
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params.serialize_request(key).map_err(wrong)?.der().to_vec())
}

struct Remote<'a> {
    point: &'a [u8],
    seen: RefCell<Vec<u8>>,
    signature: Option<Vec<u8>>,
}

impl PublicKeyData for Remote<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Remote<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        *self.seen.borrow_mut() = message.to_vec();
        Ok(self.signature.clone().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyStore, SoftwareKeys};

    #[tokio::test]
    async fn the_request_proves_possession_and_names_the_agent() {
        let id: SpiffeId = "spiffe://example.org/agent/mailer".parse().unwrap();
        let key = SoftwareKeys.create(&Default::default()).await.unwrap();
        let der = request(&id, key.public_point(), |digest| key.sign(digest)).await.unwrap();
        // rcgen verifies the signature while it reads the request.
        let read = rcgen::CertificateSigningRequestParams::from_der(&der.into()).unwrap();
        assert_eq!(read.params.subject_alt_names, [SanType::URI(id.to_string().try_into().unwrap())]);
        assert_eq!(read.public_key.der_bytes(), key.public_point());
    }

    #[tokio::test]
    async fn a_key_that_does_not_sign_makes_no_request() {
        let id: SpiffeId = "spiffe://example.org/agent/mailer".parse().unwrap();
        let refuse = |_| Box::pin(async { Err(KeyError::Software("no")) }) as KeyFuture<'_, _>;
        assert!(request(&id, &[4; 65], refuse).await.is_err());
    }
}
