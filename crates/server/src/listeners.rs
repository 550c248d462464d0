//! `[[listeners]]`: what the server opens besides the admin listener, and for whom.

use std::net::{IpAddr, SocketAddr};

use countersign_gateway::{DeviceListener, Network, Protocol, Resumption, TlsMinimum};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::failure::Failure;

/// What a listener is for. Nothing else is reachable through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Devices connect: mutual TLS, MQTT and HTTPS by ALPN.
    Devices,
    /// Devices enrol: TLS, HTTPS; each operation says what it needs.
    Enrol,
    /// Anybody fetches revocation lists, OCSP answers and CA certificates: plain HTTP, all of it signed.
    Pki,
    /// Services ask about devices: mutual TLS, HTTPS.
    Services,
}

impl Purpose {
    /// The name in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Enrol => "enrol",
            Self::Pki => "pki",
            Self::Services => "services",
        }
    }
}

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificate {
    /// Without one the handshake fails.
    Required,
    /// What needs one refuses without.
    Optional,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name in ledger, log and output.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its address; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The lowest TLS version, "1.2" if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_minimum: Option<TlsMinimum>,
    /// "required" (always so for `devices` and `services`) or "optional" (if not given, for `enrol`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
    /// What ALPN offers: "mqtt", "http/1.1"; all that its purpose has if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpn: Option<Vec<Protocol>>,
    /// The balancers, such as "10.0.0.0/8" (purpose `devices`): each of their connections begins with a PROXY protocol
    /// header of version 2, and nobody else may connect. Without it devices connect themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_from: Option<Vec<Network>>,
    /// Whether devices may resume TLS sessions by tickets: true for `devices` if not given, never for another purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumption: Option<bool>,
}

impl Listener {
    /// Where devices connect, by the defaults.
    pub fn devices(listen: SocketAddr) -> Self {
        Self {
            name: Purpose::Devices.name().to_owned(),
            purpose: Purpose::Devices,
            listen,
            tls_minimum: None,
            client_certificate: None,
            alpn: None,
            proxy_from: None,
            resumption: None,
        }
    }

    /// Where devices enrol, by the defaults.
    #[cfg(test)]
    pub fn enrol(listen: SocketAddr) -> Self {
        Self {
            name: Purpose::Enrol.name().to_owned(),
            purpose: Purpose::Enrol,
            ..Self::devices(listen)
        }
    }

    /// The lowest TLS version.
    pub fn tls_minimum(&self) -> TlsMinimum {
        self.tls_minimum.unwrap_or_default()
    }

    /// Whether a client must show a certificate.
    pub fn client_certificate(&self) -> ClientCertificate {
        self.client_certificate.unwrap_or(match self.purpose {
            Purpose::Devices | Purpose::Services => ClientCertificate::Required,
            Purpose::Enrol | Purpose::Pki => ClientCertificate::Optional,
        })
    }

    /// As the gateway takes one for devices.
    pub fn to_device_listener(&self) -> DeviceListener {
        DeviceListener {
            name: self.name.clone(),
            address: self.listen,
            tls_minimum: self.tls_minimum(),
            protocols: self.alpn.clone().unwrap_or_else(|| Protocol::ALL.to_vec()),
            proxy_from: self.proxy_from.clone().unwrap_or_default(),
            resumption: match self.resumption {
                None | Some(true) => Resumption::Offered,
                Some(false) => Resumption::Off,
            },
        }
    }

    fn check(&self) -> Result<(), String> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let name = &self.name;
        if name.is_empty() || name.len() > 32 || !name.bytes().all(fits) {
            return Err(format!("{name:?} is no listener name: 1 to 32 of a-z 0-9 -"));
        }
        if self.alpn.as_ref().is_some_and(Vec::is_empty) {
            return Err(format!(
                "listener {name}: alpn is empty, so nothing could be spoken"
            ));
        }
        match &self.proxy_from {
            Some(networks) if networks.is_empty() => {
                return Err(format!(
                    "listener {name}: proxy_from is empty, so nobody could connect; leave it out if there is no balancer"
                ));
            }
            Some(_) if self.purpose != Purpose::Devices => {
                return Err(format!("listener {name}: only purpose devices has proxy_from"));
            }
            _ => {}
        }
        match self.purpose {
            Purpose::Devices if self.client_certificate == Some(ClientCertificate::Optional) => Err(format!(
                "listener {name}: devices always show a certificate; a listener without is of purpose enrol"
            )),
            // Where a certificate is optional, or may have expired, a ticket would be worth more than what it came from.
            Purpose::Enrol | Purpose::Pki | Purpose::Services if self.resumption == Some(true) => {
                Err(format!(
                    "listener {name}: only devices resume sessions; purpose {} has no tickets",
                    self.purpose.name()
                ))
            }
            Purpose::Services if self.client_certificate == Some(ClientCertificate::Optional) => {
                Err(format!("listener {name}: services always show a certificate"))
            }
            Purpose::Services if self.alpn.as_ref().is_some_and(|a| *a != [Protocol::Http]) => Err(format!(
                "listener {name}: services speak http/1.1 and nothing else"
            )),
            Purpose::Enrol if self.alpn.as_ref().is_some_and(|a| *a != [Protocol::Http]) => Err(format!(
                "listener {name}: what enrols speaks http/1.1 and nothing else"
            )),
            Purpose::Pki
                if self.tls_minimum.is_some() || self.client_certificate.is_some() || self.alpn.is_some() =>
            {
                Err(format!(
                    "listener {name}: purpose pki is plain HTTP, so it has no tls_minimum, client_certificate or alpn"
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Opens a listener that is none of devices: it, and where it is.
///
/// # Errors
/// [`Failure`] if the address cannot be used.
pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = TcpListener::bind(address).await.map_err(|e| {
        Failure::unavailable(
            format!("cannot listen on {address}: {e}"),
            "another process has the port: stop it, or change the listener",
        )
    })?;
    let address = listener
        .local_addr()
        .map_err(|e| Failure::internal(e.to_string()))?;
    Ok((listener, address))
}

/// Whether only one of two addresses can be opened: the same port, and the same address or one that stands for it. Port 0
/// takes any free one.
pub fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let scope = |address: SocketAddr| match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let (x, y) = (a.ip().to_canonical(), b.ip().to_canonical());
    // [::] takes IPv4 as well, as Linux has it by default; 0.0.0.0 no IPv6.
    let stands_for = |x: IpAddr, y: IpAddr| x.is_unspecified() && (x.is_ipv6() || y.is_ipv4());
    a.port() == b.port()
        && a.port() != 0
        && (stands_for(x, y) || stands_for(y, x) || (x == y && scope(a) == scope(b)))
}

/// Checks the table.
///
/// # Errors
/// What is wrong, for the operator.
pub fn check(listeners: &[Listener]) -> Result<(), String> {
    for (n, listener) in listeners.iter().enumerate() {
        listener.check()?;
        for before in &listeners[..n] {
            if before.name == listener.name {
                return Err(format!("two listeners have the name {}", listener.name));
            }
            if clash(before.listen, listener.listen) {
                return Err(format!(
                    "listeners {} ({}) and {} ({}) ask for one address and port",
                    before.name, before.listen, listener.name, listener.listen
                ));
            }
        }
    }
    if listeners.iter().any(|l| l.purpose == Purpose::Devices) {
        Ok(())
    } else {
        Err("there is none of purpose devices, so no device could connect".into())
    }
}
