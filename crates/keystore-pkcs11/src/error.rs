//! What can go wrong with a token, each with its cure.

use std::path::PathBuf;

use cryptoki::error::{Error, RvError};

/// Why a key in a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The URI is not one, or asks for something that is not done here.
    #[error(
        "not a PKCS#11 URI that can be used: {0}; hint: pkcs11:token=NAME;object=KEY?module-path=/PATH/MODULE.so&pin-source=/PATH/PIN"
    )]
    Uri(String),
    /// The module cannot be loaded.
    #[error("the PKCS#11 module {} cannot be loaded: {what}; hint: install the token's software, or correct module-path", path.display())]
    Module {
        /// The module.
        path: PathBuf,
        /// What the loader says.
        what: String,
    },
    /// There is no such token.
    #[error("there is no token {wanted}; {}; hint: plug it in or initialise it, or correct the URI", if present.is_empty() { "the module sees none".to_owned() } else { format!("the module sees {}", present.join(", ")) })]
    NoToken {
        /// What the URI asks for.
        wanted: String,
        /// What there is.
        present: Vec<String>,
    },
    /// Several tokens fit.
    #[error("several tokens fit {0}; hint: name the serial number too (serial=...)")]
    SeveralTokens(String),
    /// The PIN cannot be read.
    #[error("the PIN cannot be read: {0}")]
    Pin(String),
    /// The token says that the PIN is wrong.
    #[error(
        "the PIN in {source_text} is wrong, says token {token}; it is not tried again until the file changes, for a token locks after a few; hint: correct the file"
    )]
    PinWrong {
        /// The token.
        token: String,
        /// Where the PIN came from.
        source_text: String,
    },
    /// The token has one try left.
    #[error(
        "token {0} has one try of the PIN left, and it is not spent by a program; hint: log in by hand with the right PIN (pkcs11-tool --login --list-objects), which resets the count"
    )]
    PinLastTry(String),
    /// The token is locked.
    #[error(
        "the PIN of token {0} is locked after too many wrong ones; hint: its security officer sets a new one (pkcs11-tool --login --login-type so --init-pin)"
    )]
    PinLocked(String),
    /// There is no such key.
    #[error(
        "token {token} has no private key {key}; hint: pkcs11-tool --login --list-objects shows what there is"
    )]
    NoKey {
        /// The token.
        token: String,
        /// What the URI asks for.
        key: String,
    },
    /// Several keys fit.
    #[error("token {token} has several private keys {key}; hint: name its id too (id=%..)")]
    SeveralKeys {
        /// The token.
        token: String,
        /// What the URI asks for.
        key: String,
    },
    /// The key is none that can be used here.
    #[error("the key in the token cannot be used: {0}")]
    Unsuitable(String),
    /// The token made a key that is not as protected as was asked. It was destroyed.
    #[error(
        "the token made a key that could leave it ({0}), so it was destroyed; hint: use a token that keeps CKA_SENSITIVE and not CKA_EXTRACTABLE"
    )]
    NotProtected(&'static str),
    /// The token does not answer.
    #[error(
        "token {token} gave no answer within {limit_s} s when it was to {what}; hint: see whether it is plugged in, reachable and free (pkcs11-tool --module {} --list-token-slots answers at once), then ask again", module.display()
    )]
    NoAnswer {
        /// The token.
        token: String,
        /// Its module.
        module: PathBuf,
        /// What was tried.
        what: &'static str,
        /// How long, in seconds.
        limit_s: u64,
    },
    /// The token does not answer, and has been asked often enough.
    #[error(
        "token {token} is not asked to {what}: {calls} calls to it have had no answer; hint: see whether it is plugged in, reachable and free (pkcs11-tool --module {} --list-token-slots answers at once); once one of them is answered it is asked again, else restart this program", module.display()
    )]
    Hangs {
        /// The token.
        token: String,
        /// Its module.
        module: PathBuf,
        /// What was wanted.
        what: &'static str,
        /// How many calls wait for it.
        calls: usize,
    },
    /// The token failed.
    #[error("token {token} cannot {what}: {cause}")]
    Failed {
        /// The token.
        token: String,
        /// What was tried.
        what: &'static str,
        /// What it says.
        cause: String,
    },
}

/// Whether a call failed because a session, a login or a handle is from before the token was taken out, reset or logged
/// out elsewhere: then everything is opened anew, once.
pub(crate) fn is_stale(e: &Error) -> bool {
    let Error::Pkcs11(code, _) = e else { return false };
    matches!(
        code,
        RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::UserNotLoggedIn
            | RvError::DeviceRemoved
            | RvError::DeviceError
            | RvError::TokenNotPresent
            | RvError::SlotIdInvalid
            | RvError::KeyHandleInvalid
            | RvError::ObjectHandleInvalid
            | RvError::CryptokiNotInitialized
    )
}
