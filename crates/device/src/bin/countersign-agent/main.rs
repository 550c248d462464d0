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

mod enrol;
mod line;
mod run;
mod status;

use std::io::{BufRead, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use countersign_device::queue::MESSAGE_MAX;
use countersign_device::renewal::{self, needs_renewal};
use countersign_device::{
    Backoff, EnrolFault, IdentityFolder, Keeper, KeyReuse, KeyStore, Link, LinkFault, LinkOptions,
    RenewalWindow,
};
use countersign_factory::CertificateRequest;
use countersign_identity::DeviceId;
use countersign_mqtt::{QoS, Version};

/// A device's link to its Countersign platform: has a certificate issued and renewed, proves who it is by it, then
/// publishes and subscribes. While it runs it renews its certificate by itself.
///
/// Exit codes: 0 done, 1 other failure, 2 wrong usage, 3 identity folder or key unusable, 4 platform not reachable, 5 platform
/// not trusted, 6 certificate refused, 7 session refused, 8 publish or subscribe not permitted, 9 session ended, 10
/// enrolment refused, 11 enrolment waits for approval, 12 service not running, 13 the service did not take the message: as
/// many wait as may, the disk is full, or the message is too large.
#[derive(Parser)]
#[command(name = "countersign-agent", version)]
struct Arguments {
    /// The identity folder: device.crt, device.key, platform-root.crt, device.json
    #[arg(long, short, default_value = ".", global = true)]
    identity: PathBuf,
    /// The MQTT version to speak
    #[arg(long, value_enum, default_value = "5", global = true)]
    mqtt: MqttVersion,
    /// When the certificate is renewed while this runs: at a moment drawn from this part of its life, in percent
    #[arg(long, default_value = "60-73", global = true)]
    renew_at: RenewalWindow,
    /// Leave renewal to others
    #[arg(long, global = true)]
    no_renew: bool,
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
    /// Have a first certificate issued over EST, by a one-time secret or by the factory's certificate
    Enrol(enrol::EnrolArguments),
    /// On the factory line: enrol, show the platform the certificate and prove its key, so that it never lapses. Safe to run again
    /// after any cut
    Provision(enrol::EnrolArguments),
    /// On the factory line: take what a station (or countersign device provision --csr) issued for the key of `request`
    Install {
        /// The folder with device.crt, platform-root.crt and device.json
        from: PathBuf,
        /// Where the key is, and the next ones are made [default: where it is]
        #[arg(long)]
        key_store: Option<KeyStore>,
    },
    /// On the factory line: sign a station's challenge, and print the signature in base64
    Prove {
        /// The file with the challenge; - for standard input
        challenge: PathBuf,
    },
    /// End this device for good: state by its key that the key is destroyed, destroy it, and hand the statement in
    Destroy {
        /// That you mean it: the device's id
        #[arg(long, value_name = "ID")]
        confirm: DeviceId,
    },
    /// Have the next certificate issued by the one in use, and put it in use once it was admitted
    Renew {
        /// Keep the key, where the platform's profile lets us
        #[arg(long)]
        same_key: bool,
        /// Do not connect: it is put in use at the next connection
        #[arg(long)]
        no_connect: bool,
    },
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
        /// Hand it to the service that runs on this identity (countersign-agent run), which keeps it until it is delivered
        #[arg(long, conflicts_with = "qos")]
        queued: bool,
    },
    /// Subscribe, and print each message as TOPIC, tab, payload; reconnect when the link is lost
    Subscribe {
        /// The filter; commands to this device by default
        filter: Option<String>,
        /// End after this many messages
        #[arg(long, short)]
        count: Option<u64>,
    },
    /// Run as a service: stay connected, deliver what is handed in, keep it on disk while the platform is away
    Run(run::RunArguments),
    /// Show how the service stands, and what to do about it
    Status(status::StatusArguments),
    /// Make a key, and print a certificate request for it (PKCS#10, PEM)
    Request {
        /// The device id
        id: DeviceId,
        /// Where the key is made: `file`, encrypted:PASSPHRASE-FILE, a pkcs11: URI that names it, `tpm` or tpm:ADDRESS, if it is
        /// to be bound to PCRs with +pcrs=sha256:0,2,4,7 behind it; device.json then needs the same `key_store`
        #[arg(long, default_value = "file")]
        key_store: KeyStore,
    },
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(1, &format!("cannot start: {e}")),
    };
    let done = runtime.block_on(run(arguments));
    // Its end would wait for a thread whose key does not answer. The process ends, and with it all threads.
    std::mem::forget(runtime);
    done
}

fn fail(code: u8, text: &str) -> ExitCode {
    // One thought per line: the hint on its own.
    eprintln!("error: {}", text.replace("; hint: ", "\nhint: "));
    ExitCode::from(code)
}

fn warn(text: &str) {
    eprintln!("{}", text.replace("; hint: ", "\nhint: "));
}

/// What the commands work with.
struct Agent {
    folder: IdentityFolder,
    options: LinkOptions,
    window: Option<RenewalWindow>,
}

async fn run(arguments: Arguments) -> ExitCode {
    let folder = IdentityFolder::new(&arguments.identity);
    if let Command::Request { id, key_store } = &arguments.command {
        return request(&folder, id, key_store);
    }
    if let Command::Status(asked) = &arguments.command {
        return status::status(&folder, asked);
    }
    let needs_identity = !matches!(
        arguments.command,
        Command::Enrol(_) | Command::Provision(_) | Command::Install { .. } | Command::Destroy { .. }
    );
    if needs_identity {
        match folder.load() {
            Ok(identity) => {
                for oddity in identity.oddities() {
                    eprintln!("warning: {oddity}");
                }
            }
            Err(e) => return fail(3, &e.to_string()),
        }
    }
    let agent = Agent {
        folder,
        options: LinkOptions {
            version: match arguments.mqtt {
                MqttVersion::V311 => Version::V311,
                MqttVersion::V5 => Version::V5,
            },
            ..LinkOptions::default()
        },
        window: (!arguments.no_renew).then_some(arguments.renew_at),
    };
    let done = match arguments.command {
        Command::Enrol(arguments) => enrol::enrol(&agent, arguments).await,
        Command::Provision(arguments) => line::provision(&agent, arguments).await,
        Command::Install { from, key_store } => line::install(&agent, &from, key_store),
        Command::Prove { challenge } => line::prove(&agent, &challenge),
        Command::Destroy { confirm } => line::destroy(&agent, &confirm).await,
        Command::Renew { same_key, no_connect } => enrol::renew(&agent, same_key, no_connect).await,
        Command::Check => check(&agent).await,
        Command::Publish {
            topic,
            message,
            queued: true,
            ..
        } => run::hand_in(&agent, topic, message).await,
        Command::Publish {
            topic, message, qos, ..
        } => publish(&agent, topic, message, qos).await,
        Command::Run(arguments) => run::run(&agent, &arguments).await,
        Command::Subscribe { filter, count } => subscribe(&agent, filter, count).await,
        Command::Request { .. } | Command::Status(_) => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fail(fault.exit_code(), &fault.to_string()),
    }
}

impl Agent {
    async fn connect(&self) -> Result<Link, EnrolFault> {
        renewal::connect(&self.folder, &self.options, &warn)
            .await
            .map(|(link, _)| link)
    }

    fn keeper(&self) -> Option<Keeper> {
        let window = self.window?;
        Some(Keeper::start(
            self.folder.path(),
            window,
            KeyReuse::New,
            |_, text| warn(text),
        ))
    }

    fn topic(&self, below: &str) -> Result<String, EnrolFault> {
        Ok(format!("devices/{}/{below}", self.folder.load()?.profile.id))
    }
}

/// Waits for the next certificate; for ever if nobody renews.
async fn renewed(keeper: &mut Option<Keeper>) {
    match keeper {
        Some(keeper) => keeper.renewed().await,
        None => std::future::pending().await,
    }
}

async fn check(agent: &Agent) -> Result<(), EnrolFault> {
    let link = agent.connect().await?;
    let profile = agent.folder.load()?.profile;
    println!(
        "{}: admitted by {}:{} ({}, {})",
        profile.id,
        profile.host,
        profile.port,
        link.tls(),
        agent.options.version.name()
    );
    Ok(link.disconnect().await?)
}

async fn publish(
    agent: &Agent,
    topic: Option<String>,
    message: Option<String>,
    qos: u8,
) -> Result<(), EnrolFault> {
    let topic = match topic {
        Some(topic) => topic,
        None => agent.topic("telemetry")?,
    };
    let qos = if qos == 0 {
        QoS::AtMostOnce
    } else {
        QoS::AtLeastOnce
    };
    if let Some(message) = message {
        let mut link = agent.connect().await?;
        link.publish(&topic, message.as_bytes(), qos).await?;
        return Ok(link.disconnect().await?);
    }
    let mut keeper = agent.keeper();
    let mut link = patient(agent).await?;
    let mut queue = lines();
    loop {
        tokio::select! {
            line = queue.recv() => match line {
                Some(line) => link.publish(&topic, &line?, qos).await?,
                None => break,
            },
            () = renewed(&mut keeper) => {
                // What was published is acknowledged, so nothing is lost in between.
                let _ = link.disconnect().await;
                link = reconnect(agent).await?;
            }
            // Nothing to send: still there to ping, and to hear of the session's end. It has no subscription,
            // so nothing is lost when this is left in the middle.
            ended = link.idle(Duration::from_secs(3600)) => ended?,
        }
    }
    Ok(link.disconnect().await?)
}

/// Connects; a certificate that has expired is renewed first, if the platform lets it.
async fn patient(agent: &Agent) -> Result<Link, EnrolFault> {
    match agent.connect().await {
        Err(EnrolFault::Link(fault)) if agent.window.is_some() && needs_renewal(&fault) => {
            warn(&format!("warning: {fault}"));
            renewal::renew(&agent.folder, KeyReuse::New).await?;
            agent.connect().await
        }
        other => other,
    }
}

/// Connects, however often the network fails.
async fn reconnect(agent: &Agent) -> Result<Link, EnrolFault> {
    let mut backoff = Backoff::default();
    loop {
        match agent.connect().await {
            Err(fault) if fault.is_passing() => {
                let wait = backoff.wait();
                warn(&format!(
                    "warning: {fault}; trying again in {:.1} s",
                    wait.as_secs_f64()
                ));
                tokio::time::sleep(wait).await;
            }
            other => return other,
        }
    }
}

/// A line of standard input, or that it is longer than any message may be; the rest of such a one is skipped.
type Line = Result<Vec<u8>, TooLong>;

/// A line was longer than [`MESSAGE_MAX`].
struct TooLong;

impl From<TooLong> for EnrolFault {
    fn from(_: TooLong) -> Self {
        Self::NotTaken(format!(
            "a line of standard input is longer than {MESSAGE_MAX} bytes, the largest message; hint: send it in parts"
        ))
    }
}

/// The lines of standard input.
fn lines() -> tokio::sync::mpsc::Receiver<Line> {
    let (lines, queue) = tokio::sync::mpsc::channel(64);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Ok(Some(line)) = next_line(&mut input) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    queue
}

/// The next line without its end; nothing when there is none.
fn next_line(input: &mut impl BufRead) -> std::io::Result<Option<Line>> {
    let mut line = Vec::new();
    if input.take(MESSAGE_MAX + 1).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 > MESSAGE_MAX {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(TooLong)));
    }
    Ok(Some(Ok(line)))
}

async fn subscribe(agent: &Agent, filter: Option<String>, count: Option<u64>) -> Result<(), EnrolFault> {
    let filter = match filter {
        Some(filter) => filter,
        None => agent.topic("commands/#")?,
    };
    let mut backoff = Backoff::default();
    let mut keeper = agent.keeper();
    let mut left = count;
    loop {
        let fault = match listen(agent, &mut keeper, &filter, &mut left, &mut backoff).await {
            Ok(Listened::Enough) => return Ok(()),
            Ok(Listened::Renewed) => continue,
            Err(fault) => fault,
        };
        if !fault.is_passing() {
            return Err(fault);
        }
        let wait = backoff.wait();
        warn(&format!(
            "warning: {fault}; trying again in {:.1} s",
            wait.as_secs_f64()
        ));
        tokio::time::sleep(wait).await;
    }
}

enum Listened {
    Enough,
    /// A new certificate waits for its first connection.
    Renewed,
}

async fn listen(
    agent: &Agent,
    keeper: &mut Option<Keeper>,
    filter: &str,
    left: &mut Option<u64>,
    backoff: &mut Backoff,
) -> Result<Listened, EnrolFault> {
    let mut link = patient(agent).await?;
    link.subscribe(filter, QoS::AtLeastOnce).await?;
    backoff.reset();
    eprintln!("subscribed to {filter}");
    while *left != Some(0) {
        let message = tokio::select! {
            message = link.next() => message?,
            () = renewed(keeper) => {
                let _ = link.disconnect().await;
                return Ok(Listened::Renewed);
            }
        };
        let mut out = std::io::stdout().lock();
        let written = write!(out, "{}\t", message.topic)
            .and_then(|()| out.write_all(&message.payload))
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush());
        if let Err(e) = written {
            return Err(LinkFault::Broken(format!("cannot write to standard output: {e}")).into());
        }
        if let Some(left) = left {
            *left -= 1;
        }
    }
    link.disconnect().await?;
    Ok(Listened::Enough)
}

fn request(folder: &IdentityFolder, id: &DeviceId, store: &KeyStore) -> ExitCode {
    let path = folder.path().join("device.key");
    // Never over an existing key: the device's identity would be lost with it.
    if path.symlink_metadata().is_ok() {
        let hint = "hint: a key that exists is never overwritten";
        return fail(3, &format!("there is a key in {}; {hint}", path.display()));
    }
    let key = match folder.first_key(store) {
        Ok(key) => key,
        Err(e) => return fail(3, &e.to_string()),
    };
    match CertificateRequest::create(&*key, id) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_bound_and_the_next_one_is_read_all_the_same() {
        let longest = vec![b'a'; MESSAGE_MAX as usize];
        let input = [b"one\n\n", &longest[..], b"\na", &longest, &longest, b"\nlast"].concat();
        let mut input = std::io::BufReader::new(&input[..]);
        let mut seen = Vec::new();
        while let Some(line) = next_line(&mut input).unwrap() {
            seen.push(line.ok().map(|l| l.len()));
        }
        let expected = [Some(3), Some(0), Some(longest.len()), None, Some(4)];
        assert_eq!(seen, expected);
    }
}
