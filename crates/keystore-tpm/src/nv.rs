//! What a TPM keeps of data: in NV indices (TPM 2.0 part 1, section "NV Memory").

use tss_esapi::constants::PropertyTag;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::{Context, Error};

use crate::address::TpmAddress;
use crate::error::TpmError;
use crate::tpm;

/// What is read at once if the TPM does not say how much it may be.
const CHUNK_BYTES: u16 = 512;

/// All bytes of an index that is there. `None` if they cannot be read without a password or a policy, or if nothing was
/// ever written.
pub(crate) fn read(
    context: &mut Context,
    address: &TpmAddress,
    index: u32,
) -> Result<Option<Vec<u8>>, TpmError> {
    let failed = |e: Error| tpm::failed(address, "read its NV memory", e);
    let handle = TpmHandle::NvIndex(NvIndexTpmHandle::new(index).map_err(failed)?);
    let handle: NvIndexHandle =
        tpm::patiently(|| context.execute_without_session(|c| c.tr_from_tpm_public(handle)))
            .map_err(failed)?
            .into();
    let (public, _name) =
        tpm::patiently(|| context.execute_without_session(|c| c.nv_read_public(handle))).map_err(failed)?;
    let attributes = public.attributes();
    let authority = match () {
        () if !attributes.written() => return Ok(None),
        // Its own password, which is empty.
        () if attributes.auth_read() => NvAuth::NvIndex(handle),
        () if attributes.owner_read() => NvAuth::Owner,
        () => {
            tracing::warn!(tpm = %address, index = format!("{index:#x}"), "the TPM does not let everybody read this");
            return Ok(None);
        }
    };
    let chunk = chunk_bytes(context).map_err(failed)?;
    let mut bytes = Vec::with_capacity(public.data_size());
    while bytes.len() < public.data_size() {
        let left = u16::try_from(public.data_size() - bytes.len()).unwrap_or(u16::MAX);
        // An index has at most 65535 bytes (TPM 2.0 part 2, section "TPMS_NV_PUBLIC").
        let at = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        match tpm::patiently(|| context.nv_read(authority, handle, left.min(chunk), at)) {
            Ok(part) if !part.is_empty() => bytes.extend_from_slice(part.value()),
            Ok(_) => return Ok(None),
            Err(e)
                if matches!(
                    tpm::kind(e),
                    Some(Kind::AuthFail | Kind::BadAuth | Kind::NvUninitialized)
                ) =>
            {
                tracing::warn!(tpm = %address, index = format!("{index:#x}"), error = %e, "the TPM does not let this be read");
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(Some(bytes))
}

/// How much may be read or written at once (TPM_PT_NV_BUFFER_MAX).
fn chunk_bytes(context: &mut Context) -> Result<u16, Error> {
    let told =
        tpm::patiently(|| context.execute_without_session(|c| c.get_tpm_property(PropertyTag::NvBufferMax)))?;
    // libtss2 takes no more than 2048 bytes, whatever the TPM takes.
    Ok(match told.and_then(|n| u16::try_from(n.min(2048)).ok()) {
        None | Some(0) => CHUNK_BYTES,
        Some(bytes) => bytes,
    })
}
