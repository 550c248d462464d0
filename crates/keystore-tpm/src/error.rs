//! What can go wrong with a TPM, each with its cure.

use crate::address::TpmAddress;
use crate::pcrs::Pcrs;

/// Why a TPM, or a key in it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// The text is no address of a TPM.
    #[error(
        "not an address of a TPM: {0}; hint: device:/dev/tpmrm0, swtpm:host=127.0.0.1,port=2321 or tabrmd"
    )]
    Address(String),
    /// Nothing answers there.
    #[error("there is no TPM at {address}: {cause}; hint: {hint}")]
    NoTpm {
        /// Where it was looked for.
        address: TpmAddress,
        /// What the system says.
        cause: String,
        /// The cure.
        hint: &'static str,
    },
    /// This user may not use it.
    #[error(
        "this user may not open {address}; hint: add it to the group of the device, mostly tss (usermod --append --groups tss USER), or SupplementaryGroups=tss in the service's unit"
    )]
    Permission {
        /// The TPM.
        address: TpmAddress,
    },
    /// TPM_RC_LOCKOUT (0x921): after too many wrong passwords, of whatever program (TPM 2.0 part 1, section "Dictionary
    /// Attack Protection"). It hits only keys without noDA; those that are made here have it.
    #[error(
        "the TPM at {address} is locked after too many wrong passwords (TPM_RC_LOCKOUT, 0x921); hint: wait as long as tpm2_getcap properties-variable says (TPM2_PT_LOCKOUT_INTERVAL), or tpm2_dictionarylockout --clear-lockout; a key that is made here (noDA) is not hit by it"
    )]
    Lockout {
        /// The TPM.
        address: TpmAddress,
    },
    /// The owner hierarchy has a password, so that the standard parent cannot be made.
    #[error(
        "the owner hierarchy of the TPM at {address} has a password, which is not used here; hint: make a storage key persistent (tpm2_evictcontrol) and a key under it (openssl genpkey -provider tpm2 -algorithm EC -pkeyopt group:P-256 -pkeyopt parent:0x81000001), and use that file"
    )]
    OwnerPassword {
        /// The TPM.
        address: TpmAddress,
    },
    /// The key is not of this TPM, or of what it was before it was cleared.
    #[error(
        "the key is not of the TPM at {address}: {cause}; hint: a key works only in the TPM that made it, and no more once that TPM was cleared; give this device its own file, or make a new key and enrol again"
    )]
    OtherTpm {
        /// The TPM.
        address: TpmAddress,
        /// What the TPM says.
        cause: String,
    },
    /// The endorsement hierarchy has a password, so that the endorsement key cannot be made or used.
    #[error(
        "the endorsement hierarchy of the TPM at {address} has a password, which is not used here; hint: take it away for the time of the attestation (tpm2_changeauth --object-context endorsement --object-auth PASSWORD)"
    )]
    EndorsementPassword {
        /// The TPM.
        address: TpmAddress,
    },
    /// The TPM holds endorsement certificates, but none of an endorsement key that it has.
    #[error(
        "the TPM at {address} has no endorsement key that its certificates are of: {cause}; hint: if its endorsement seed was changed (tpm2_changeeps), they are lost for good, and it can attest only without them (tpm2_nvundefine); else ask its manufacturer by which template the key is made"
    )]
    Endorsement {
        /// The TPM.
        address: TpmAddress,
        /// Each certificate with its fault.
        cause: String,
    },
    /// The challenge (of TPM2_MakeCredential) was made for another TPM or another attestation key, or it was changed.
    #[error(
        "the challenge is not for this attestation by the TPM at {address}: {cause}; hint: begin a new attestation and answer the challenge that is made for it; an older one is for a key that is gone"
    )]
    Challenge {
        /// The TPM.
        address: TpmAddress,
        /// What the TPM says.
        cause: String,
    },
    /// The TPM has no room for so much in its NV memory.
    #[error(
        "the TPM at {address} has no room for {bytes} bytes: {cause}; hint: keep less (the certificate without its chain), or remove what nobody needs (tpm2_nvreadpublic, tpm2_nvundefine)"
    )]
    NoRoom {
        /// The TPM.
        address: TpmAddress,
        /// How many there should be.
        bytes: usize,
        /// The limit, or what the TPM says.
        cause: String,
    },
    /// The NV index is not ours to write.
    #[error(
        "{index:#x} {cause} in the TPM at {address}; hint: take another from 0x1800000 to 0x1bfffff that tpm2_nvreadpublic does not show"
    )]
    Index {
        /// The TPM.
        address: TpmAddress,
        /// The index.
        index: u32,
        /// What it is.
        cause: &'static str,
    },
    /// The text is no file of a key in a TPM.
    #[error(
        "not a file of a key in a TPM: {0}; hint: it begins with -----BEGIN TSS2 PRIVATE KEY-----, and is taken from the copy as it was made"
    )]
    File(String),
    /// The key is none that can be used here.
    #[error(
        "the key in the TPM cannot be used: {0}; hint: an unrestricted signing key on P-256, without a password, and with no other policy than one of PCRs, directly under the owner hierarchy or a persistent key"
    )]
    Unsupported(String),
    /// The text is no selection of PCRs.
    #[error(
        "not a selection of PCRs: {0}; hint: sha256:0,2,4,7 for example, as tpm2_pcrread takes it, of one bank"
    )]
    Pcrs(String),
    /// The TPM keeps not all of these PCRs.
    #[error(
        "the TPM at {address} keeps not all PCRs of {pcrs}; hint: tpm2_getcap pcrs lists those that it keeps; sha256 is the bank that most have"
    )]
    NoPcrs {
        /// The TPM.
        address: TpmAddress,
        /// What was asked for.
        pcrs: Pcrs,
    },
    /// The device is in another state than the one that the key is bound to.
    #[error(
        "the key signs only in the state that the device was in when it was made, and in the TPM at {address} {} now; hint: after an update of what is measured there (firmware, its settings, boot loader) enrol again (countersign-agent-tpm enrol --again), which makes a key for the state as it is now; if nothing was updated, find out what was started in its place; in the old state the key signs again",
        changed(*pcrs, differing.as_deref())
    )]
    State {
        /// The TPM.
        address: TpmAddress,
        /// Which PCRs tell the state.
        pcrs: Pcrs,
        /// Which of them hold something else; `None` if it is not known what they held.
        differing: Option<Vec<u8>>,
    },
    /// The TPM failed.
    #[error("the TPM at {address} cannot {what}: {cause}; hint: {hint}")]
    Failed {
        /// The TPM.
        address: TpmAddress,
        /// What was tried.
        what: &'static str,
        /// What it says.
        cause: String,
        /// The cure.
        hint: &'static str,
    },
}

/// Which PCRs are other ones, in words.
fn changed(pcrs: Pcrs, differing: Option<&[u8]>) -> String {
    let bank = pcrs.bank.name();
    match differing {
        None => format!("one of the PCRs {pcrs} is another one"),
        Some([one]) => format!("the PCR {bank}:{one} is another one"),
        Some(all) => {
            let numbers: Vec<String> = all.iter().map(u8::to_string).collect();
            format!("the PCRs {bank}:{} are other ones", numbers.join(","))
        }
    }
}
