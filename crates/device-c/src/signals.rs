//! Signals stay with the program's own threads.
#![allow(unsafe_code, reason = "std cannot say which signals a thread takes")]

use std::mem::MaybeUninit;
use std::ptr;

/// From now on this thread, and each that it starts, takes no signal but those of its own faults.
///
/// A signal handler of the program then never runs here. And SIGPIPE, which a Rust program ignores from its start but a C
/// program does not, does not end the program when the platform closes a connection that is written to: writing fails with
/// EPIPE, and we connect anew.
pub(crate) fn block() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` makes the set whole before anything reads it; all pointers are to it, or null where that is
    // allowed. None of them can fail: the signals and the action are known ones.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigdelset(set.as_mut_ptr(), fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, IoSlice, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn writing_to_who_is_gone_fails_and_does_not_end_the_program() {
        // As in a program in C: a Rust program ignores the signal, and so would this test.
        // SAFETY: no handler is set, but the default action, for a signal that nothing here waits for.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let written = std::thread::spawn(|| {
            block();
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            drop(theirs);
            // As TLS writes: without MSG_NOSIGNAL.
            ours.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")])
        });
        assert_eq!(written.join().unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
