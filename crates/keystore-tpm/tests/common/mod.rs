//! The software TPM of these tests.

use std::ops::{Deref, DerefMut};

use countersign_keystore_tpm::TpmAddress;
use countersign_testkit::swtpm;

/// A TPM in software, and other programs that use it.
pub(crate) struct Swtpm(swtpm::Swtpm);

impl Swtpm {
    pub(crate) fn start() -> Self {
        Self(swtpm::Swtpm::start())
    }

    /// As it comes from the factory: EKs of RSA-2048 and P-384, kept at 0x81010001 and 0x81010016, and their certificates,
    /// by a CA of its own.
    #[allow(dead_code, reason = "not every file of tests needs one")]
    pub(crate) fn manufactured() -> Self {
        Self(swtpm::Swtpm::manufactured(&[]))
    }

    pub(crate) fn address(&self) -> TpmAddress {
        self.tcti().parse().unwrap()
    }

    pub(crate) fn tcti(&self) -> String {
        self.0.address()
    }

    /// The keys that are loaded now, by tpm2-tools.
    pub(crate) fn transient(&self) -> String {
        self.run("tpm2_getcap", &["handles-transient"])
    }

    /// What is loaded is none.
    pub(crate) fn holds_nothing(&self) {
        assert_eq!(self.transient(), "");
        for what in ["handles-loaded-session", "handles-saved-session"] {
            assert_eq!(self.run("tpm2_getcap", &[what]), "", "{what}");
        }
    }
}

impl Deref for Swtpm {
    type Target = swtpm::Swtpm;

    fn deref(&self) -> &swtpm::Swtpm {
        &self.0
    }
}

impl DerefMut for Swtpm {
    fn deref_mut(&mut self) -> &mut swtpm::Swtpm {
        &mut self.0
    }
}
