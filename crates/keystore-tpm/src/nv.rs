//! What a TPM keeps of data: in NV indices (TPM 2.0 part 1, section "NV Memory"). There a device's certificates are beside
//! its key, and stay when its disk is exchanged.
//!
//! Everybody who may use the TPM may read and, without a password of the owner hierarchy, write what is kept here: it is for
//! what is no secret and is checked when it is used.

use std::ops::RangeInclusive;

use tss_esapi::attributes::{NvIndexAttributes, NvIndexAttributesBuilder};
use tss_esapi::constants::PropertyTag;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::structures::{MaxNvBuffer, NvPublic, NvPublicBuilder};
use tss_esapi::{Context, Error};

use crate::address::TpmAddress;
use crate::error::TpmError;
use crate::{encoding, tpm};

/// The indices that are the owner's to give away (TCG Registry of Reserved TPM 2.0 Handles and Localities).
pub const OWNER: RangeInclusive<u32> = 0x0180_0000..=0x01bf_ffff;

/// What is read or written at once if the TPM does not say how much it may be.
const CHUNK_BYTES: u16 = 512;

const READ: &str = "read its NV memory";
const WRITE: &str = "write its NV memory";

/// Reads an index whole. `None` if there is nothing: it is not defined, nothing was ever written, or it is not to be read
/// without a password or a policy.
///
/// # Errors
/// [`TpmError`] with its cure.
pub fn read(address: &TpmAddress, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
    tpm::with(address, |context| content(context, address, index))
}

/// Keeps these bytes in one of the indices of [`OWNER`], in place of what was written there before by this function. If they
/// are there already nothing is written: such memory wears out.
///
/// The power may go away in the middle. Then there is nothing, or something of the same length that begins with FF: the
/// beginning is written last.
///
/// # Errors
/// [`TpmError::NoRoom`] if they are too many: then what was there stays. [`TpmError::Index`] if the index is not of
/// [`OWNER`] or holds what others wrote, or another [`TpmError`] with its cure.
pub fn write(address: &TpmAddress, index: u32, bytes: &[u8]) -> Result<(), TpmError> {
    tpm::with(address, |context| {
        let own = own(context, address, index)?;
        let most = property(context, PropertyTag::NvIndexMax).map_err(|e| tpm::failed(address, WRITE, e))?;
        if bytes.is_empty() || most.is_some_and(|most| bytes.len() as u64 > u64::from(most)) {
            return Err(TpmError::NoRoom {
                address: address.clone(),
                bytes: bytes.len(),
                cause: format!("an index has from 1 to {} bytes", most.unwrap_or_default()),
            });
        }
        let before = content(context, address, index)?;
        if before.as_deref() == Some(bytes) {
            return Ok(());
        }
        // Never over what is there: half of each would be neither.
        if let Some(handle) = own {
            undefine(context, address, handle)?;
        }
        let written = define_and_write(context, address, index, bytes);
        if written.is_err()
            && let Some(before) = before
        {
            // As good as it goes; the error is the first one.
            if let Err(e) = define_and_write(context, address, index, &before) {
                tracing::warn!(tpm = %address, index = format!("{index:#x}"), error = %e, "what was there is lost");
            }
        }
        written
    })
}

/// Removes what [`write()`] kept. Whether there was something.
///
/// # Errors
/// [`TpmError::Index`] if the index is not of [`OWNER`] or holds what others wrote, or another [`TpmError`] with its cure.
pub fn remove(address: &TpmAddress, index: u32) -> Result<bool, TpmError> {
    tpm::with(address, |context| match own(context, address, index)? {
        None => Ok(false),
        Some(handle) => undefine(context, address, handle).map(|()| true),
    })
}

/// The certificates in what was read, if it is certificates in DER, one after the other.
pub fn certificates(bytes: &[u8]) -> Vec<Vec<u8>> {
    encoding::all(bytes)
}

/// [`read`] in this turn at the TPM.
pub(crate) fn content(
    context: &mut Context,
    address: &TpmAddress,
    index: u32,
) -> Result<Option<Vec<u8>>, TpmError> {
    let failed = |e: Error| tpm::failed(address, READ, e);
    let Some((handle, public)) = find(context, address, index)? else {
        return Ok(None);
    };
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
        let at = offset(bytes.len());
        match tpm::patiently(|| context.nv_read(authority, handle, left.min(chunk), at)) {
            Ok(part) if !part.is_empty() => bytes.extend_from_slice(part.value()),
            Ok(_) => return Ok(None),
            Err(e) if matches!(tpm::kind(e), Some(Kind::AuthFail | Kind::BadAuth)) => {
                tracing::warn!(tpm = %address, index = format!("{index:#x}"), error = %e, "the TPM does not let everybody read this");
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(Some(bytes))
}

fn find(
    context: &mut Context,
    address: &TpmAddress,
    index: u32,
) -> Result<Option<(NvIndexHandle, NvPublic)>, TpmError> {
    let failed = |e: Error| tpm::failed(address, READ, e);
    let number = NvIndexTpmHandle::new(index).map_err(|_| TpmError::Index {
        address: address.clone(),
        index,
        cause: "is no NV index",
    })?;
    // Asked for before, for libtss2 writes to standard error about what is missing.
    if tpm::handles(context, address, index..=index)?.is_empty() {
        return Ok(None);
    }
    let handle = TpmHandle::NvIndex(number);
    let handle = tpm::patiently(|| context.execute_without_session(|c| c.tr_from_tpm_public(handle)))
        .map_err(failed)?
        .into();
    let (public, _name) =
        tpm::patiently(|| context.execute_without_session(|c| c.nv_read_public(handle))).map_err(failed)?;
    Ok(Some((handle, public)))
}

/// An index that was made here, if it is there.
fn own(context: &mut Context, address: &TpmAddress, index: u32) -> Result<Option<NvIndexHandle>, TpmError> {
    let refused = |cause| TpmError::Index {
        address: address.clone(),
        index,
        cause,
    };
    if !OWNER.contains(&index) {
        return Err(refused("is none of the owner's"));
    }
    let Some((handle, public)) = find(context, address, index)? else {
        return Ok(None);
    };
    let expected = |is_written| attributes(is_written).map_err(|e| tpm::failed(address, READ, e));
    match public.attributes() {
        found if found == expected(true)? || found == expected(false)? => Ok(Some(handle)),
        _ => Err(refused("holds what another program wrote")),
    }
}

/// The owner writes, everybody reads; no wrong password of whatever program locks it (noDA).
fn attributes(is_written: bool) -> Result<NvIndexAttributes, Error> {
    NvIndexAttributesBuilder::new()
        .with_owner_write(true)
        .with_owner_read(true)
        .with_auth_read(true)
        .with_no_da(true)
        .with_written(is_written)
        .build()
}

fn undefine(context: &mut Context, address: &TpmAddress, handle: NvIndexHandle) -> Result<(), TpmError> {
    tpm::patiently(|| context.nv_undefine_space(Provision::Owner, handle)).map_err(|e| refused(address, e))
}

fn define_and_write(
    context: &mut Context,
    address: &TpmAddress,
    index: u32,
    bytes: &[u8],
) -> Result<(), TpmError> {
    let failed = |e: Error| tpm::failed(address, WRITE, e);
    let public = NvIndexTpmHandle::new(index)
        .and_then(|number| {
            NvPublicBuilder::new()
                .with_nv_index(number)
                .with_index_name_algorithm(HashingAlgorithm::Sha256)
                .with_index_attributes(attributes(false)?)
                .with_data_area_size(bytes.len())
                .build()
        })
        .map_err(failed)?;
    let made = tpm::patiently(|| context.nv_define_space(Provision::Owner, None, public.clone()));
    let handle = made.map_err(|e| match tpm::kind(e) {
        Some(Kind::NvSpace | Kind::Size) => TpmError::NoRoom {
            address: address.clone(),
            bytes: bytes.len(),
            cause: tpm::cause(e),
        },
        _ => refused(address, e),
    })?;
    let chunk = usize::from(chunk_bytes(context).map_err(failed)?);
    // From the end, so that the beginning is there only if all is.
    for (number, part) in bytes.chunks(chunk).enumerate().rev() {
        let part = MaxNvBuffer::try_from(part).map_err(failed)?;
        let at = offset(number * chunk);
        tpm::patiently(|| context.nv_write(NvAuth::Owner, handle, part.clone(), at))
            .map_err(|e| refused(address, e))?;
    }
    Ok(())
}

fn refused(address: &TpmAddress, error: Error) -> TpmError {
    match tpm::kind(error) {
        Some(Kind::BadAuth | Kind::AuthFail) => TpmError::Failed {
            address: address.clone(),
            what: WRITE,
            cause: "the owner hierarchy has a password, which is not used here".into(),
            hint: "take it away for the time of writing (tpm2_changeauth --object-context owner --object-auth PASSWORD), or keep this in a file",
        },
        _ => tpm::failed(address, WRITE, error),
    }
}

/// An index has at most 65535 bytes (TPM 2.0 part 2, section "TPMS_NV_PUBLIC").
fn offset(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

fn property(context: &mut Context, tag: PropertyTag) -> Result<Option<u32>, Error> {
    tpm::patiently(|| context.execute_without_session(|c| c.get_tpm_property(tag)))
}

/// How much may be read or written at once (TPM_PT_NV_BUFFER_MAX).
fn chunk_bytes(context: &mut Context) -> Result<u16, Error> {
    let told = property(context, PropertyTag::NvBufferMax)?;
    // libtss2 takes no more, whatever the TPM takes.
    let most = u32::try_from(MaxNvBuffer::MAX_SIZE).unwrap_or(u32::MAX);
    Ok(match told.and_then(|n| u16::try_from(n.min(most)).ok()) {
        None | Some(0) => CHUNK_BYTES,
        Some(bytes) => bytes,
    })
}
