//! Reading NV indices: EK certificates and templates live there.

use crate::device::Device;
use crate::error::{TpmError, command};
use tss_esapi::abstraction::nv;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, ObjectHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::MaxNvBuffer;

/// NV indices set aside for EK certificates, nonces, templates and chains (TCG EK Credential Profile 2.6, 2.2.1.4, .5).
const EK_RANGE: std::ops::RangeInclusive<u32> = 0x01c0_0000..=0x01c0_7fff;

impl Device {
    /// The indices of the EK range that the TPM has, ascending.
    pub(crate) fn ek_indices(&mut self) -> Result<Vec<u32>, TpmError> {
        let mut indices = self.handles(*EK_RANGE.start())?;
        indices.retain(|index| EK_RANGE.contains(index));
        indices.sort_unstable();
        Ok(indices)
    }

    /// The whole content of an index, read by its own (empty) authorisation.
    pub(crate) fn read_nv(&mut self, index: u32) -> Result<Vec<u8>, TpmError> {
        const OPERATION: &str = "read NV";
        let handle = NvIndexTpmHandle::new(index).map_err(command(OPERATION))?;
        let mut object = self.context.tr_from_tpm_public(handle.into()).map_err(command(OPERATION))?;
        let content = self.read_open_nv(object);
        let closed = self.context.tr_close(&mut object).map_err(command(OPERATION));
        let content = content?;
        closed.map(|()| content)
    }

    fn read_open_nv(&mut self, object: ObjectHandle) -> Result<Vec<u8>, TpmError> {
        const OPERATION: &str = "read NV";
        let index = NvIndexHandle::from(object);
        let (public, _) = self.context.nv_read_public(index).map_err(command(OPERATION))?;
        let limit = nv::max_nv_buffer_size(&mut self.context).map_err(command(OPERATION))?;
        let step = limit.clamp(1, MaxNvBuffer::MAX_SIZE);
        let size = public.data_size();
        let mut content = Vec::with_capacity(size);
        while content.len() < size {
            let part = step.min(size - content.len());
            let (Ok(part), Ok(offset)) = (u16::try_from(part), u16::try_from(content.len())) else {
                return Err(TpmError::Unexpected { operation: OPERATION, what: "an index over 64 KiB" });
            };
            let read = self
                .context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.nv_read(NvAuth::NvIndex(index), index, part, offset)
                })
                .map_err(command(OPERATION))?;
            if read.is_empty() {
                return Err(TpmError::Unexpected { operation: OPERATION, what: "nothing" });
            }
            content.extend_from_slice(&read);
        }
        Ok(content)
    }
}
