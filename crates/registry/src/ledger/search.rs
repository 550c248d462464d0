//! Refused exchanges, by what is known of them; and what one device did between two moments.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::{DenialCode, ExchangeId, ExchangeRecord, SessionRecord};
use rusqlite::ToSql;

use super::budget::{Budgets, Class};
use super::{Ledger, address};
use crate::change::damaged;
use crate::error::RegistryError;

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: [u8; 16],
    last: [u8; 16],
}

impl FromStr for Network {
    type Err = String;

    /// `ADDRESS` or `ADDRESS/BITS`.
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is no address, and no network such as 192.0.2.0/24 or 2001:db8::/32");
        let (text, bits) = match s.split_once('/') {
            Some((text, bits)) => (text, Some(bits.parse::<u32>().map_err(|_| wrong())?)),
            None => (s, None),
        };
        let ip: IpAddr = text.parse().map_err(|_| wrong())?;
        let (width, unused) = match ip {
            IpAddr::V4(_) => (32, 96),
            IpAddr::V6(_) => (128, 0),
        };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return Err(wrong());
        }
        let all = u128::from_be_bytes(address(ip));
        let host = u128::MAX.checked_shr(bits + unused).unwrap_or(0);
        Ok(Self {
            first: (all & !host).to_be_bytes(),
            last: (all | host).to_be_bytes(),
        })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ip = Ipv6Addr::from(self.first).to_canonical();
        let same = (u128::from_be_bytes(self.first) ^ u128::from_be_bytes(self.last)).leading_zeros();
        let bits = if ip.is_ipv4() { same - 96 } else { same };
        write!(f, "{ip}/{bits}")
    }
}

/// Which refused exchanges are looked for: all that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct RefusalQuery {
    /// The certificate that was shown has this serial number, hex.
    pub serial: Option<String>,
    /// The certificate that was shown is this.
    pub fingerprint: Option<Fingerprint>,
    /// It came from here.
    pub source: Option<Network>,
    /// The code of its denial.
    pub code: Option<DenialCode>,
    /// The device proved its key; a certificate that names it and was not proven says nothing about it.
    pub device: Option<DeviceId>,
    /// The tenant.
    pub tenant: Option<TenantId>,
    /// It began at this moment or later.
    pub since: Option<Timestamp>,
    /// Older than this one: the `next` of the page before.
    pub before: Option<ExchangeId>,
    /// At most so many.
    pub limit: u32,
}

/// Refused exchanges, newest first.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RefusalPage {
    /// The exchanges.
    pub exchanges: Vec<ExchangeRecord>,
    /// Where the next page begins, if there is one.
    pub next: Option<ExchangeId>,
}

/// What is kept of one device between two moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Doings {
    /// Sessions that were live in between, oldest first.
    pub sessions: Vec<SessionRecord>,
    /// Exchanges that began in between, oldest first.
    pub exchanges: Vec<ExchangeRecord>,
    /// There are more sessions or exchanges than were asked for.
    pub more: bool,
    /// Exchanges of known devices that began before this may be missing: room was made, or they were too old.
    pub exchanges_whole_since: Option<Timestamp>,
    /// The same of sessions.
    pub sessions_whole_since: Option<Timestamp>,
}

/// The last moment of which an id begins with the time in milliseconds and still fits a row's, in September 2039.
const NEWEST: Timestamp = Timestamp::from_unix_ms(i64::MAX >> 22);

impl Ledger {
    /// Refused exchanges, newest first.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn refusals(&self, asked: &RefusalQuery) -> Result<RefusalPage, RegistryError> {
        let id = |id: ExchangeId| id.as_u64().cast_signed();
        let serial = asked.serial.as_ref().map(|s| super::serial(s));
        let fingerprint = asked.fingerprint.map(|f| *f.as_bytes());
        let since = asked.since.map(|t| id(ExchangeId::new(t, 0)));
        let before = asked.before.map(id);
        let mut terms = vec!["outcome NOT IN ('admitted', 'abandoned', 'enrolment-only')".to_owned()];
        let mut values: Vec<&dyn ToSql> = Vec::new();
        macro_rules! given {
            ($condition:literal, $($value:expr),+) => {{
                terms.push($condition.to_owned());
                values.extend([$($value as &dyn ToSql),+]);
            }};
        }
        if let Some(serial) = &serial {
            given!("serial = ?", serial);
        }
        if let Some(fingerprint) = &fingerprint {
            given!("fingerprint = ?", fingerprint);
        }
        if let Some(network) = &asked.source {
            given!("source BETWEEN ? AND ?", &network.first, &network.last);
        }
        let code = asked.code.map(DenialCode::as_str);
        if let Some(code) = &code {
            given!("code = ?", code);
        }
        let device = asked.device.as_ref().map(DeviceId::as_str);
        if let Some(device) = &device {
            given!("(device = ? OR owner = ?)", device, device);
        }
        let tenant = asked.tenant.as_ref().map(TenantId::as_str);
        if let Some(tenant) = &tenant {
            given!("tenant = ?", tenant);
        }
        if let Some(since) = &since {
            given!("id >= ?", since);
        }
        if let Some(before) = &before {
            given!("id < ?", before);
        }
        let mut exchanges = self.select(&terms.join(" AND "), &values, asked.limit.saturating_add(1))?;
        let more = exchanges.len() > asked.limit as usize;
        exchanges.truncate(asked.limit as usize);
        Ok(RefusalPage {
            next: more.then(|| exchanges.last().map(|e| e.id)).flatten(),
            exchanges,
        })
    }

    /// What is kept of a device between two moments, at most `limit` sessions and as many exchanges: the oldest.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn doings(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        from: Timestamp,
        to: Timestamp,
        limit: u32,
    ) -> Result<Doings, RegistryError> {
        let db = self.reader.lock();
        let first = ExchangeId::new(from.min(NEWEST), 0).as_u64().cast_signed();
        // As far as a row's id reaches: whoever writes "until 2100" means until now.
        let last = ExchangeId::new(to.min(NEWEST), u32::MAX).as_u64().cast_signed();
        let (tenant, device) = (tenant.as_str(), device.as_str());
        let read = |sql: &str, values: &[&dyn ToSql]| -> Result<Vec<String>, RegistryError> {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map(values, |r| r.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        let most = limit.saturating_add(1);
        let exchanges = read(
            "SELECT record FROM exchanges WHERE (device = ?1 OR owner = ?1) AND tenant = ?2
             AND id BETWEEN ?3 AND ?4 ORDER BY id LIMIT ?5",
            &[&device, &tenant, &first, &last, &most],
        )?;
        // A session begins after its exchange, and is named by it.
        let sessions = read(
            "SELECT record FROM sessions WHERE device = ?1 AND tenant = ?2 AND exchange <= ?3
             AND started <= ?4 AND until >= ?5 ORDER BY exchange LIMIT ?6",
            &[&device, &tenant, &last, &to.unix_ms(), &from.unix_ms(), &most],
        )?;
        let budgets = Budgets::load(&db)?;
        let since = |classes: &[Class]| {
            let newest = classes.iter().map(|c| budgets.of(*c).evicted).max().unwrap_or(0);
            (newest > 0).then(|| {
                let ms = i64::try_from(newest.cast_unsigned() >> 22).unwrap_or(0);
                Timestamp::from_unix_ms(ms.saturating_add(1))
            })
        };
        let most = limit as usize;
        Ok(Doings {
            more: exchanges.len() > most || sessions.len() > most,
            exchanges: parse(&exchanges, most)?,
            sessions: parse(&sessions, most)?,
            exchanges_whole_since: since(&[Class::Known, Class::KnownRefused, Class::Held]),
            sessions_whole_since: since(&[Class::Session]),
        })
    }
}

fn parse<T: serde::de::DeserializeOwned>(records: &[String], most: usize) -> Result<Vec<T>, RegistryError> {
    let part = records.iter().take(most);
    part.map(|text| damaged(serde_json::from_str(text))).collect()
}

#[cfg(test)]
mod tests {
    use super::Network;

    #[test]
    fn networks_are_read_and_written() {
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
        }
        for text in ["", "192.0.2.7/33", "192.0.2/24", "::/129", "a/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
