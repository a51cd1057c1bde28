//! Keys in the host's TPM, certified by its AK, and if wanted bound to PCRs.

use std::sync::Arc;

use hallmark_core::tier::Custody;
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::issue_item;
use hallmark_tpm::{Certification, HOST, Tpm, TpmError, TpmKey};
use tonic::codegen::Bytes;

use super::{AgentKey, KeyError, KeyFuture, KeySpec, KeyStore, public_point};

/// Makes keys in the TPM. Each user has a lane of his own there: one whose agents ask for many signatures
/// delays another user's by one of them. Within a user, an instance has no more than
/// `limits.sign_concurrency` in the lane.
pub struct TpmKeys {
    tpm: Tpm,
}

fn lane(user: u32) -> u64 {
    HOST + 1 + u64::from(user)
}

impl TpmKeys {
    /// In this TPM.
    pub fn new(tpm: Tpm) -> Self {
        Self { tpm }
    }
}

impl KeyStore for TpmKeys {
    fn create<'a>(&'a self, spec: &'a KeySpec) -> KeyFuture<'a, Arc<dyn AgentKey>> {
        Box::pin(async move {
            let lane = lane(spec.user);
            let policy_pcrs = spec.bind_pcrs.iter().copied().collect();
            let wanted = hallmark_tpm::KeySpec { policy_pcrs };
            // Freshness of the certification is the quote's matter: the key is in the CSR, which it signs.
            let made = self.tpm.certified_key(&wanted, [0; 32], lane).await;
            let (key, certification) = made.map_err(refused)?;
            let public_point = public_point(key.spki_der())?;
            let tpm = self.tpm.clone();
            Ok(Arc::new(Key { tpm, key, certification, public_point, lane, spec: spec.clone() })
                as Arc<dyn AgentKey>)
        })
    }
}

/// A wrapped blob: only its TPM can use it, and dropping it is its end.
struct Key {
    tpm: Tpm,
    key: TpmKey,
    certification: Certification,
    public_point: Vec<u8>,
    lane: u64,
    spec: KeySpec,
}

impl AgentKey for Key {
    fn custody(&self) -> Custody {
        Custody::TpmCertified
    }

    fn public_point(&self) -> &[u8] {
        &self.public_point
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>> {
        Box::pin(async move { self.tpm.sign(&self.key, digest, self.lane).await.map_err(refused) })
    }

    fn fits(&self, custody: Custody, spec: &KeySpec) -> bool {
        matches!(custody, Custody::TpmCertified | Custody::Simulated) && *spec == self.spec
    }

    fn evidence(&self) -> issue_item::Key {
        issue_item::Key::Tpm(wire::TpmKey {
            certification: Some(certification(&self.certification)),
            policy_pcrs: self.key.policy_pcrs().iter().map(|pcr| u32::from(*pcr)).collect(),
        })
    }

    fn release(&self) -> Option<Bytes> {
        None
    }
}

/// As it goes over the wire.
pub(crate) fn certification(certification: &Certification) -> wire::KeyCertification {
    wire::KeyCertification {
        public: certification.public.clone().into(),
        attest: certification.attest.clone().into(),
        signature: certification.signature.clone().into(),
    }
}

pub(crate) fn refused(error: TpmError) -> KeyError {
    let custody = Custody::TpmCertified;
    match error {
        TpmError::Busy { .. } | TpmError::DeadlinePassed { .. } => KeyError::Busy { custody },
        TpmError::PolicyFailed { .. } | TpmError::ForeignKey { .. } => {
            KeyError::Hardware { custody, reason: error.to_string(), lost: true }
        }
        _ => KeyError::Hardware { custody, reason: error.to_string(), lost: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_the_host_have_lanes_of_their_own() {
        let lanes = [HOST, lane(0), lane(1), lane(u32::MAX)];
        assert!(lanes.windows(2).all(|pair| pair[0] < pair[1]), "{lanes:?}");
    }
}
