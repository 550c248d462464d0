//! One token: the module, login, sessions.
//!
//! A module is initialised once per process. A session is used by one thread at a time; login is the token's, so all
//! sessions share it. When the token was taken out, reset, or logged out, every session is stale: all are dropped, and
//! opened anew once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;
use parking_lot::Mutex;

use crate::error::TokenError;
use crate::uri::TokenUri;

/// Idle sessions that are kept open.
const SESSIONS_KEPT_MAX: usize = 8;

/// The modules that are loaded, by path; each with a lock of its own, for one may hang while it is loaded.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Mutex<Option<Pkcs11>>>>> = Mutex::new(BTreeMap::new());
/// The PIN (its SHA-256) that a token refused.
type RefusedPin = Arc<Mutex<Option<Vec<u8>>>>;

/// By token, each with a lock of its own, for one may hang while its PIN is tried.
static REFUSED_PINS: Mutex<BTreeMap<TokenName, RefusedPin>> = Mutex::new(BTreeMap::new());

/// Module and serial number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct TokenName(PathBuf, String);

fn sha256(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .to_vec()
}

/// Loads a module, once per process, and initialises it, also if something else has finalised it meanwhile.
fn module(path: &Path) -> Result<Pkcs11, TokenError> {
    let failed = |what: String| TokenError::Module {
        path: path.to_owned(),
        what,
    };
    let loaded = MODULES.lock().entry(path.to_owned()).or_default().clone();
    let mut loaded = loaded.lock();
    let context = match &*loaded {
        Some(context) => context.clone(),
        None => Pkcs11::new(path).map_err(|e| failed(e.to_string()))?,
    };
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(e) => return Err(failed(e.to_string())),
    }
    *loaded = Some(context.clone());
    Ok(context)
}

/// A token that a URI names.
pub struct Token {
    uri: TokenUri,
    sessions: Mutex<Vec<Session>>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({})", self.uri.token_text())
    }
}

impl Token {
    /// Nothing is opened yet.
    pub(crate) fn new(uri: TokenUri) -> Self {
        Self {
            uri,
            sessions: Mutex::default(),
        }
    }

    pub(crate) fn uri(&self) -> &TokenUri {
        &self.uri
    }

    pub(crate) fn failed(&self, what: &'static str, cause: &dyn std::fmt::Display) -> TokenError {
        TokenError::Failed {
            token: self.uri.token_text(),
            what,
            cause: cause.to_string(),
        }
    }

    /// Finds the slot anew each time: a token may come back in another one.
    fn slot(&self, context: &Pkcs11) -> Result<(Slot, TokenInfo), TokenError> {
        let listed = |e: Error| self.failed("be looked for", &e);
        let uri = &self.uri;
        let (mut fitting, mut present) = (Vec::new(), Vec::new());
        for slot in context.get_slots_with_token().map_err(listed)? {
            // An empty or broken reader is not the token that is looked for.
            let Ok(info) = context.get_token_info(slot) else {
                continue;
            };
            if !info.token_initialized() {
                continue;
            }
            let is = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|w| w == has);
            if is(&uri.token, info.label())
                && is(&uri.serial, info.serial_number())
                && is(&uri.manufacturer, info.manufacturer_id())
                && is(&uri.model, info.model())
                && uri.slot.is_none_or(|s| s == slot.id())
            {
                fitting.push((slot, info));
            } else {
                present.push(format!("{:?}", info.label()));
            }
        }
        match (fitting.pop(), fitting.is_empty()) {
            (Some(found), true) => Ok(found),
            (Some(_), false) => Err(TokenError::SeveralTokens(uri.token_text())),
            (None, _) => Err(TokenError::NoToken {
                wanted: uri.token_text(),
                present,
            }),
        }
    }

    fn open(&self, is_writing: bool) -> Result<Session, TokenError> {
        let context = module(&self.uri.module)?;
        let (slot, info) = self.slot(&context)?;
        let opened = if is_writing {
            context.open_rw_session(slot)
        } else {
            context.open_ro_session(slot)
        };
        let session = opened.map_err(|e| self.failed("open a session", &e))?;
        if info.login_required() {
            self.login(&session, &info)?;
        }
        Ok(session)
    }

    /// Logs in. A PIN that was refused is not tried again, and a last try is not spent.
    fn login(&self, session: &Session, info: &TokenInfo) -> Result<(), TokenError> {
        let name = format!("{:?}", info.label());
        if info.user_pin_locked() {
            return Err(TokenError::PinLocked(name));
        }
        let Some(source) = &self.uri.pin else {
            if info.protected_authentication_path() {
                return match session.login(UserType::User, None) {
                    Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
                    Err(e) => Err(self.failed("log in by its keypad", &e)),
                };
            }
            return Err(TokenError::Pin(
                "the token asks for one; hint: name the file that holds it (pin-source=/PATH)".into(),
            ));
        };
        let pin = source.read()?;
        let wrong = || TokenError::PinWrong {
            token: name.clone(),
            source_text: source.to_string(),
        };
        let token = TokenName(self.uri.module.clone(), info.serial_number().to_owned());
        let hash = sha256(&pin);
        // Held over the try: two threads must not both try the same wrong PIN.
        let refused = REFUSED_PINS.lock().entry(token).or_default().clone();
        let mut refused = refused.lock();
        if refused.as_ref() == Some(&hash) {
            return Err(wrong());
        }
        if info.user_pin_final_try() {
            return Err(TokenError::PinLastTry(name));
        }
        match session.login_with_raw(UserType::User, &RawAuthPin::from(Box::new(pin.to_vec()))) {
            Ok(()) => {
                *refused = None;
                Ok(())
            }
            Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(RvError::PinLocked, _)) => Err(TokenError::PinLocked(name)),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinExpired,
                _,
            )) => {
                *refused = Some(hash);
                Err(wrong())
            }
            Err(e) => Err(self.failed("log in", &e)),
        }
    }

    /// A session that is logged in: an idle one, else a new one. Hand it back by [`Token::keep`].
    pub(crate) fn session(&self) -> Result<Session, TokenError> {
        let idle = self.sessions.lock().pop();
        match idle {
            Some(session) => Ok(session),
            None => self.open(false),
        }
    }

    /// One that may write, for making keys.
    pub(crate) fn writing_session(&self) -> Result<Session, TokenError> {
        self.open(true)
    }

    pub(crate) fn keep(&self, session: Session) {
        let mut sessions = self.sessions.lock();
        if sessions.len() < SESSIONS_KEPT_MAX {
            sessions.push(session);
        }
    }

    /// Forgets all idle sessions.
    pub(crate) fn forget_sessions(&self) {
        let stale = std::mem::take(&mut *self.sessions.lock());
        drop(stale);
    }
}
