//! The C interface. Each function looks at what it was given, does its work in safe Rust, and gives a code; no panic leaves it.
#![allow(
    unsafe_code,
    reason = "the boundary: pointers come from C, and what they point to is promised in the header"
)]
#![allow(non_camel_case_types, reason = "the names are those of the header")]
#![allow(
    clippy::missing_safety_doc,
    reason = "what callers promise is the same for all, and stands at the top of the header: cbindgen.toml"
)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;
use std::time::Duration;

use countersign_device::State;

use crate::device::{Device, Options, Words};
use crate::fault::{Fault, c_text};

// 1 to 12 are the exit codes of countersign-agent.

/// Done.
pub const CS_OK: c_int = 0;
/// Another failure.
pub const CS_FAILED: c_int = 1;
/// What was handed in does not do.
pub const CS_USAGE: c_int = 2;
/// The identity folder, its key or its disk cannot be used.
pub const CS_IDENTITY: c_int = 3;
/// The platform cannot be reached, or not yet.
pub const CS_UNREACHABLE: c_int = 4;
/// Whoever answers is not the platform that this device trusts.
pub const CS_NOT_TRUSTED: c_int = 5;
/// The platform refused the certificate.
pub const CS_CERTIFICATE_REFUSED: c_int = 6;
/// The platform refused the session: suspended, unknown, or no policy permits it.
pub const CS_SESSION_REFUSED: c_int = 7;
/// The platform did not permit a publish or a subscription.
pub const CS_NOT_PERMITTED: c_int = 8;
/// The connection was ended or cut.
pub const CS_ENDED: c_int = 9;
/// The platform refused to renew the certificate.
pub const CS_ENROLMENT_REFUSED: c_int = 10;
/// Somebody is to approve the device first.
pub const CS_WAITS_FOR_APPROVAL: c_int = 11;
/// The library's thread has ended by a fault: close, and open again.
pub const CS_STOPPED: c_int = 12;
/// No message came in the time. It is no failure, and `*error` stays NULL.
pub const CS_NO_MESSAGE: c_int = 20;
/// As many messages wait as may: this one was not taken.
pub const CS_QUEUE_FULL: c_int = 21;

/// A device that is open.
pub struct cs_device(Device);

/// What happened, and what to do about it.
pub struct cs_error(Fault);

/// A message for the device.
pub struct cs_message {
    topic: CString,
    /// With a zero octet after its end, which is not of the message.
    payload: Vec<u8>,
}

/// How to open a device. Set all to zero, then `size`, then what is to differ: 0 is the default of each.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cs_options {
    /// sizeof(cs_options): so that a later library knows what an earlier program means.
    pub size: usize,
    /// Seconds between signs of life; default 60, at most 65535.
    pub keep_alive_s: u32,
    /// The longest that connecting may take, in seconds; default 10.
    pub connect_timeout_s: u32,
    /// The most messages that wait for the platform; default 10000.
    pub queue_messages: u32,
    /// The most messages for the device that wait for cs_next_message; default 64. When another comes the oldest goes.
    pub commands_max: u32,
    /// The most bytes that wait for the platform; default 8 MiB.
    pub queue_bytes: u64,
    /// Not 0: others renew the certificate. By default this library does.
    pub leave_renewal: c_int,
    /// Not 0: what happens is told on standard error, for people.
    pub verbose: c_int,
}

/// Where the library stands with the platform.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum cs_state {
    /// On its way in.
    CS_CONNECTING = 0,
    /// Admitted.
    CS_CONNECTED = 1,
    /// It failed, and tries again by itself.
    CS_WAITING = 2,
    /// Its thread has ended by a fault.
    CS_HALTED = 3,
}

/// How a device stands.
#[repr(C)]
pub struct cs_status {
    /// sizeof(cs_status), set by whoever asks.
    pub size: usize,
    /// Where it stands.
    pub state: cs_state,
    /// Messages that wait for the platform, on disk.
    pub waiting: u64,
    /// Messages that the platform has, since the device was opened.
    pub delivered: u64,
    /// Messages that the platform's policies refused since then, or that are larger than it takes; they are gone.
    pub refused: u64,
    /// Messages for the device that had no room, because they were not taken; they are gone.
    pub commands_lost: u64,
    /// Until when the certificate in use is valid, in seconds since 1970; 0 in the first moment.
    pub certificate_until_s: i64,
}

/// Opens an identity folder, and starts a thread that connects, delivers, renews, and connects again, by itself and for as
/// long as it takes. Messages are taken from now on, whether the platform is there or not.
///
/// One process opens a folder, once; countersign-agent run is another.
///
/// Gives the device, to be closed with cs_close; NULL if the folder cannot be used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_open(
    identity_folder: *const c_char,
    options: *const cs_options,
    error: *mut *mut cs_error,
) -> *mut cs_device {
    let mut device = ptr::null_mut();
    // SAFETY: the caller promises that `error` is null or a place for a pointer.
    let reporting = unsafe { Reporting::new(error) };
    reporting.guard(|| {
        // SAFETY: the caller promises that it is null or a text that ends with a zero octet, for as long as this takes.
        let Some(path) = (unsafe { bytes_of(identity_folder) }) else {
            return Err(null("identity_folder", "name the folder that holds device.crt"));
        };
        // SAFETY: the caller promises that it is null or points to options of the size that they say.
        let options = unsafe { read_options(options) }?;
        let opened = Device::open(Path::new(OsStr::from_bytes(path)), options)?;
        device = Box::into_raw(Box::new(cs_device(opened)));
        Ok(CS_OK)
    });
    device
}

/// Takes a message for the platform. When this gives CS_OK the message is on disk, and neither a lost network nor a lost
/// power loses it: it is delivered at least once, in the order in which messages were taken.
///
/// `topic`: NULL is telemetry of this device, devices/ID/telemetry. `payload`: `length` octets; may be NULL if that is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_publish(
    device: *mut cs_device,
    topic: *const c_char,
    payload: *const c_void,
    length: usize,
    error: *mut *mut cs_error,
) -> c_int {
    // SAFETY: the caller promises that `error` is null or a place for a pointer.
    let reporting = unsafe { Reporting::new(error) };
    reporting.guard(|| {
        // SAFETY: the caller promises that it is null, or came from cs_open and was not closed.
        let device = unsafe { device_of(device) }?;
        // SAFETY: the caller promises that it is null or a text that ends with a zero octet, for as long as this takes.
        let topic = unsafe { bytes_of(topic) }.map(std::str::from_utf8).transpose();
        let topic =
            topic.map_err(|e| Fault::usage(&format!("the topic is no UTF-8: {e}"), "topics are UTF-8"))?;
        let payload: &[u8] = match length {
            0 => &[],
            _ if payload.is_null() => return Err(null("payload", "hand in the octets, or the length 0")),
            _ if isize::try_from(length).is_err() => {
                return Err(Fault::usage(
                    "no payload has that length",
                    "hand in its length in octets",
                ));
            }
            // SAFETY: the caller promises `length` octets there, which nobody changes for as long as this takes; it is
            // not null and no longer than any object may be.
            _ => unsafe { std::slice::from_raw_parts(payload.cast(), length) },
        };
        device.publish(topic, payload)?;
        Ok(CS_OK)
    })
}

/// Waits for the next message for the device: a command, under devices/ID/commands.
///
/// CS_OK: `*message` is it, to be freed with cs_message_free. CS_NO_MESSAGE: none came in the time. In every other case, too,
/// `*message` becomes NULL. The platform regards a message as taken when it has come to this library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_next_message(
    device: *mut cs_device,
    timeout_ms: u32,
    message: *mut *mut cs_message,
    error: *mut *mut cs_error,
) -> c_int {
    if !message.is_null() {
        // SAFETY: it is not null, and the caller promises that it is then a place for a pointer.
        unsafe { message.write(ptr::null_mut()) };
    }
    // SAFETY: the caller promises that `error` is null or a place for a pointer.
    let reporting = unsafe { Reporting::new(error) };
    reporting.guard(|| {
        // SAFETY: the caller promises that it is null, or came from cs_open and was not closed.
        let device = unsafe { device_of(device) }?;
        // Before one is taken, which would then be lost.
        if message.is_null() {
            return Err(null("message", "hand in the address of a cs_message *"));
        }
        let Some(next) = device.next_message(milliseconds(timeout_ms))? else {
            return Ok(CS_NO_MESSAGE);
        };
        let mut payload = next.payload;
        payload.push(0);
        let next = cs_message {
            topic: c_text(&next.topic),
            payload,
        };
        // SAFETY: as above.
        unsafe { message.write(Box::into_raw(Box::new(next))) };
        Ok(CS_OK)
    })
}

/// The topic of a message, for as long as the message lives; of NULL it is empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_message_topic(message: *const cs_message) -> *const c_char {
    // SAFETY: the caller promises that it is null, or came from cs_next_message and was not freed.
    unsafe { message.as_ref() }.map_or(c"".as_ptr(), |m| m.topic.as_ptr())
}

/// The payload of a message, for as long as the message lives; never NULL. A zero octet, which is not of it, stands after its
/// end, so that a text can be read as one; it may hold others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_message_payload(message: *const cs_message) -> *const c_void {
    // SAFETY: the caller promises that it is null, or came from cs_next_message and was not freed.
    unsafe { message.as_ref() }.map_or(c"".as_ptr().cast(), |m| m.payload.as_ptr().cast())
}

/// How many octets the payload of a message has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_message_length(message: *const cs_message) -> usize {
    // SAFETY: the caller promises that it is null, or came from cs_next_message and was not freed.
    unsafe { message.as_ref() }.map_or(0, |m| m.payload.len() - 1)
}

/// Frees a message; NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_message_free(message: *mut cs_message) {
    // SAFETY: the caller promises that it is null, or came from cs_next_message and was not freed.
    unsafe { free(message) };
}

/// Waits until the platform has admitted the device. Nobody has to: messages are taken before, too.
///
/// If it has not in the time: what is wrong, with its cure. The library goes on trying.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_wait_connected(
    device: *mut cs_device,
    timeout_ms: u32,
    error: *mut *mut cs_error,
) -> c_int {
    // SAFETY: the caller promises that `error` is null or a place for a pointer.
    let reporting = unsafe { Reporting::new(error) };
    reporting.guard(|| {
        // SAFETY: the caller promises that it is null, or came from cs_open and was not closed.
        let device = unsafe { device_of(device) }?;
        device.wait_connected(milliseconds(timeout_ms))?;
        Ok(CS_OK)
    })
}

/// How the device stands.
///
/// `fault`: what is wrong with the link now, to be freed with cs_error_free; NULL if nothing is. May be NULL if nobody asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_status_read(
    device: *mut cs_device,
    status: *mut cs_status,
    fault: *mut *mut cs_error,
    error: *mut *mut cs_error,
) -> c_int {
    // SAFETY: the caller promises that both are null or places for pointers.
    let (fault, reporting) = unsafe { (Reporting::new(fault), Reporting::new(error)) };
    reporting.guard(|| {
        // SAFETY: the caller promises that it is null, or came from cs_open and was not closed.
        let device = unsafe { device_of(device) }?;
        if status.is_null() {
            return Err(null("status", "hand in the address of a cs_status"));
        }
        // SAFETY: it is not null, and the caller promises that it then has at least its size.
        let size = unsafe { (&raw const (*status).size).read() };
        sized(size, size_of::<cs_status>(), "cs_status")?;
        let condition = device.condition();
        // SAFETY: it is not null, and has said that it is as large as this.
        unsafe {
            status.write(cs_status {
                size: size_of::<cs_status>(),
                state: match condition.state {
                    State::Connecting => cs_state::CS_CONNECTING,
                    State::Connected => cs_state::CS_CONNECTED,
                    State::Waiting => cs_state::CS_WAITING,
                    State::Stopped => cs_state::CS_HALTED,
                },
                waiting: condition.waiting,
                delivered: condition.delivered,
                refused: condition.refused,
                commands_lost: condition.lost,
                certificate_until_s: condition.certificate_until_s,
            });
        }
        if let Some(found) = condition.fault {
            fault.report(found);
        }
        Ok(CS_OK)
    })
}

/// Delivers what can be delivered in the time, ends the session and the thread, and frees the device: always, and whatever
/// this gives. It takes at most some seconds longer than it was given.
///
/// CS_OK: the platform has all of it. Otherwise messages stay on disk, and are delivered when the folder is opened again;
/// `*error` says how many, and why. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_close(
    device: *mut cs_device,
    timeout_ms: u32,
    error: *mut *mut cs_error,
) -> c_int {
    // SAFETY: the caller promises that `error` is null or a place for a pointer.
    let reporting = unsafe { Reporting::new(error) };
    reporting.guard(|| {
        if device.is_null() {
            return Ok(CS_OK);
        }
        // SAFETY: it is not null; the caller promises that it then came from cs_open, was not closed, and that no other
        // thread uses it from now on.
        let device = unsafe { Box::from_raw(device) };
        device.0.close(milliseconds(timeout_ms))?;
        Ok(CS_OK)
    })
}

/// The code of an error; CS_OK of NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_error_code(error: *const cs_error) -> c_int {
    // SAFETY: the caller promises that it is null, or came from this library and was not freed.
    unsafe { error.as_ref() }.map_or(CS_OK, |e| e.0.code)
}

/// What happened, for as long as the error lives; of NULL it is empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_error_message(error: *const cs_error) -> *const c_char {
    // SAFETY: the caller promises that it is null, or came from this library and was not freed.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |e| e.0.what.as_ptr())
}

/// What to do about it, for as long as the error lives; NULL if nothing is known to help.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_error_cure(error: *const cs_error) -> *const c_char {
    // SAFETY: the caller promises that it is null, or came from this library and was not freed.
    let cure = unsafe { error.as_ref() }.and_then(|e| e.0.cure.as_ref());
    cure.map_or(ptr::null(), |c| c.as_ptr())
}

/// Frees an error; NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cs_error_free(error: *mut cs_error) {
    // SAFETY: the caller promises that it is null, or came from this library and was not freed.
    unsafe { free(error) };
}

/// The version of this library. It is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn cs_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

// --- what the functions have in common

/// Where a caller wants to read what went wrong.
struct Reporting(*mut *mut cs_error);

impl Reporting {
    /// Nothing so far.
    ///
    /// # Safety
    /// The place is null, or one for a pointer for as long as the call takes.
    unsafe fn new(place: *mut *mut cs_error) -> Self {
        if !place.is_null() {
            // SAFETY: promised by the caller.
            unsafe { place.write(ptr::null_mut()) };
        }
        Self(place)
    }

    fn report(&self, fault: Fault) {
        if !self.0.is_null() {
            // SAFETY: promised to `new`.
            unsafe { self.0.write(Box::into_raw(Box::new(cs_error(fault)))) };
        }
    }

    /// The code of what was done. A panic becomes a fault: it must not unwind into C.
    fn guard(&self, work: impl FnOnce() -> Result<c_int, Fault>) -> c_int {
        let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Fault::panic(&*panic)));
        done.unwrap_or_else(|fault| {
            let code = fault.code;
            self.report(fault);
            code
        })
    }
}

fn null(what: &str, cure: &str) -> Fault {
    Fault::usage(&format!("{what} is NULL"), cure)
}

fn sized(size: usize, known: usize, what: &str) -> Result<(), Fault> {
    if size == known {
        return Ok(());
    }
    Err(Fault::usage(
        &format!("{what} has the size {size}, and this library knows {known}"),
        "set it to zero, then its size to its sizeof; compile with the header of this very library",
    ))
}

fn milliseconds(timeout_ms: u32) -> Duration {
    Duration::from_millis(timeout_ms.into())
}

/// # Safety
/// It is null, or came from `cs_open` and is not closed while the answer is used.
unsafe fn device_of<'a>(device: *const cs_device) -> Result<&'a Device, Fault> {
    // SAFETY: promised by the caller.
    match unsafe { device.as_ref() } {
        Some(device) => Ok(&device.0),
        None => Err(null("device", "look at the error that cs_open gave")),
    }
}

/// # Safety
/// It is null, or a text that ends with a zero octet, and stays while the answer is used.
unsafe fn bytes_of<'a>(text: *const c_char) -> Option<&'a [u8]> {
    if text.is_null() {
        return None;
    }
    // SAFETY: it is not null; the rest is promised by the caller.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// # Safety
/// It is null, or came from a `Box` of ours and is used by nobody after this.
unsafe fn free<T>(owned: *mut T) {
    if !owned.is_null() {
        // SAFETY: it is not null; the rest is promised by the caller. Nothing in there panics when it is dropped.
        drop(unsafe { Box::from_raw(owned) });
    }
}

/// # Safety
/// It is null, or points to as many octets as its first member says.
unsafe fn read_options(options: *const cs_options) -> Result<Options, Fault> {
    let mut read = Options::default();
    if options.is_null() {
        return Ok(read);
    }
    // SAFETY: it is not null, and has at least its size: promised by the caller.
    let size = unsafe { (&raw const (*options).size).read() };
    sized(size, size_of::<cs_options>(), "cs_options")?;
    // SAFETY: it has the size that it says: promised by the caller. Any bits are numbers.
    let given = unsafe { options.read() };
    if given.keep_alive_s > u32::from(u16::MAX) {
        return Err(Fault::usage(
            &format!("keep_alive_s is {}", given.keep_alive_s),
            "at most 65535",
        ));
    }
    let seconds = |given: u32, default: Duration| match given {
        0 => default,
        n => Duration::from_secs(n.into()),
    };
    let number = |given: u32, default: usize| match given {
        0 => default,
        n => n as usize,
    };
    read.link.keep_alive = seconds(given.keep_alive_s, read.link.keep_alive);
    read.link.patience = seconds(given.connect_timeout_s, read.link.patience);
    read.queue.messages = number(given.queue_messages, read.queue.messages);
    if given.queue_bytes != 0 {
        read.queue.bytes = given.queue_bytes;
    }
    read.messages_max = number(given.commands_max, read.messages_max);
    if given.leave_renewal != 0 {
        read.window = None;
    }
    if given.verbose != 0 {
        read.words = Words::StandardError;
    }
    Ok(read)
}
