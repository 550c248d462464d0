//! Which PCRs a key is bound to, in the words of tpm2-tools, and the policy that binds it.
//!
//! A PCR holds a hash over all that was measured into it since the device was started: firmware, its settings, boot loader,
//! system (TCG PC Client Platform Firmware Profile, section "PCR Usage"). A key with the policy TPM2_PolicyPCR signs while the
//! chosen ones have the values that they had when it was made, and in no other state of the device.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};

use crate::error::TpmError;

/// TPM_CC_PolicyPCR (TPM 2.0 part 2, section "TPM_CC").
pub(crate) const POLICY_PCR: u32 = 0x017f;

/// PCRs 0 to 23: as many as a PC's TPM has (TCG PC Client Platform TPM Profile, section "PCR Attributes").
const NUMBERS: u8 = 24;
/// The size of a selection among those, in bytes. No less is accepted by such a TPM (TPM_PT_PCR_SELECT_MIN).
const SELECT_BYTES: u8 = NUMBERS / 8;

/// A hash by which a TPM keeps PCRs. Not SHA-1: with it, two states can be made that look alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Bank {
    Sha256,
    Sha384,
    Sha512,
}

impl Bank {
    const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// TPM_ALG_ID (TCG Algorithm Registry).
    fn number(self) -> u16 {
        match self {
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }
}

/// A selection of PCRs of one bank. As text, and from text: `sha256:0,2,7`; banks are `sha256`, `sha384` and `sha512`, PCRs
/// 0 to 23, and at least one is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pcrs {
    pub(crate) bank: Bank,
    /// The bit n stands for PCR n. At least one is set.
    selected: u32,
}

impl Pcrs {
    /// In ascending order.
    pub(crate) fn numbers(self) -> impl Iterator<Item = u8> {
        (0..NUMBERS).filter(move |n| self.selected & (1 << n) != 0)
    }

    /// TPML_PCR_SELECTION, of one TPMS_PCR_SELECTION (TPM 2.0 part 2, section "PCR Structures").
    fn marshalled(self) -> Vec<u8> {
        let mut bytes = 1_u32.to_be_bytes().to_vec();
        bytes.extend(self.bank.number().to_be_bytes());
        bytes.push(SELECT_BYTES);
        bytes.extend(&self.selected.to_le_bytes()[..usize::from(SELECT_BYTES)]);
        bytes
    }

    /// `None` for more than one bank, one that is not used here, or another size than that of a PC's TPM.
    fn unmarshalled(bytes: &[u8]) -> Option<Self> {
        let [0, 0, 0, 1, hash @ .., SELECT_BYTES, low, middle, high] = bytes else {
            return None;
        };
        let hash = u16::from_be_bytes(hash.try_into().ok()?);
        let bank = Bank::ALL.into_iter().find(|bank| bank.number() == hash)?;
        let selected = u32::from_le_bytes([*low, *middle, *high, 0]);
        (selected != 0).then_some(Self { bank, selected })
    }
}

impl fmt::Display for Pcrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.numbers().map(|n| n.to_string()).collect();
        write!(f, "{}:{}", self.bank.name(), numbers.join(","))
    }
}

impl FromStr for Pcrs {
    type Err = TpmError;

    /// # Errors
    /// [`TpmError::Pcrs`] with the fault.
    fn from_str(text: &str) -> Result<Self, TpmError> {
        let fault = |what: &str| Err(TpmError::Pcrs(format!("{text:?}: {what}")));
        let Some((name, list)) = text.split_once(':') else {
            return fault("there is no : between the bank and the numbers");
        };
        let Some(bank) = Bank::ALL.into_iter().find(|bank| bank.name() == name) else {
            return fault("the bank is none of sha256, sha384 and sha512");
        };
        let mut selected = 0;
        for number in list.split(',') {
            let bit = match number.parse::<u8>() {
                // Not +7, and not 07.
                Ok(n) if n < NUMBERS && n.to_string() == number => 1 << n,
                _ => return fault("a number is not one from 0 to 23"),
            };
            if selected & bit != 0 {
                return fault("a number is there twice");
            }
            selected |= bit;
        }
        Ok(Self { bank, selected })
    }
}

/// What the PCRs of a selection held, in ascending order of their numbers.
pub(crate) type Values = Vec<(u8, Vec<u8>)>;

/// What TPM2_PolicyPCR is told (TPM 2.0 part 3, section "TPM2_PolicyPCR"): which PCRs, and the hash over their values, by the
/// hash of the key's name, which is SHA-256 here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PcrPolicy {
    pub(crate) pcrs: Pcrs,
    pub(crate) digest: [u8; 32],
}

impl PcrPolicy {
    pub(crate) fn new(pcrs: Pcrs, values: &Values) -> Self {
        let all: Vec<u8> = values.iter().flat_map(|(_, value)| value.clone()).collect();
        Self {
            pcrs,
            digest: sha256(&all),
        }
    }

    /// The policy that is part of the key: the digest of a session in which nothing but this was told.
    pub(crate) fn auth_policy(&self) -> [u8; 32] {
        let told = [
            &[0; 32],
            &POLICY_PCR.to_be_bytes()[..],
            &self.pcrs.marshalled(),
            &self.digest,
        ];
        sha256(&told.concat())
    }

    /// The parameters of the command, marshalled: TPM2B_DIGEST and TPML_PCR_SELECTION.
    pub(crate) fn command(&self) -> Vec<u8> {
        [&[0, 32], &self.digest[..], &self.pcrs.marshalled()].concat()
    }

    /// `None` if these are not the parameters of one that is used here. As openssl_tpm2_engine writes them they are read too,
    /// which is not as its author's own draft has them: TPML_PCR_SELECTION first, and the digest without its size.
    pub(crate) fn from_command(parameters: &[u8]) -> Option<Self> {
        let (digest, pcrs) = match parameters.strip_prefix(&[0, 32]) {
            Some(rest) => rest.split_first_chunk::<32>()?,
            None => {
                let (pcrs, digest) = parameters.split_last_chunk::<32>()?;
                (digest, pcrs)
            }
        };
        Some(Self {
            pcrs: Pcrs::unmarshalled(pcrs)?,
            digest: *digest,
        })
    }

    /// The values as lines of text, to stand before the key in its file: by them it can be told later which PCR is another
    /// one now. They are no secret: whoever may use the TPM may read its PCRs.
    pub(crate) fn lines(&self, values: &Values) -> String {
        let line = |(number, value): &(u8, Vec<u8>)| {
            let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
            format!("{}:{number}={hex}\n", self.pcrs.bank.name())
        };
        values.iter().map(line).collect()
    }

    /// The values of such lines, if they are the ones that this policy was made of; other lines are passed over.
    pub(crate) fn values_in(&self, text: &str) -> Option<Values> {
        let value = |line: &str| {
            let (number, hex) = line
                .trim()
                .strip_prefix(self.pcrs.bank.name())?
                .strip_prefix(':')?
                .split_once('=')?;
            let digits = hex.as_bytes().chunks(2).map(|two| {
                let two = std::str::from_utf8(two).ok()?;
                u8::from_str_radix(two, 16).ok()
            });
            Some((number.parse().ok()?, digits.collect::<Option<Vec<u8>>>()?))
        };
        let values: Values = text.lines().filter_map(value).collect();
        let is_whole = values.iter().map(|(number, _)| *number).eq(self.pcrs.numbers());
        (is_whole && Self::new(self.pcrs, &values) == *self).then_some(values)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_read_and_written() {
        for (text, canonical, selected) in [
            ("sha256:0", "sha256:0", 1),
            ("sha256:7,0,2", "sha256:0,2,7", 0x85),
            ("sha384:23", "sha384:23", 0x0080_0000),
            ("sha512:8,16", "sha512:8,16", 0x0001_0100),
        ] {
            let pcrs: Pcrs = text.parse().unwrap();
            assert_eq!((pcrs.to_string().as_str(), pcrs.selected), (canonical, selected));
            assert_eq!(canonical.parse::<Pcrs>().unwrap(), pcrs);
            assert_eq!(Pcrs::unmarshalled(&pcrs.marshalled()), Some(pcrs));
        }
    }

    #[test]
    fn what_is_no_selection_is_refused_with_the_fault() {
        for (text, word) in [
            ("", "no :"),
            ("0,2,7", "no :"),
            ("sha1:0", "bank"),
            ("SHA256:0", "bank"),
            (":0", "bank"),
            ("sha256:", "from 0 to 23"),
            ("sha256:24", "from 0 to 23"),
            ("sha256:256", "from 0 to 23"),
            ("sha256:-1", "from 0 to 23"),
            ("sha256:+1", "from 0 to 23"),
            ("sha256:01", "from 0 to 23"),
            ("sha256:0,", "from 0 to 23"),
            ("sha256:0, 2", "from 0 to 23"),
            ("sha256:0-7", "from 0 to 23"),
            ("sha256:0+sha384:0", "from 0 to 23"),
            ("sha256:all", "from 0 to 23"),
            ("sha256:7,7", "twice"),
        ] {
            let message = text.parse::<Pcrs>().unwrap_err().to_string();
            assert!(message.contains(word), "{text}: {message}");
            assert!(message.contains("hint: sha256:"), "{message}");
        }
    }

    fn policy() -> (PcrPolicy, Values) {
        let values = vec![(0, vec![7; 32]), (9, vec![0xab; 32])];
        (PcrPolicy::new("sha256:0,9".parse().unwrap(), &values), values)
    }

    #[test]
    fn the_command_is_as_the_tpm_takes_it() {
        let (policy, _) = policy();
        let command = policy.command();
        assert_eq!(&command[..2], &[0, 32]);
        assert_eq!(&command[34..], &[0, 0, 0, 1, 0, 0x0b, 3, 1, 2, 0]);
        assert_eq!(PcrPolicy::from_command(&command), Some(policy.clone()));
        let of_the_engine = [&command[34..], &command[2..34]].concat();
        assert_eq!(PcrPolicy::from_command(&of_the_engine), Some(policy));
        for (at, byte, of) in [
            (1, 31, "a digest of another length"),
            (37, 2, "two banks"),
            (39, 0x04, "SHA-1"),
            (40, 2, "another size"),
        ] {
            let mut other = command.clone();
            other[at] = byte;
            assert_eq!(PcrPolicy::from_command(&other), None, "{of}");
        }
        let mut none = command.clone();
        none[41..].fill(0);
        assert_eq!(PcrPolicy::from_command(&none), None);
        assert_eq!(PcrPolicy::from_command(&command[..43]), None);
        assert_eq!(PcrPolicy::from_command(&[&command[..], &[0]].concat()), None);
        assert_eq!(PcrPolicy::from_command(&[]), None);
    }

    #[test]
    fn values_are_believed_only_if_the_policy_was_made_of_them() {
        let (policy, values) = policy();
        let lines = policy.lines(&values);
        assert!(lines.starts_with("sha256:0=0707"), "{lines}");
        let around = format!("tpm:tabrmd\n{lines}-----BEGIN\n");
        assert_eq!(policy.values_in(&around), Some(values));
        for other in [
            lines.replace("ab", "ac"),
            lines.replace(":9=", ":8="),
            lines.replace("07\n", "0\n"),
            lines.lines().next().unwrap_or_default().to_owned(),
            lines.replace("=07", "=é7"),
            String::new(),
        ] {
            assert_eq!(policy.values_in(&other), None, "{other}");
        }
    }
}
