//! The device's side of Countersign on the command line.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line: data on stdout, words on stderr"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it runs on the device and reads its clock"
)]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand, ValueEnum};
use countersign_device::{Backoff, DeviceIdentity, Link, LinkFault, LinkOptions};
use countersign_factory::{CertificateRequest, SoftwareKey};
use countersign_identity::{DeviceId, Timestamp};
use countersign_mqtt::{QoS, Version};

/// A device's link to its Countersign platform: proves who it is by certificate, then publishes and subscribes.
///
/// Exit codes: 0 done, 1 other failure, 2 wrong usage, 3 identity folder unusable, 4 platform not reachable, 5 platform
/// not trusted, 6 certificate refused, 7 session refused, 8 publish or subscribe not permitted, 9 session ended.
#[derive(Parser)]
#[command(name = "countersign-agent", version)]
struct Arguments {
    /// The identity folder: device.crt, device.key, platform-root.crt, device.json
    #[arg(long, short, default_value = ".", global = true)]
    identity: PathBuf,
    /// The MQTT version to speak
    #[arg(long, value_enum, default_value = "5", global = true)]
    mqtt: MqttVersion,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum MqttVersion {
    #[value(name = "3.1.1")]
    V311,
    #[value(name = "5")]
    V5,
}

#[derive(Subcommand)]
enum Command {
    /// Connect once, say how it went, and leave
    Check,
    /// Publish one message, or each line of standard input
    Publish {
        /// The topic; telemetry of this device by default
        #[arg(long, short)]
        topic: Option<String>,
        /// The message; without it each line of standard input is one
        message: Option<String>,
        /// Quality of service
        #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
        qos: u8,
    },
    /// Subscribe, and print each message as TOPIC, tab, payload; reconnect when the link is lost
    Subscribe {
        /// The filter; commands to this device by default
        filter: Option<String>,
        /// End after this many messages
        #[arg(long, short)]
        count: Option<u64>,
    },
    /// Make a key in the identity folder, and print a certificate request for it (PKCS#10, PEM)
    Request {
        /// The device id
        id: DeviceId,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(1, &format!("cannot start: {e}")),
    };
    runtime.block_on(run(arguments))
}

fn fail(code: u8, text: &str) -> ExitCode {
    // One thought per line: the hint on its own.
    eprintln!("error: {}", text.replace("; hint: ", "\nhint: "));
    ExitCode::from(code)
}

async fn run(arguments: Arguments) -> ExitCode {
    if let Command::Request { id } = &arguments.command {
        return request(&arguments.identity, id);
    }
    let identity = match DeviceIdentity::load(&arguments.identity) {
        Ok(identity) => identity,
        Err(e) => return fail(3, &e.to_string()),
    };
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    for oddity in identity.oddities(Timestamp::from_unix_ms(
        i64::try_from(since.as_millis()).unwrap_or(0),
    )) {
        eprintln!("warning: {oddity}");
    }
    let version = match arguments.mqtt {
        MqttVersion::V311 => Version::V311,
        MqttVersion::V5 => Version::V5,
    };
    let options = LinkOptions {
        version,
        ..LinkOptions::default()
    };
    let done = match arguments.command {
        Command::Check => check(&identity, &options).await,
        Command::Publish { topic, message, qos } => publish(&identity, &options, topic, message, qos).await,
        Command::Subscribe { filter, count } => subscribe(&identity, &options, filter, count).await,
        Command::Request { .. } => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fail(fault.exit_code(), &fault.to_string()),
    }
}

async fn check(identity: &DeviceIdentity, options: &LinkOptions) -> Result<(), LinkFault> {
    let link = Link::connect(identity, options).await?;
    println!(
        "{}: admitted by {}:{} ({}, {})",
        identity.profile.id,
        identity.profile.host,
        identity.profile.port,
        link.tls(),
        options.version.name()
    );
    link.disconnect().await
}

async fn publish(
    identity: &DeviceIdentity,
    options: &LinkOptions,
    topic: Option<String>,
    message: Option<String>,
    qos: u8,
) -> Result<(), LinkFault> {
    let topic = topic.unwrap_or_else(|| format!("devices/{}/telemetry", identity.profile.id));
    let qos = if qos == 0 {
        QoS::AtMostOnce
    } else {
        QoS::AtLeastOnce
    };
    let mut link = Link::connect(identity, options).await?;
    match message {
        Some(message) => link.publish(&topic, message.as_bytes(), qos).await?,
        None => {
            let (lines, mut queue) = tokio::sync::mpsc::channel(64);
            std::thread::spawn(move || {
                let mut rest = Vec::new();
                let mut chunk = [0; 4096];
                let mut input = std::io::stdin();
                while let Ok(n) = input.read(&mut chunk) {
                    rest.extend_from_slice(&chunk[..n]);
                    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                        let line: Vec<u8> = rest.drain(..=end).take(end).collect();
                        if lines.blocking_send(line).is_err() {
                            return;
                        }
                    }
                    if n == 0 {
                        break;
                    }
                }
                if !rest.is_empty() {
                    let _ = lines.blocking_send(rest);
                }
            });
            loop {
                tokio::select! {
                    line = queue.recv() => match line {
                        Some(line) => link.publish(&topic, &line, qos).await?,
                        None => break,
                    },
                    // Nothing to send: still there to ping, and to hear of the session's end. It has no subscription,
                    // so nothing is lost when this is left in the middle.
                    ended = link.idle(Duration::from_secs(3600)) => ended?,
                }
            }
        }
    }
    link.disconnect().await
}

async fn subscribe(
    identity: &DeviceIdentity,
    options: &LinkOptions,
    filter: Option<String>,
    count: Option<u64>,
) -> Result<(), LinkFault> {
    let filter = filter.unwrap_or_else(|| format!("devices/{}/commands/#", identity.profile.id));
    let mut backoff = Backoff::default();
    let mut left = count;
    loop {
        let fault = match listen(identity, options, &filter, &mut left, &mut backoff).await {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        if !fault.is_passing() {
            return Err(fault);
        }
        let wait = backoff.wait();
        eprintln!("warning: {fault}; trying again in {:.1} s", wait.as_secs_f64());
        tokio::time::sleep(wait).await;
    }
}

async fn listen(
    identity: &DeviceIdentity,
    options: &LinkOptions,
    filter: &str,
    left: &mut Option<u64>,
    backoff: &mut Backoff,
) -> Result<(), LinkFault> {
    let mut link = Link::connect(identity, options).await?;
    link.subscribe(filter, QoS::AtLeastOnce).await?;
    backoff.reset();
    eprintln!("subscribed to {filter}");
    while *left != Some(0) {
        let message = link.next().await?;
        let mut out = std::io::stdout().lock();
        let written = write!(out, "{}\t", message.topic)
            .and_then(|()| out.write_all(&message.payload))
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush());
        if let Err(e) = written {
            return Err(LinkFault::Broken(format!("cannot write to standard output: {e}")));
        }
        if let Some(left) = left {
            *left -= 1;
        }
    }
    link.disconnect().await
}

fn request(folder: &std::path::Path, id: &DeviceId) -> ExitCode {
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join("device.key");
    let key = match SoftwareKey::generate() {
        Ok(key) => key,
        Err(e) => return fail(1, &e.to_string()),
    };
    // Never over an existing key: the device's identity would be lost with it.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let written = file.and_then(|mut file| {
        file.write_all(key.to_pem().as_bytes())
            .and_then(|()| file.sync_all())
    });
    if let Err(e) = written {
        return fail(
            3,
            &format!(
                "cannot write {}: {e}; hint: a key that exists is never overwritten",
                path.display()
            ),
        );
    }
    match CertificateRequest::create(&key, id) {
        Ok(text) => {
            print!("{text}");
            eprintln!(
                "key written to {}; have the request signed: countersign device provision {id} --csr FILE",
                path.display()
            );
            ExitCode::SUCCESS
        }
        Err(e) => fail(1, &e.to_string()),
    }
}
