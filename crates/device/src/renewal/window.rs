//! When a certificate is renewed.

use std::time::Duration;

use countersign_identity::{CertificateFacts, Timestamp};

/// When a certificate is renewed: at a moment within this part of its life, in percent, each as likely. The moment is
/// drawn from the certificate itself: a device that restarts does not draw again, and a fleet that was issued at once does
/// not come back at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenewalWindow {
    /// From here.
    pub from_percent: u8,
    /// To here.
    pub to_percent: u8,
}

impl Default for RenewalWindow {
    /// Around two thirds.
    fn default() -> Self {
        Self {
            from_percent: 60,
            to_percent: 73,
        }
    }
}

impl std::str::FromStr for RenewalWindow {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is no part of a life; write FROM-TO in percent, such as 60-73");
        let (from, to) = s.split_once('-').ok_or_else(wrong)?;
        let window = Self {
            from_percent: from.parse().map_err(|_| wrong())?,
            to_percent: to.parse().map_err(|_| wrong())?,
        };
        if window.from_percent > window.to_percent || window.to_percent > 95 {
            return Err(format!("{s:?}: FROM must be at most TO, and TO at most 95"));
        }
        Ok(window)
    }
}

impl RenewalWindow {
    /// When a certificate is to be renewed.
    pub fn due(self, certificate: &CertificateFacts) -> Timestamp {
        let life = certificate.not_after.since(certificate.not_before).as_secs();
        let mut first = [0; 4];
        first.copy_from_slice(&certificate.fingerprint.as_bytes()[..4]);
        let drawn = u64::from(u32::from_be_bytes(first));
        let (from, to) = (u64::from(self.from_percent), u64::from(self.to_percent));
        let start = life / 100 * from;
        let window = life / 100 * (to - from);
        // At most 2^32 times a life of 2^38 s: it fits.
        let offset = start + ((u128::from(window) * u128::from(drawn)) >> 32) as u64;
        certificate.not_before.plus(Duration::from_secs(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(days: i64) -> CertificateFacts {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = params.not_before + Duration::from_secs(days.unsigned_abs() * 86_400);
        CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn the_moment_is_within_the_window_and_spread_over_it() {
        let window = RenewalWindow::default();
        let mut tenths = [0; 10];
        for _ in 0..300 {
            let facts = certificate(90);
            let at = window.due(&facts).since(facts.not_before).as_secs_f64() / (90.0 * 86_400.0);
            assert!((0.60..0.731).contains(&at), "{at}");
            assert_eq!(
                window.due(&facts),
                window.due(&facts),
                "a restart does not draw again"
            );
            tenths[((at - 0.60) / 0.013) as usize % 10] += 1;
        }
        // Each tenth of the window expects 30.
        assert!(tenths.iter().all(|n| *n > 5), "{tenths:?}");
        assert_eq!("60-73".parse(), Ok(window));
        for bad in ["", "60", "73-60", "60-99", "a-b"] {
            assert!(bad.parse::<RenewalWindow>().is_err(), "{bad}");
        }
    }
}
