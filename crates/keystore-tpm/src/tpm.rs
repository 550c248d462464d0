//! One turn at a TPM at a time; parents; loading, and leaving nothing behind.
//!
//! A TPM has slots for as few as three loaded keys (TPM 2.0 part 1, section "Object Slots"), and without a resource
//! manager nobody empties them but who filled them. So a key is loaded for one operation, and flushed after it; the
//! connection is opened for it and closed after it, which lets other programs have their turn too.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind as Kind};
use tss_esapi::constants::{CapabilityType, SessionType};
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    CapabilityData, Digest, EccPoint, EccScheme, KeyDerivationFunctionScheme, Private, Public, PublicBuilder,
    PublicEccParameters, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::UnMarshall;
use tss_esapi::{Context, Error, WrapperErrorKind};

use crate::address::{Place, TpmAddress};
use crate::error::TpmError;
use crate::key_file::{KeyFile, Parent};
use crate::pcrs::PcrPolicy;

/// Who has the turn at each TPM. It grows by one for each address that the process ever used.
static TURNS: Mutex<BTreeMap<TpmAddress, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());

/// How long is waited before a TPM that is busy is asked again: together 1.3 s, which is longer than the self-tests of
/// common TPMs take. libtss2 itself asks five times before each, without waiting.
const WAITS: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
    Duration::from_millis(640),
];

/// How many handles are asked for at once.
const HANDLES_MAX: u32 = 64;

const HINT_STATE: &str = "try again; if it stays so, tpm2_selftest --fulltest and tpm2_getcap properties-variable tell the TPM's state";

/// Does some work at a TPM, alone.
///
/// Whatever the work loaded is flushed at the end, also when it failed: [`Context`] does it when it is dropped.
pub(crate) fn with<T>(
    address: &TpmAddress,
    work: impl FnOnce(&mut Context) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    let turn = turn(address);
    // Until the context, which is declared after it, is closed.
    let _turn = turn.lock();
    let mut context = connect(address)?;
    // The empty password (TPM_RS_PW): for the owner hierarchy, for parents and for keys.
    context.set_sessions((Some(AuthSession::Password), None, None));
    work(&mut context)
}

fn turn(address: &TpmAddress) -> Arc<Mutex<()>> {
    Arc::clone(TURNS.lock().entry(address.clone()).or_default())
}

fn connect(address: &TpmAddress) -> Result<Context, TpmError> {
    let no_tpm = |cause: String, hint| TpmError::NoTpm {
        address: address.clone(),
        cause,
        hint,
    };
    const NO_DEVICE: &str = "is there one, and switched on in the firmware (ls /dev/tpm*)? device:/dev/tpmrm0 is the usual one; in a container, the device must be passed in";
    if let Place::Device(path) = address.place()
        && let Err(e) = std::fs::metadata(path)
    {
        // Before libtss2 writes about it to standard error.
        return Err(no_tpm(e.to_string(), NO_DEVICE));
    }
    let conf = TctiNameConf::from_str(&address.to_string())
        .map_err(|e| TpmError::Address(format!("{address}: {}", cause(e))))?;
    let error = match Context::new(conf) {
        Ok(context) => return Ok(context),
        Err(e) => e,
    };
    // libtss2 says little of why, so the system is asked.
    match address.place() {
        Place::Device(path) => match std::fs::File::options().read(true).write(true).open(path) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Err(TpmError::Permission {
                address: address.clone(),
            }),
            Err(e) if e.kind() == ErrorKind::ResourceBusy => Err(no_tpm(
                e.to_string(),
                "another program has it alone; device:/dev/tpmrm0 lets several in",
            )),
            Err(e) => Err(no_tpm(e.to_string(), NO_DEVICE)),
            Ok(_) => Err(no_tpm(
                cause(error),
                "is libtss2-tcti-device0 installed, and the device a TPM 2.0?",
            )),
        },
        Place::Swtpm { host, port } => Err(no_tpm(
            match TcpStream::connect((host.as_str(), *port)) {
                Err(e) => e.to_string(),
                Ok(_) => cause(error),
            },
            "start swtpm (swtpm socket --tpm2 --server type=tcp,port=2321 --ctrl type=tcp,port=2322 --flags not-need-init,startup-clear), and install libtss2-tcti-swtpm0",
        )),
        Place::Tabrmd => Err(no_tpm(
            cause(error),
            "start tpm2-abrmd, and install libtss2-tcti-tabrmd0",
        )),
    }
}

/// What libtss2 says, with the number that manuals list.
pub(crate) fn cause(error: Error) -> String {
    let number = match error {
        Error::Tss2Error(Tss2ResponseCode::FormatZero(code)) => code.to_string(),
        Error::Tss2Error(Tss2ResponseCode::FormatOne(code)) => code.to_string(),
        Error::Tss2Error(Tss2ResponseCode::Success) | Error::WrapperError(_) => return error.to_string(),
    };
    // It is not to be had but as text, with words before it.
    let number = number.rsplit(' ').next().unwrap_or_default();
    match number.strip_prefix("0x").map(|n| u32::from_str_radix(n, 16)) {
        // Of libtss2 and not of the TPM; the words would be for numbers of the TPM (TCG TSS 2.0 overview, section
        // "Return Codes").
        Some(Ok(code)) if code >> 16 != 0 => format!("libtss2 says {number} (tpm2_rc_decode {number})"),
        _ => format!("{error} ({number})"),
    }
}

pub(crate) fn kind(error: Error) -> Option<Kind> {
    match error {
        Error::Tss2Error(code) => code.kind(),
        Error::WrapperError(_) => None,
    }
}

pub(crate) fn failed(address: &TpmAddress, what: &'static str, error: Error) -> TpmError {
    let address = address.clone();
    match kind(error) {
        Some(Kind::Lockout) => TpmError::Lockout { address },
        of => TpmError::Failed {
            address,
            what,
            cause: cause(error),
            hint: match of {
                Some(Kind::ObjectMemory | Kind::ObjectHandles | Kind::SessionMemory) => {
                    "another program has filled its slots; use the resource manager (device:/dev/tpmrm0), or empty them (tpm2_flushcontext --transient-object)"
                }
                _ => HINT_STATE,
            },
        },
    }
}

/// Asks again while the TPM is busy: TPM_RC_RETRY, TPM_RC_YIELDED and TPM_RC_TESTING say that the command was not begun
/// and may be sent again (TPM 2.0 part 2, section "TPM_RC").
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for wait in WAITS {
        match attempt() {
            Err(e) if matches!(kind(e), Some(Kind::Retry | Kind::Yielded | Kind::Testing)) => {
                tracing::debug!(error = %e, "the TPM is busy");
                std::thread::sleep(wait);
            }
            other => return other,
        }
    }
    attempt()
}

/// Gives a policy session to some work, and flushes it after it. What its policy wants to hear is for the work to tell.
pub(crate) fn in_session<T, E>(
    context: &mut Context,
    hash: HashingAlgorithm,
    failed: impl Fn(Error) -> E,
    work: impl FnOnce(&mut Context, AuthSession) -> Result<T, E>,
) -> Result<T, E> {
    let started = patiently(|| {
        context.execute_without_session(|c| {
            c.start_auth_session(
                None,
                None,
                None,
                SessionType::Policy,
                SymmetricDefinition::AES_128_CFB,
                hash,
            )
        })
    });
    let Some(session) = started.map_err(&failed)? else {
        // For ESYS_TR_NONE only, which it does not answer with.
        return Err(failed(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)));
    };
    // Or else the TPM ends it by itself if it was of use, and only then: so that flushing is right on all ways.
    let (attributes, mask) = SessionAttributesBuilder::new()
        .with_continue_session(true)
        .build();
    let done = context
        .tr_sess_set_attributes(session, attributes, mask)
        .map_err(&failed)
        .and_then(|()| work(context, session));
    let _ = context.flush_context(SessionHandle::from(session).into());
    done
}

/// Which of these numbers the TPM keeps something at: NV indices or persistent keys, by the numbers.
pub(crate) fn handles(
    context: &mut Context,
    address: &TpmAddress,
    within: RangeInclusive<u32>,
) -> Result<Vec<u32>, TpmError> {
    const WHAT: &str = "list what it keeps";
    let (mut from, last) = (*within.start(), *within.end());
    let mut found = Vec::new();
    loop {
        // It answers with as many as it likes, and whether there are more.
        let answer = patiently(|| {
            context.execute_without_session(|c| c.get_capability(CapabilityType::Handles, from, HANDLES_MAX))
        });
        let (handles, more) = match answer {
            Ok((CapabilityData::Handles(handles), more)) => (handles.into_inner(), more),
            Ok(_) => (Vec::new(), false),
            Err(e) => return Err(failed(address, WHAT, e)),
        };
        let numbers = handles.into_iter().map(u32::from);
        let before = found.len();
        found.extend(numbers.filter(|n| (from..=last).contains(n)));
        match found[before..].last() {
            Some(&n) if more && n < last => from = n + 1,
            _ => return Ok(found),
        }
    }
}

/// The template of the owner hierarchy's primary key: to the bit the one that tpm2-openssl and the OpenSSL engines take,
/// or else the TPM would derive another key, and files would not be the same here and there. It is the storage key H-1
/// without its "unique" (TCG TPM v2.0 Provisioning Guidance, section "Storage Root Key").
fn primary_template() -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let cipher = SymmetricDefinitionObject::AES_128_CFB;
    p256(attributes, Digest::default(), cipher, EccScheme::Null)
}

/// The template of a key on P-256, with names by SHA-256.
pub(crate) fn p256(
    attributes: ObjectAttributes,
    policy: Digest,
    cipher: SymmetricDefinitionObject,
    scheme: EccScheme,
) -> Result<Public, Error> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(policy)
        .with_ecc_parameters(PublicEccParameters::new(
            cipher,
            scheme,
            EccCurve::NistP256,
            KeyDerivationFunctionScheme::Null,
        ))
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// The template of a key that signs. Its scheme is left open (null) and named with each signature, as tpm2-openssl does.
///
/// With a policy, nothing else lets it sign. That it may be certified (the role ADMIN, without adminWithPolicy) needs no more
/// than the empty password still: the TPM's word of a key is no use of it.
pub(crate) fn key_template(policy: Option<&PcrPolicy>) -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(policy.is_none())
        // A device is unattended: nobody would unlock it after somebody tried passwords.
        .with_no_da(true)
        .with_sign_encrypt(true)
        .build()?;
    let policy = policy.map(|policy| Digest::try_from(policy.auth_policy().as_slice()));
    let none = SymmetricDefinitionObject::Null;
    p256(
        attributes,
        policy.transpose()?.unwrap_or_default(),
        none,
        EccScheme::Null,
    )
}

/// Gives the parent to some work, and flushes it after it.
pub(crate) fn under<T>(
    context: &mut Context,
    address: &TpmAddress,
    parent: Parent,
    work: impl FnOnce(&mut Context, KeyHandle) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    match parent {
        Parent::Owner => {
            let template = primary_template().map_err(|e| failed(address, "make the parent", e))?;
            let made = patiently(|| {
                context.create_primary(Hierarchy::Owner, template.clone(), None, None, None, None)
            });
            let primary = match made {
                Ok(made) => made.key_handle,
                Err(e) if matches!(kind(e), Some(Kind::BadAuth | Kind::AuthFail)) => {
                    return Err(TpmError::OwnerPassword {
                        address: address.clone(),
                    });
                }
                Err(e) => return Err(failed(address, "make the parent", e)),
            };
            let done = work(context, primary);
            // Before the key is used, so that it needs one slot only. If this fails it is tried again at the end.
            let _ = context.flush_context(primary.into());
            done
        }
        Parent::Persistent(number) => {
            let handle = TpmHandle::Persistent(
                PersistentTpmHandle::new(number)
                    .map_err(|_| TpmError::Unsupported(format!("its parent is {number:#x}")))?,
            );
            let found: Result<ObjectHandle, Error> =
                patiently(|| context.execute_without_session(|c| c.tr_from_tpm_public(handle)));
            match found {
                Ok(found) => work(context, found.into()),
                Err(e) if kind(e) == Some(Kind::Handle) => Err(TpmError::OtherTpm {
                    address: address.clone(),
                    cause: format!("it keeps no key at {number:#x}, which would be the parent"),
                }),
                Err(e) => Err(failed(address, "find the parent", e)),
            }
        }
    }
}

/// Loads a key.
pub(crate) fn load(
    context: &mut Context,
    address: &TpmAddress,
    file: &KeyFile,
) -> Result<KeyHandle, TpmError> {
    let public = Public::unmarshall(&file.public).map_err(unreadable)?;
    let private = Private::try_from(file.private.clone()).map_err(unreadable)?;
    under(context, address, file.parent, |context, parent| {
        patiently(|| context.load(parent, private.clone(), public.clone())).map_err(|e| match kind(e) {
            // Sealed by another parent, or changed; or the two parts do not belong together.
            Some(Kind::Integrity | Kind::Binding) => TpmError::OtherTpm {
                address: address.clone(),
                cause: format!("it cannot unseal it: {}", cause(e)),
            },
            Some(Kind::BadAuth | Kind::AuthFail) => TpmError::Unsupported("its parent has a password".into()),
            Some(Kind::Size | Kind::Insufficient) => {
                TpmError::File(format!("the TPM cannot read it: {}", cause(e)))
            }
            _ => failed(address, "load the key", e),
        })
    })
}

pub(crate) fn unreadable(error: Error) -> TpmError {
    TpmError::File(format!("its parts cannot be read: {}", cause(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u32) -> Error {
        Error::Tss2Error(Tss2ResponseCode::from(code))
    }

    #[test]
    fn a_busy_tpm_is_asked_again_and_not_for_ever() {
        for busy in [0x922, 0x908, 0x90a] {
            let mut asked = 0;
            let answer = patiently(|| {
                asked += 1;
                if asked < 3 { Err(error(busy)) } else { Ok(asked) }
            });
            assert_eq!(answer, Ok(3), "{busy:#x}");
        }
        let mut asked = 0;
        let answer: Result<(), Error> = patiently(|| {
            asked += 1;
            Err(error(0x922))
        });
        assert_eq!((answer, asked), (Err(error(0x922)), WAITS.len() + 1));
        // What is no matter of patience is told at once: a lockout, a failed integrity check, full slots.
        for other in [0x921, 0x1df, 0x902] {
            let mut asked = 0;
            let answer: Result<(), Error> = patiently(|| {
                asked += 1;
                Err(error(other))
            });
            assert_eq!((answer, asked), (Err(error(other)), 1), "{other:#x}");
        }
    }

    #[test]
    fn there_is_one_turn_for_each_tpm() {
        let turn = |port: &str| turn(&format!("swtpm:port={port}").parse().unwrap());
        let first = turn("1");
        let _held = first.lock();
        assert!(turn("1").try_lock().is_none());
        assert!(turn("2").try_lock().is_some());
    }

    #[test]
    fn causes_have_their_number_and_failures_their_hint() {
        assert!(cause(error(0x1df)).ends_with("(0x1df)"));
        assert!(cause(error(0xa_000a)).contains("libtss2 says 0xa000a"));
        let address = TpmAddress::default();
        let lockout = failed(&address, "sign", error(0x921));
        assert_eq!(
            lockout,
            TpmError::Lockout {
                address: address.clone()
            }
        );
        for (code, word) in [(0x902, "resource manager"), (0x101, "selftest")] {
            let message = failed(&address, "sign", error(code)).to_string();
            assert!(message.contains("hint: ") && message.contains(word), "{message}");
        }
    }
}
