//! Policy digests.

use sha2::{Digest, Sha256};

/// `TPM_CC_PolicyPCR` (Part 2, clause 6.5.2).
const CC_POLICY_PCR: u32 = 0x0000_017f;

/// The digest of a fresh SHA-256 policy session after one TPM2_PolicyPCR over these PCRs of the sha256
/// bank, given as (index, value): the `authPolicy` of a key that works only while they hold.
///
/// Part 3, clause 23.7 (TPM2_PolicyPCR): `H(old || TPM_CC_PolicyPCR || pcrs || digestTPM)`. Order and
/// repetition of the input do not matter; an index above 23 is ignored, for no PC Client TPM has it.
pub fn policy_pcr_digest(pcrs: &[(u8, [u8; 32])]) -> [u8; 32] {
    let sorted: std::collections::BTreeMap<u8, [u8; 32]> =
        pcrs.iter().copied().filter(|(i, _)| *i < 24).collect();
    let mut bitmap = [0u8; 3];
    let mut values = Sha256::new();
    for (index, value) in &sorted {
        bitmap[usize::from(index / 8)] |= 1 << (index % 8);
        values.update(value);
    }
    let mut hash = Sha256::new();
    hash.update([0u8; 32]);
    hash.update(CC_POLICY_PCR.to_be_bytes());
    // TPML_PCR_SELECTION: one bank, sha256, three octets.
    hash.update(1u32.to_be_bytes());
    hash.update(0x000bu16.to_be_bytes());
    hash.update([3]);
    hash.update(bitmap);
    hash.update(values.finalize());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_every_part_does() {
        let base = policy_pcr_digest(&[(0, [1; 32]), (7, [2; 32])]);
        assert_eq!(base, policy_pcr_digest(&[(7, [2; 32]), (0, [1; 32])]));
        assert_ne!(base, policy_pcr_digest(&[(0, [1; 32]), (7, [3; 32])]));
        assert_ne!(base, policy_pcr_digest(&[(0, [1; 32]), (8, [2; 32])]));
        assert_ne!(base, policy_pcr_digest(&[(0, [1; 32])]));
    }
}
