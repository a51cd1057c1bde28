//! What the TPM says about itself.

use crate::device::Device;
use crate::error::{TpmError, command};
use tss_esapi::constants::{CapabilityType, PropertyTag, tss};
use tss_esapi::structures::CapabilityData;

/// Maker and firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Four letters of the TCG vendor registry, e.g. `INTC`, `IFX`, `STM`, `IBM`.
    pub manufacturer: String,
    /// The vendor's own description, e.g. `SW   TPM`.
    pub vendor: String,
    /// Both halves of the firmware version; the form is the vendor's.
    pub firmware: (u32, u32),
    /// TPM library specification revision, times 100: 138, 159, 164 …
    pub revision: u32,
}

/// How the TPM and the queue before it are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Requests that wait.
    pub queued: usize,
    /// Requests taken to the TPM so far.
    pub served: u64,
    /// How often it had to be opened anew after a reset or a broken connection.
    pub reopened: u64,
    /// Objects loaded in the TPM; with a resource manager, those of this process.
    pub transient_objects: usize,
    /// Sessions loaded in the TPM.
    pub loaded_sessions: usize,
    /// Failed authorisations that count towards lockout.
    pub lockout_counter: u32,
    /// Whether dictionary-attack protection is active now.
    pub in_lockout: bool,
}

/// TPMA_PERMANENT.inLockout (Part 2, 8.6).
const IN_LOCKOUT: u32 = 1 << 9;

pub(crate) fn read(device: &mut Device) -> Result<Properties, TpmError> {
    let mut word = |tag| property(device, tag);
    let manufacturer = letters(&[word(PropertyTag::Manufacturer)?]);
    let vendor = letters(&[
        word(PropertyTag::VendorString1)?,
        word(PropertyTag::VendorString2)?,
        word(PropertyTag::VendorString3)?,
        word(PropertyTag::VendorString4)?,
    ]);
    let firmware = (word(PropertyTag::FirmwareVersion1)?, word(PropertyTag::FirmwareVersion2)?);
    let revision = word(PropertyTag::Revision)?;
    Ok(Properties { manufacturer, vendor, firmware, revision })
}

pub(crate) fn health(device: &mut Device) -> Result<Health, TpmError> {
    Ok(Health {
        queued: 0,
        served: 0,
        reopened: 0,
        transient_objects: device.handles(tss::TPM2_TRANSIENT_FIRST)?.len(),
        loaded_sessions: device.handles(tss::TPM2_LOADED_SESSION_FIRST)?.len(),
        lockout_counter: property(device, PropertyTag::LockoutCounter)?,
        in_lockout: property(device, PropertyTag::Permanent)? & IN_LOCKOUT != 0,
    })
}

/// Asks the TPM each time: tss-esapi would remember, and some of these change.
fn property(device: &mut Device, tag: PropertyTag) -> Result<u32, TpmError> {
    const OPERATION: &str = "read properties";
    let (data, _) = device
        .context
        .get_capability(CapabilityType::TpmProperties, tag.into(), 1)
        .map_err(command(OPERATION))?;
    let CapabilityData::TpmProperties(list) = data else {
        return Err(TpmError::Unexpected { operation: OPERATION, what: "another capability" });
    };
    Ok(list.into_iter().find(|property| property.property() == tag).map_or(0, |property| property.value()))
}

/// Four letters a word; what is not printable is left out.
fn letters(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_be_bytes());
    let text: String = bytes.filter(|byte| (0x20..0x7f).contains(byte)).map(char::from).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_rubbish_do_not_show() {
        assert_eq!("IFX", letters(&[0x4946_5800]));
        assert_eq!("SW   TPM", letters(&[0x5357_2020, 0x2054_504d, 0, 0x0000_ff01]));
    }
}
