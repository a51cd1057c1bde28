//! Platform configuration registers, SHA-256 bank.

use crate::device::Device;
use crate::error::{TpmError, command};
use sha2::{Digest as _, Sha256};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{PcrSelectionList, PcrSlot};

/// A PCR and its value.
pub type PcrValue = (u8, [u8; 32]);

/// TPM2_PCR_Read returns at most eight digests (TPML_DIGEST, Part 2, 10.9.6).
const PCRS_PER_READ: usize = 8;

impl Device {
    /// The values of `pcrs`, ascending by index.
    pub(crate) fn read_pcrs(&mut self, pcrs: &[u8]) -> Result<Vec<PcrValue>, TpmError> {
        const OPERATION: &str = "read PCRs";
        let mut wanted = pcrs.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let mut values = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(PCRS_PER_READ) {
            let (_, _, digests) = self.context.pcr_read(selection(part)?).map_err(command(OPERATION))?;
            // The TPM leaves out what it does not have, so the count tells.
            if digests.len() != part.len() {
                return Err(TpmError::NoSha256Bank { index: part[digests.len().min(part.len() - 1)] });
            }
            for (&index, digest) in part.iter().zip(digests.value()) {
                let value = digest.value().try_into().map_err(|_| TpmError::Unexpected {
                    operation: OPERATION,
                    what: "a digest that is not SHA-256",
                })?;
                values.push((index, value));
            }
        }
        Ok(values)
    }
}

/// The selection of `pcrs` in the SHA-256 bank.
pub(crate) fn selection(pcrs: &[u8]) -> Result<PcrSelectionList, TpmError> {
    let slots = pcrs.iter().map(|&index| slot(index)).collect::<Result<Vec<_>, _>>()?;
    PcrSelectionList::builder()
        .with_selection(HashingAlgorithm::Sha256, &slots)
        .build()
        .map_err(command("select PCRs"))
}

/// The digest a quote carries over these values (Part 3, 18.4).
pub(crate) fn digest(values: &[PcrValue]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (_, value) in values {
        hash.update(value);
    }
    hash.finalize().into()
}

fn slot(index: u8) -> Result<PcrSlot, TpmError> {
    if index >= 24 {
        return Err(TpmError::NoSuchPcr { index });
    }
    PcrSlot::try_from(1u32 << index).map_err(command("select PCRs"))
}
