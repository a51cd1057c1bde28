//! TPM 2.0 structures as they come from outside, parsed strictly, and the two sums a verifier does with
//! them: checking a signature and making a credential.
//!
//! **In scope:** `TPMT_PUBLIC` (RSA and ECC), names and qualified names, `TPMS_ATTEST` of a quote or a
//! certification, `TPMT_SIGNATURE` (RSASSA, RSAPSS, ECDSA), `TPML_PCR_SELECTION`, MakeCredential, the
//! PolicyPCR digest. **Not in scope:** commands, sessions, devices, and whether to trust what was
//! parsed: that is [`crate::evidence`].
//!
//! Source: TCG, *Trusted Platform Module Library*, revision 1.59 (family 2.0): Part 1 (architecture),
//! Part 2 (structures), Part 3 (commands). Every length is bounded and every parser consumes all of its
//! input.

mod attest;
mod attributes;
mod credential;
mod kdf;
mod name;
mod policy;
mod public;
mod signature;
mod wire;

pub use attest::{Attest, Attested, ClockInfo, PcrBankSelection};
pub use attributes::ObjectAttributes;
pub use credential::{Credential, CredentialError, MAX_SECRET, make_credential};
pub use name::{HashAlg, Name, RH_ENDORSEMENT, RH_OWNER};
pub use policy::policy_pcr_digest;
pub use public::{Curve, EccPublic, Public, PublicKey, RsaPublic, Scheme, SpkiError, Symmetric};
pub use signature::{Signature, SignatureError, SignatureScheme, SignatureValue};
pub use wire::ParseError;
