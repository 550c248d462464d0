//! A gateway: one process that is many devices at once, those behind it, each with an identity and a session of its own.
//!
//! ```sh
//! cargo run --package countersign-device --example gateway -- FOLDER
//! ```
//!
//! Each folder in FOLDER that has a `device.json` is one device's identity (`countersign device provision DEVICE --out
//! FOLDER/DEVICE`, or `countersign-agent --identity FOLDER/DEVICE enrol …`). Whatever befalls one device, the others go on: one
//! that the platform refuses is told with the cure and tried again from time to time, one whose folder cannot be used is left out.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "for people")]

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use countersign_device::{
    EnrolFault, IdentityFolder, LinkOptions, Listener, Message, Outbox, QueueBounds, RenewalWindow, Service,
    Status,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What may wait on disk for each device, so that one that is away for long leaves room for the others.
const BOUNDS: QueueBounds = QueueBounds {
    messages: 1_000,
    bytes: 1 << 20,
};

#[tokio::main]
async fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1).unwrap_or_default();
    let mut devices = JoinSet::new();
    let mut stops = Vec::new();
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().display().to_string());
        if path.join("device.json").exists() {
            let stop = Arc::new(Notify::new());
            stops.push(stop.clone());
            devices.spawn(async move {
                match run(&path, &name, stop).await {
                    Ok(()) => eprintln!("{name}: ended"),
                    Err(fault) => eprintln!("{name}: given up: {fault}"),
                }
            });
        }
    }
    tokio::select! {
        () = all(&mut devices) => {
            eprintln!("error: no device (left) in {}; usage: gateway FOLDER", folder.display());
            ExitCode::FAILURE
        }
        _ = tokio::signal::ctrl_c() => {
            for stop in &stops {
                stop.notify_one();
            }
            // Each says goodbye to the platform.
            all(&mut devices).await;
            ExitCode::SUCCESS
        }
    }
}

/// Waits until all have ended, however they did.
async fn all(devices: &mut JoinSet<()>) {
    while devices.join_next().await.is_some() {}
}

/// One device, until it is stopped.
async fn run(path: &Path, name: &str, stop: Arc<Notify>) -> Result<(), EnrolFault> {
    // One service at a time on a folder: held until the end.
    let Some(_alone) = IdentityFolder::new(path).try_running()? else {
        return Err(EnrolFault::Usage("a service runs on it already".into()));
    };
    let (options, window) = (LinkOptions::default(), Some(RenewalWindow::default()));
    let service = Service::open(path, options, window, BOUNDS)?;
    let topic = format!("devices/{}/telemetry", service.device());
    let publishing = publish(service.outbox(), &topic, name);
    let mut listener = Device(name.to_owned());
    tokio::select! {
        ended = service.run(stop, &mut listener) => ended,
        never = publishing => match never {},
    }
}

/// What the device behind the gateway has to say. When its queue is full a reading is lost, and that is told: the loop neither
/// waits nor grows.
async fn publish(outbox: Outbox, topic: &str, name: &str) -> Infallible {
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    loop {
        every_second.tick().await;
        if let Err(fault) = outbox.hand_in(topic, b"21.5").await {
            eprintln!("{name}: a reading is lost: {fault}");
        }
    }
}

/// Tells of one device.
struct Device(String);

impl Listener for Device {
    fn message(&mut self, message: &Message) -> std::io::Result<()> {
        let payload = String::from_utf8_lossy(&message.payload);
        println!("{}\t{}\t{payload}", self.0, message.topic);
        Ok(())
    }

    fn status(&mut self, status: &Status) {
        // How it stands, in one line; a program finds the fault and its cure in `status.fault`.
        eprintln!("{}", status.lines(status.since)[0]);
    }

    /// Faults with their cures, renewals, new roots.
    fn say(&mut self, text: &str) {
        eprintln!("{}: {text}", self.0);
    }
}
