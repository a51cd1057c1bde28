//! The endorsement key: who made this TPM, and the one door through which a credential for its AK comes in.

use crate::device::Device;
use crate::error::{TpmError, command, kind};
use crate::{EkAlgorithm, HostTpm, wire};
use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, ek};
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::constants::tss::TPM2_PERSISTENT_FIRST;
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{EccParameter, EccPoint, EncryptedSecret, IdObject, Public, PublicKeyRsa};
use tss_esapi::traits::UnMarshall;
use tss_esapi::utils::TpmsContext;
use zeroize::Zeroizing;

/// The EK as it is kept between requests.
pub(crate) struct Ek {
    public: Public,
    place: Place,
}

enum Place {
    /// The maker, or an earlier user, made it persistent.
    Persistent(PersistentTpmHandle),
    Saved(TpmsContext),
}

/// Certificates a chain may have in NV (TCG EK Credential Profile 2.6, 2.2.1.5.2).
const CHAIN: std::ops::RangeInclusive<u32> = 0x01c0_0100..=0x01c0_01ff;
/// EK persistent handles (TCG TPM v2.0 Provisioning Guidance, 7.8).
const EK_PERSISTENT: std::ops::RangeInclusive<u32> = 0x8101_0000..=0x8101_ffff;
const RSA_BYTES: usize = 256;

impl Device {
    /// Who this TPM is: EK and certificate as the maker left them, and the AK.
    pub(crate) fn identity(&mut self, wanted: Option<EkAlgorithm>) -> Result<HostTpm, TpmError> {
        self.with_ak(|_, _| Ok(()))?;
        let indices = self.ek_indices()?;
        let algorithm = choose(wanted, &indices);
        let mut certificates = Vec::new();
        if indices.contains(&algorithm.certificate_index()) {
            certificates.push(self.read_nv(algorithm.certificate_index())?);
        }
        let certificate = certificates.first().cloned().unwrap_or_default();
        for index in indices.iter().filter(|index| CHAIN.contains(index)) {
            certificates.push(self.read_nv(*index)?);
        }
        let ek = match self.persistent_ek(&certificate)? {
            Some((handle, public)) => Ek { public, place: Place::Persistent(handle) },
            None => self.make_ek(algorithm, &indices)?,
        };
        let ek_public = wire::bytes("read the endorsement key", &ek.public)?;
        let ek_certificate_matches = contains_key(&certificate, &ek.public);
        if !certificate.is_empty() && !ek_certificate_matches {
            tracing::warn!(
                ?algorithm,
                "the EK certificate in the TPM is for another key than its template makes"
            );
        }
        self.ek = Some(ek);
        let (ak_public, ak_name) = match &self.ak {
            Some(ak) => (ak.public.clone(), ak.name.clone()),
            None => return Err(TpmError::Unexpected { operation: "identity", what: "no attestation key" }),
        };
        Ok(HostTpm {
            ek_algorithm: algorithm,
            ek_certificates: split_chain(certificates),
            ek_certificate_matches,
            ek_public,
            ak_public,
            ak_name,
        })
    }

    /// TPM2_ActivateCredential (Part 3, 12.5): the secret, if the credential was made for this EK and AK.
    pub(crate) fn activate_credential(
        &mut self,
        wanted: Option<EkAlgorithm>,
        id_object: &[u8],
        encrypted_secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let id_object = IdObject::try_from(wire::sized("TPM2B_ID_OBJECT", id_object)?)
            .map_err(|source| TpmError::CredentialRefused { source })?;
        let secret = EncryptedSecret::try_from(wire::sized("TPM2B_ENCRYPTED_SECRET", encrypted_secret)?)
            .map_err(|source| TpmError::CredentialRefused { source })?;
        if self.ek.is_none() {
            self.identity(wanted)?;
        }
        self.with_ak(|device, ak| {
            device.with_ek(|device, ek, public| {
                device.with_ek_authorised(&public, |device, authorised| {
                    device.with_hmac_session(|device, encrypting| {
                        let sessions = (Some(AuthSession::Password), Some(authorised), Some(encrypting));
                        let activated = device.context.execute_with_sessions(sessions, |context| {
                            context.activate_credential(ak, ek, id_object, secret)
                        });
                        let digest = activated.map_err(|source| device.refusal(source))?;
                        Ok(Zeroizing::new(digest.value().to_vec()))
                    })
                })
            })
        })
    }

    fn with_ek<T>(
        &mut self,
        f: impl FnOnce(&mut Self, KeyHandle, Public) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let Some(ek) = &self.ek else {
            return Err(TpmError::Unexpected { operation: "use the endorsement key", what: "there is none" });
        };
        let public = ek.public.clone();
        match &ek.place {
            Place::Persistent(handle) => {
                let handle = *handle;
                self.with_persistent(handle, |device, handle| f(device, handle, public))
            }
            Place::Saved(saved) => {
                let saved = saved.clone();
                let handle = self.load_saved("load the endorsement key", saved)?;
                self.with_object(handle, |device, handle| f(device, handle, public))
            }
        }
    }

    /// The low-range templates clear `userWithAuth` and demand PolicySecret(endorsement); the high-range ones set it.
    fn with_ek_authorised<T>(
        &mut self,
        public: &Public,
        f: impl FnOnce(&mut Self, AuthSession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        if public.object_attributes().user_with_auth() {
            f(self, AuthSession::Password)
        } else {
            self.with_endorsement_policy(public.name_hashing_algorithm(), f)
        }
    }

    /// A persistent storage key whose public key is the certificate's.
    fn persistent_ek(
        &mut self,
        certificate: &[u8],
    ) -> Result<Option<(PersistentTpmHandle, Public)>, TpmError> {
        const OPERATION: &str = "read a persistent key";
        for handle in self.handles(TPM2_PERSISTENT_FIRST)? {
            if !EK_PERSISTENT.contains(&handle) {
                continue;
            }
            let handle = PersistentTpmHandle::new(handle).map_err(command(OPERATION))?;
            let (public, _, _) = self.with_persistent(handle, |device, object| {
                device.context.read_public(object).map_err(command(OPERATION))
            })?;
            let attributes = public.object_attributes();
            if attributes.restricted() && attributes.decrypt() && contains_key(certificate, &public) {
                return Ok(Some((handle, public)));
            }
        }
        Ok(None)
    }

    fn with_persistent<T>(
        &mut self,
        handle: PersistentTpmHandle,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        const OPERATION: &str = "use a persistent key";
        let mut object = self.context.tr_from_tpm_public(handle.into()).map_err(command(OPERATION))?;
        let result = f(self, object.into());
        let closed = self.context.tr_close(&mut object).map_err(command(OPERATION));
        let result = result?;
        closed.map(|()| result)
    }

    /// What the TPM says to a credential that is not for it: integrity, size or value of the blob, or a secret that does
    /// not decrypt.
    fn refusal(&mut self, source: tss_esapi::Error) -> TpmError {
        use Tss2ResponseCodeKind as Kind;
        match kind(source) {
            Some(
                Kind::Integrity
                | Kind::Value
                | Kind::Size
                | Kind::Insufficient
                | Kind::EccPoint
                | Kind::NoResult,
            ) => TpmError::CredentialRefused { source },
            // libtpms says so when RSA decryption fails. A TPM in failure mode (Part 1, 12.4) answers nothing else.
            Some(Kind::Failure) if self.context.get_random(8).is_ok() => {
                TpmError::CredentialRefused { source }
            }
            _ => command("activate a credential")(source),
        }
    }

    fn make_ek(&mut self, algorithm: EkAlgorithm, indices: &[u32]) -> Result<Ek, TpmError> {
        const OPERATION: &str = "create the endorsement key";
        let template = self.ek_template(algorithm, indices)?;
        let made = self.primary(OPERATION, Hierarchy::Endorsement, template)?;
        self.with_object(made.key_handle, |device, handle| {
            let saved = device.context.context_save(handle.into()).map_err(command(OPERATION))?;
            Ok(Ek { public: made.out_public.clone(), place: Place::Saved(saved) })
        })
    }

    /// The template in NV where there is one, else the TCG's default; with the nonce in NV, if any, for its unique
    /// field (TCG EK Credential Profile 2.6, 2.2.1.4).
    fn ek_template(&mut self, algorithm: EkAlgorithm, indices: &[u32]) -> Result<Public, TpmError> {
        const OPERATION: &str = "endorsement key template";
        let stored = algorithm.template_index();
        let template = if indices.contains(&stored) {
            let bytes = self.read_nv(stored)?;
            Public::unmarshall(&bytes).map_err(command(OPERATION))?
        } else {
            ek::create_ek_public_from_default_template_2(algorithm.selection(), None)
                .map_err(command(OPERATION))?
        };
        match algorithm.nonce_index() {
            Some(index) if indices.contains(&index) => {
                let nonce = self.read_nv(index)?;
                with_nonce(template, nonce).map_err(command(OPERATION))
            }
            _ => Ok(template),
        }
    }
}

impl EkAlgorithm {
    /// All, in the order in which they are tried: activation is quickest on P-256 and slowest on RSA.
    pub(crate) const PREFERENCE: [Self; 3] = [Self::EccP256, Self::EccP384, Self::Rsa2048];

    fn certificate_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0002,
            Self::EccP256 => 0x01c0_000a,
            Self::EccP384 => 0x01c0_0016,
        }
    }

    fn nonce_index(self) -> Option<u32> {
        match self {
            Self::Rsa2048 => Some(0x01c0_0003),
            Self::EccP256 => Some(0x01c0_000b),
            Self::EccP384 => None,
        }
    }

    fn template_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0004,
            Self::EccP256 => 0x01c0_000c,
            Self::EccP384 => 0x01c0_0017,
        }
    }

    fn selection(self) -> AsymmetricAlgorithmSelection {
        match self {
            Self::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
            Self::EccP256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
            Self::EccP384 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384),
        }
    }
}

/// The algorithm asked for; else the first that has a certificate; else P-256.
fn choose(wanted: Option<EkAlgorithm>, indices: &[u32]) -> EkAlgorithm {
    let certified = || EkAlgorithm::PREFERENCE.into_iter().find(|a| indices.contains(&a.certificate_index()));
    wanted.or_else(certified).unwrap_or(EkAlgorithm::EccP256)
}

fn with_nonce(template: Public, mut nonce: Vec<u8>) -> Result<Public, tss_esapi::Error> {
    Ok(match template {
        Public::Rsa { object_attributes, name_hashing_algorithm, auth_policy, parameters, .. } => {
            nonce.resize(RSA_BYTES.max(nonce.len()), 0);
            let unique = PublicKeyRsa::try_from(nonce)?;
            Public::Rsa { object_attributes, name_hashing_algorithm, auth_policy, parameters, unique }
        }
        Public::Ecc { object_attributes, name_hashing_algorithm, auth_policy, parameters, .. } => {
            nonce.resize(32.max(nonce.len()), 0);
            let unique = EccPoint::new(EccParameter::try_from(nonce)?, EccParameter::try_from(vec![0; 32])?);
            Public::Ecc { object_attributes, name_hashing_algorithm, auth_policy, parameters, unique }
        }
        other => other,
    })
}

/// Whether a certificate is for this key, told without parsing it: the verifier does that. A modulus or a point does
/// not occur in a certificate by chance.
fn contains_key(certificate: &[u8], public: &Public) -> bool {
    let key = match public {
        Public::Rsa { unique, .. } => unique.value().to_vec(),
        Public::Ecc { unique, .. } => [unique.x().value(), unique.y().value()].concat(),
        _ => return false,
    };
    key.len() >= 64 && certificate.windows(key.len()).any(|window| window == key)
}

/// NV chain indices hold certificates one after the other, a long one split over two indices: join and split anew.
/// What is in the first, the EK certificate's own index, stays as it is.
fn split_chain(mut certificates: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    if certificates.len() <= 1 {
        return certificates;
    }
    let joined: Vec<u8> = certificates.drain(1..).flatten().collect();
    let mut rest = &joined[..];
    while let [0x30, 0x82, high, low, ..] = *rest {
        let length = 4 + usize::from(u16::from_be_bytes([high, low]));
        let Some((certificate, after)) = rest.split_at_checked(length) else { break };
        certificates.push(certificate.to_vec());
        rest = after;
    }
    certificates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ecc_certificate_is_preferred_and_a_choice_is_respected() {
        assert_eq!(EkAlgorithm::EccP384, choose(None, &[0x01c0_0002, 0x01c0_0016]));
        assert_eq!(EkAlgorithm::EccP256, choose(None, &[0x01c0_0002, 0x01c0_000a, 0x01c0_0016]));
        assert_eq!(EkAlgorithm::Rsa2048, choose(None, &[0x01c0_0002]));
        assert_eq!(EkAlgorithm::Rsa2048, choose(Some(EkAlgorithm::Rsa2048), &[0x01c0_0016]));
        assert_eq!(EkAlgorithm::EccP256, choose(None, &[]));
    }

    #[test]
    fn a_chain_split_over_indices_comes_out_as_certificates() {
        let certificate = |fill: u8| [vec![0x30, 0x82, 1, 0], vec![fill; 256]].concat();
        let chain = [certificate(1), certificate(2)].concat();
        let ek = vec![9, 9, 9];
        let out = split_chain(vec![ek.clone(), chain[..300].to_vec(), [&chain[300..], &[0xff; 20]].concat()]);
        assert_eq!(vec![ek, certificate(1), certificate(2)], out);
    }

    #[test]
    fn a_chain_that_ends_early_gives_what_is_whole() {
        let out = split_chain(vec![vec![1], vec![0x30, 0x82, 0xff, 0xff, 0]]);
        assert_eq!(vec![vec![1]], out);
    }
}
