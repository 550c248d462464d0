//! The link: mutual TLS with a pinned root, then MQTT.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use countersign_mqtt::client::{Ack, Connect, Disconnect, Publish, Subscribe, encode_pingreq};
use countersign_mqtt::frame::{self, Frame};
use countersign_mqtt::properties::Properties;
use countersign_mqtt::server::ServerPacket;
use countersign_mqtt::topic::TopicName;
use countersign_mqtt::{PacketId, QoS, ReasonCode, Version};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fault::LinkFault;
use crate::identity::DeviceIdentity;
use crate::trust::tls;

/// How to connect.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The MQTT version. Default 5: it tells why.
    pub version: Version,
    /// Keep-alive. Default 60 s.
    pub keep_alive: Duration,
    /// The longest that opening may take. Default 10 s.
    pub patience: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            version: Version::V5,
            keep_alive: Duration::from_secs(60),
            patience: Duration::from_secs(10),
        }
    }
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The largest packet we take from the platform.
const PACKET_MAX: usize = 1 << 20;

/// An open session.
pub struct Link {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
    version: Version,
    keep_alive: Duration,
    /// The largest packet that the platform takes; in 3.1.1 it does not say.
    bytes_max: usize,
    next_id: u16,
    /// A PINGREQ waits for an answer.
    is_asked: bool,
    /// Each with what is to be acknowledged when it is taken out.
    messages: VecDeque<(Message, Option<PacketId>)>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// What came from the server, owned.
enum Event {
    Connack {
        code: u8,
        reason: Option<String>,
        bytes_max: usize,
    },
    Acknowledged(PacketId, u8),
    Message,
    Other,
}

impl Link {
    /// Connects, proves the device's identity, and opens the session.
    ///
    /// # Errors
    /// [`LinkFault`].
    pub async fn connect(identity: &DeviceIdentity, options: &LinkOptions) -> Result<Self, LinkFault> {
        let opened = tokio::time::timeout(options.patience, Self::open(identity, options)).await;
        opened.unwrap_or_else(|_| {
            Err(LinkFault::Broken(format!(
                "no answer within {:?}",
                options.patience
            )))
        })
    }

    async fn open(identity: &DeviceIdentity, options: &LinkOptions) -> Result<Self, LinkFault> {
        let profile = &identity.profile;
        let unreachable = |source| LinkFault::Unreachable {
            host: profile.host.clone(),
            port: profile.port,
            source,
        };
        let socket = TcpStream::connect((profile.host.as_str(), profile.port))
            .await
            .map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let name =
            ServerName::try_from(profile.host.clone()).map_err(|e| LinkFault::Broken(e.to_string()))?;
        let shown = Some((identity.chain.as_slice(), &identity.key));
        let (config, _) = tls(&identity.platform_roots, identity.clock, shown, b"mqtt")?;
        let connector = TlsConnector::from(config);
        let stream = connector.connect(name, socket).await.map_err(LinkFault::of_io)?;
        let mut link = Self {
            stream,
            input: BytesMut::new(),
            version: options.version,
            keep_alive: options.keep_alive,
            bytes_max: usize::MAX,
            next_id: 0,
            is_asked: false,
            messages: VecDeque::new(),
        };
        let mut packet = Vec::new();
        Connect {
            version: options.version,
            clean: true,
            keep_alive_s: u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX),
            client_id: profile.id.as_str(),
            will: None,
            user_name: None,
            password: None,
            properties: Properties::default(),
        }
        .encode(&mut packet);
        // In TLS 1.3 our certificate is judged after our handshake is done. A refusal may come before this write, and
        // fail it; the alert that says why is still there to be read.
        let written = link.write(&packet).await;
        match link.event().await {
            Ok(Event::Connack {
                code: 0, bytes_max, ..
            }) => {
                link.bytes_max = bytes_max;
                Ok(link)
            }
            Ok(Event::Connack { code, reason, .. }) => {
                Err(LinkFault::of_connack(options.version, code, reason.as_deref()))
            }
            Ok(_) => Err(LinkFault::Broken("the first packet was no CONNACK".into())),
            Err(fault @ LinkFault::Broken(_)) => Err(written.err().unwrap_or(fault)),
            Err(fault) => Err(fault),
        }
    }

    /// The TLS version and key exchange group of this link, for people.
    pub fn tls(&self) -> String {
        let (_, connection) = self.stream.get_ref();
        let version = connection
            .protocol_version()
            .and_then(|v| v.as_str())
            .unwrap_or("unknown");
        let group = connection
            .negotiated_key_exchange_group()
            .map(|g| format!(", {:?}", g.name()))
            .unwrap_or_default();
        format!("{version}{group}")
    }

    /// Publishes. With QoS 1 it returns when the platform has acknowledged.
    ///
    /// # Errors
    /// [`LinkFault::NotPermitted`] if the platform says no, [`LinkFault::TooLarge`] if it would; others as they say.
    pub async fn publish(&mut self, topic: &str, payload: &[u8], qos: QoS) -> Result<(), LinkFault> {
        let name = TopicName::new(topic).map_err(|e| LinkFault::Broken(e.to_string()))?;
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.packet_id());
        let mut packet = Vec::new();
        Publish {
            dup: false,
            qos,
            retain: false,
            topic: Some(name),
            packet_id,
            properties: Properties::default(),
            payload,
        }
        .encode(self.version, &mut packet);
        // MQTT-3.2.2-15.
        if packet.len() > self.bytes_max {
            return Err(LinkFault::TooLarge {
                topic: topic.to_owned(),
                bytes: packet.len(),
                bytes_max: self.bytes_max,
            });
        }
        self.write(&packet).await?;
        match packet_id {
            None => Ok(()),
            Some(id) => self
                .acknowledged(id, || format!("publishing to {topic}"))
                .await
                .map(drop),
        }
    }

    /// Subscribes. Returns the granted QoS.
    ///
    /// # Errors
    /// [`LinkFault::NotPermitted`] if the platform says no; others as they say.
    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> Result<u8, LinkFault> {
        let id = self.packet_id();
        let mut packet = Vec::new();
        Subscribe::encode(id, filter, qos, self.version, &mut packet);
        self.write(&packet).await?;
        self.acknowledged(id, || format!("subscribing to {filter}")).await
    }

    async fn acknowledged(&mut self, id: PacketId, what: impl Fn() -> String) -> Result<u8, LinkFault> {
        loop {
            match self.event().await? {
                Event::Acknowledged(acknowledged, code) if acknowledged == id => {
                    // 3.1.1 has one code for "no" in SUBACK, and it is 0x80 too.
                    return if code >= 0x80 {
                        Err(LinkFault::NotPermitted {
                            what: what(),
                            code,
                            name: ReasonCode(code).name(),
                        })
                    } else {
                        Ok(code)
                    };
                }
                _ => {}
            }
        }
    }

    /// The next message; keeps the session alive meanwhile.
    ///
    /// # Errors
    /// [`LinkFault`] when the session ends.
    pub async fn next(&mut self) -> Result<Message, LinkFault> {
        loop {
            if let Some(message) = self.taken().await? {
                return Ok(message);
            }
            match tokio::time::timeout(self.keep_alive / 2, self.event()).await {
                Ok(event) => {
                    event?;
                }
                Err(_) => self.ping().await?,
            }
        }
    }

    /// A message that has come already; it is acknowledged now.
    ///
    /// # Errors
    /// [`LinkFault`] if it cannot be acknowledged; then it comes again or not at all, as the platform has it.
    pub async fn taken(&mut self) -> Result<Option<Message>, LinkFault> {
        let Some((message, acknowledge)) = self.messages.pop_front() else {
            return Ok(None);
        };
        if let Some(packet_id) = acknowledge {
            let mut packet = Vec::new();
            let ack = Ack {
                packet_id,
                reason: ReasonCode::SUCCESS,
            };
            ack.encode(0x40, self.version, None, &mut packet);
            self.write(&packet).await?;
        }
        Ok(Some(message))
    }

    /// Keeps the session alive for `time`, taking messages in.
    ///
    /// # Errors
    /// [`LinkFault`] when the session ends.
    pub async fn idle(&mut self, time: Duration) -> Result<(), LinkFault> {
        let end = tokio::time::Instant::now() + time;
        loop {
            let wait = (end - tokio::time::Instant::now()).min(self.keep_alive / 2);
            if wait.is_zero() {
                return Ok(());
            }
            match tokio::time::timeout(wait, self.event()).await {
                Ok(event) => {
                    event?;
                }
                Err(_) if tokio::time::Instant::now() < end => self.ping().await?,
                Err(_) => return Ok(()),
            }
        }
    }

    /// Asks whether the platform is there. Whoever does not answer until the next time is not (MQTT 5.0 section 3.1.2.10).
    async fn ping(&mut self) -> Result<(), LinkFault> {
        if std::mem::replace(&mut self.is_asked, true) {
            return Err(LinkFault::Broken("the platform answers no PINGREQ".into()));
        }
        let mut packet = Vec::new();
        encode_pingreq(&mut packet);
        self.write(&packet).await
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// [`LinkFault`] if the platform was gone already.
    pub async fn disconnect(mut self) -> Result<(), LinkFault> {
        let mut packet = Vec::new();
        Disconnect::encode(ReasonCode::SUCCESS, None, self.version, &mut packet);
        self.write(&packet).await?;
        self.stream.shutdown().await.map_err(LinkFault::of_io)
    }

    fn packet_id(&mut self) -> PacketId {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if let Some(id) = PacketId::new(self.next_id) {
                return id;
            }
        }
    }

    async fn write(&mut self, packet: &[u8]) -> Result<(), LinkFault> {
        self.stream.write_all(packet).await.map_err(LinkFault::of_io)?;
        self.stream.flush().await.map_err(LinkFault::of_io)
    }

    /// Reads until one packet is whole, and takes it in.
    async fn event(&mut self) -> Result<Event, LinkFault> {
        loop {
            let taken =
                match frame::next(&self.input, PACKET_MAX).map_err(|e| LinkFault::Broken(e.to_string()))? {
                    Some(frame) => Some((take(&frame, self.version)?, frame.raw.len())),
                    None => None,
                };
            if let Some((taken, length)) = taken {
                self.input.advance(length);
                return match taken {
                    Taken::Event(event) => Ok(event),
                    Taken::Message(message, acknowledge) => {
                        self.messages.push_back((message, acknowledge));
                        Ok(Event::Message)
                    }
                    Taken::Ended(reason) => Err(LinkFault::Ended { reason: Some(reason) }),
                };
            }
            if self
                .stream
                .read_buf(&mut self.input)
                .await
                .map_err(LinkFault::of_io)?
                == 0
            {
                return Err(LinkFault::Ended { reason: None });
            }
            // Whatever comes, somebody is there: a large packet on a slow line is an answer too.
            self.is_asked = false;
        }
    }
}

enum Taken {
    Event(Event),
    Message(Message, Option<PacketId>),
    Ended(String),
}

fn take(frame: &Frame<'_>, version: Version) -> Result<Taken, LinkFault> {
    let packet = ServerPacket::decode(frame, version).map_err(|e| LinkFault::Broken(e.to_string()))?;
    Ok(match packet {
        ServerPacket::Connack(connack) => Taken::Event(Event::Connack {
            code: connack.code,
            reason: connack.properties.reason_string.map(str::to_owned),
            bytes_max: connack
                .properties
                .maximum_packet_size
                .map_or(usize::MAX, |n| n as usize),
        }),
        ServerPacket::Publish(publish) => Taken::Message(
            Message {
                topic: publish.topic.map_or("", |t| t.as_str()).to_owned(),
                payload: publish.payload.to_vec(),
            },
            publish.packet_id,
        ),
        ServerPacket::Puback(ack) => Taken::Event(Event::Acknowledged(ack.packet_id, ack.reason.0)),
        ServerPacket::Suback(id, codes) => {
            Taken::Event(Event::Acknowledged(id, codes.first().copied().unwrap_or(0x80)))
        }
        ServerPacket::Disconnect(disconnect) => Taken::Ended(disconnect.reason.to_string()),
        _ => Taken::Event(Event::Other),
    })
}
