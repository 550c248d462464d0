//! The keys that sign tokens: the only place that has them.
//!
//! ```text
//! next ──its time has come──▶ current ──the next one's has──▶ retired ──no token can be left──▶ forgotten
//! ```
//!
//! A key is published as `next` for a whole period before its first use, far longer than anybody keeps the key set
//! ([`CACHE`]). A retired key stays published until the last token that it may have signed has expired. The file is its
//! owner's only; it goes into no backup: tokens are minutes long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_authority::folder;
use countersign_identity::{Fingerprint, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use crate::failure::Failure;

/// How long others may keep the key set.
pub const CACHE: Duration = Duration::from_secs(300);
/// The longest that any token lasts.
pub const LIFETIME_MAX: Duration = Duration::from_secs(15 * 60);
/// How far the clocks of resource servers may be behind (RFC 8725 section 3.10 leaves it to us).
const SKEW: Duration = Duration::from_secs(60);

/// How keys come and go.
#[derive(Debug, Clone, Copy)]
pub struct KeyRules {
    /// For so long a key signs.
    pub period: Duration,
}

/// A key pair, with its place in the order.
pub struct SigningKey {
    /// Its name: the thumbprint of its public key (RFC 7638).
    pub kid: String,
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    created: Timestamp,
    /// Its first use.
    from: Timestamp,
    /// Its last use.
    until: Option<Timestamp>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("from", &self.from)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    pkcs8: String,
    created: Timestamp,
    from: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.pkcs8.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    keys: Vec<StoredKey>,
}

impl SigningKey {
    fn generate(created: Timestamp, from: Timestamp) -> Result<Self, Failure> {
        let failed = |_| Failure::internal("no key could be made");
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(failed)?;
        Self::load(Zeroizing::new(pkcs8.as_ref().to_vec()), created, from, None)
    }

    fn load(
        pkcs8: Zeroizing<Vec<u8>>,
        created: Timestamp,
        from: Timestamp,
        until: Option<Timestamp>,
    ) -> Result<Self, Failure> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
            .map_err(|e| Failure::invalid(format!("a key that signs tokens cannot be used: {e}")))?;
        let (x, y) = point(&pair);
        // The members in this order and without spaces (RFC 7638 section 3.2).
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(Fingerprint::of(canonical.as_bytes()).as_bytes());
        Ok(Self {
            kid,
            pair,
            pkcs8,
            created,
            from,
            until,
        })
    }

    /// A signature as two numbers of 32 octets (RFC 7518 section 3.4).
    ///
    /// # Errors
    /// [`Failure`] if there are no random numbers.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Failure> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        let signature = signature.map_err(|_| Failure::internal("a token could not be signed"))?;
        Ok(signature.as_ref().to_vec())
    }

    /// Its public key, an uncompressed point.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn jwk(&self) -> Value {
        let (x, y) = point(&self.pair);
        json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": self.kid, "use": "sig", "alg": "ES256" })
    }
}

fn point(pair: &EcdsaKeyPair) -> (String, String) {
    // 4, then two coordinates of 32 octets (SEC 1 section 2.3.3).
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
}

/// All keys: at least one in use, and the one that comes next.
#[derive(Debug)]
pub struct KeyRing {
    path: PathBuf,
    rules: KeyRules,
    current: SigningKey,
    next: SigningKey,
    retired: Vec<SigningKey>,
}

impl KeyRing {
    /// Loads the keys of a data directory as they are, or makes them with `now` as their date. Whose turn it is, is for
    /// [`KeyRing::turn`].
    ///
    /// # Errors
    /// [`Failure`] if the file cannot be read or written, or is none.
    pub fn open(data: &Path, rules: KeyRules, now: Timestamp) -> Result<Self, Failure> {
        let path = data.join("tokens/keys.json");
        if !path.exists() {
            folder::create_private(&data.join("tokens"))?;
            let ring = Self {
                path,
                rules,
                current: SigningKey::generate(now, now)?,
                next: SigningKey::generate(now, now.plus(rules.period))?,
                retired: vec![],
            };
            ring.write(&ring.current, &ring.next, &ring.retired)?;
            return Ok(ring);
        }
        let text = Zeroizing::new(folder::read_private(&path)?);
        let damaged = |what: String| {
            Failure::invalid(format!(
                "{} is damaged ({what}); hint: delete it: new keys are made, and tokens of before are void",
                path.display()
            ))
        };
        let stored: Stored = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        let (mut unused, mut retired) = (vec![], vec![]);
        for key in stored.keys {
            let pkcs8 = STANDARD
                .decode(&key.pkcs8)
                .map(Zeroizing::new)
                .map_err(|e| damaged(e.to_string()))?;
            let list = if key.until.is_some() {
                &mut retired
            } else {
                &mut unused
            };
            list.push(SigningKey::load(pkcs8, key.created, key.from, key.until)?);
        }
        unused.sort_by_key(|k| k.from);
        let mut unused = unused.into_iter();
        let (Some(current), Some(next), None) = (unused.next(), unused.next(), unused.next()) else {
            return Err(damaged(
                "it holds not one key in use and one that comes next".into(),
            ));
        };
        Ok(Self {
            path,
            rules,
            current,
            next,
            retired,
        })
    }

    /// Takes the next key into use if it is time, and forgets keys by which no token can be left. On disk before it has
    /// any effect.
    ///
    /// # Errors
    /// [`Failure`] if the file cannot be written; then everything is as it was.
    pub fn turn(&mut self, now: Timestamp) -> Result<(), Failure> {
        let is_over = |until: Timestamp| now > until.plus(LIFETIME_MAX).plus(SKEW);
        let due = now >= self.next.from && now >= self.next.created.plus(CACHE * 2);
        let stale = self.retired.iter().any(|k| k.until.is_some_and(is_over));
        if !due && !stale {
            return Ok(());
        }
        let copy = |k: &SigningKey, from, until| SigningKey::load(k.pkcs8.clone(), k.created, from, until);
        let mut retired = vec![];
        for key in self.retired.iter().filter(|k| !k.until.is_some_and(is_over)) {
            retired.push(copy(key, key.from, key.until)?);
        }
        let (current, next) = if due {
            retired.push(copy(&self.current, self.current.from, Some(now))?);
            let after = now.plus(self.rules.period);
            (copy(&self.next, now, None)?, SigningKey::generate(now, after)?)
        } else {
            (
                copy(&self.current, self.current.from, None)?,
                copy(&self.next, self.next.from, None)?,
            )
        };
        self.write(&current, &next, &retired)?;
        if due {
            tracing::info!(
                token.key = current.kid.as_str(),
                "tokens are signed with the next key"
            );
        }
        (self.current, self.next, self.retired) = (current, next, retired);
        Ok(())
    }

    fn write(&self, current: &SigningKey, next: &SigningKey, retired: &[SigningKey]) -> Result<(), Failure> {
        let keys = retired.iter().chain([current, next]);
        let stored = Stored {
            keys: keys
                .map(|k| StoredKey {
                    pkcs8: STANDARD.encode(&*k.pkcs8),
                    created: k.created,
                    from: k.from,
                    until: k.until,
                })
                .collect(),
        };
        let text = serde_json::to_vec(&stored).map_err(|e| Failure::internal(e.to_string()))?;
        folder::write_private(&self.path, &Zeroizing::new(text))?;
        Ok(())
    }

    /// The key that signs.
    pub fn current(&self) -> &SigningKey {
        &self.current
    }

    /// A key that may have signed a token that is still good.
    pub fn by_kid(&self, kid: &str) -> Option<&SigningKey> {
        self.retired.iter().chain([&self.current]).find(|k| k.kid == kid)
    }

    /// The public keys (RFC 7517 section 5), the one in use first.
    pub fn jwks(&self) -> Value {
        let all = [&self.current, &self.next].into_iter().chain(&self.retired);
        json!({ "keys": all.map(SigningKey::jwk).collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn kids(ring: &KeyRing) -> Vec<String> {
        let jwks = ring.jwks();
        let kids = jwks["keys"].as_array().unwrap().iter();
        kids.map(|k| k["kid"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_next_key_is_known_before_it_signs_and_the_last_one_as_long_as_its_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let rules = KeyRules { period: HOUR };
        let start = Timestamp::from_unix_s(1_795_000_000);
        let mut ring = KeyRing::open(folder.path(), rules, start).unwrap();
        let first = kids(&ring);
        assert_eq!(first.len(), 2);
        ring.turn(start.plus(HOUR - Duration::from_secs(1))).unwrap();
        assert_eq!(kids(&ring), first);

        let turned = start.plus(HOUR);
        ring.turn(turned).unwrap();
        let second = kids(&ring);
        // What was next is in use; the one before is still published and still trusted.
        assert_eq!((&second[0], &second[2]), (&first[1], &first[0]));
        assert!(ring.by_kid(&first[0]).is_some());
        // What has not signed yet is published, and no token by it is believed.
        assert!(ring.by_kid(&second[1]).is_none());

        // The same after a restart, until no token of the first can be left.
        let mut ring = KeyRing::open(folder.path(), rules, turned).unwrap();
        assert_eq!(kids(&ring), second);
        ring.turn(turned.plus(LIFETIME_MAX)).unwrap();
        assert_eq!(kids(&ring).len(), 3);
        ring.turn(turned.plus(LIFETIME_MAX + SKEW + Duration::from_secs(1)))
            .unwrap();
        assert_eq!(kids(&ring), second[..2]);
        assert!(ring.by_kid(&first[0]).is_none());

        // Long asleep: one turn, by the key that was published all the time.
        let asleep = turned.plus(HOUR * 1000);
        let mut ring = KeyRing::open(folder.path(), rules, asleep).unwrap();
        ring.turn(asleep).unwrap();
        assert_eq!(kids(&ring)[0], second[1]);
        // A clock that goes back takes no key out of use.
        ring.turn(start).unwrap();
        assert_eq!(kids(&ring)[0], second[1]);
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_damaged_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let rules = KeyRules { period: HOUR };
        let now = Timestamp::from_unix_s(1_795_000_000);
        KeyRing::open(folder.path(), rules, now).unwrap();
        let path = folder.path().join("tokens/keys.json");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(KeyRing::open(folder.path(), rules, now).is_err());
        std::fs::remove_file(&path).unwrap();
        folder::write_private(&path, b"{\"keys\":[]}").unwrap();
        let failure = KeyRing::open(folder.path(), rules, now).unwrap_err();
        assert!(failure.hint.unwrap().contains("delete it"));
    }
}
