//! A device whose key never leaves its TPM, as one program: without an identity it enrols, by the word of its TPM; then it stays
//! connected, sends telemetry every second, prints what the platform sends, and ends on Ctrl-C.
//!
//! ```sh
//! cargo run --package countersign-device --features tpm --example tpm_device -- FOLDER SERVER ROOT DEVICE [tpm:ADDRESS]
//! ```
//!
//! FOLDER is where the identity is kept. The others are needed until it is there: the platform's enrolment listener (HOST:PORT),
//! its root in PEM (`countersign authority export platform`), and the device's id. The platform must know which TPM is in the
//! device: `countersign device add DEVICE`, `countersign attestation key add DEVICE EK.pem`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "for people")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use countersign_device::{
    DeviceId, EnrolFault, Enrolment, IdentityFolder, KeyStore, LinkOptions, Listener, Message, Outbox, Proof,
    QueueBounds, RenewalWindow, Service, Status, enrol,
};
use tokio::sync::Notify;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Each fault says what to do about it, and has an exit code of its own, the same as the agent's.
            eprintln!("error: {fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), EnrolFault> {
    let usage = || EnrolFault::Usage("usage: tpm_device FOLDER SERVER ROOT DEVICE [tpm:ADDRESS]".into());
    let folder = IdentityFolder::new(Path::new(arguments.first().ok_or_else(usage)?));
    if !folder.has_identity() {
        let [_, server, root, device, tpm @ ..] = arguments else {
            return Err(usage());
        };
        let device: DeviceId = device.parse().map_err(|_| usage())?;
        let tpm = tpm.first().map_or("tpm", String::as_str);
        let key_store: KeyStore = tpm.parse().map_err(EnrolFault::Key)?;
        // Whom it believes to be the platform, from then on. Where the file comes from is the root of all trust: the image.
        let roots = IdentityFolder::roots_in(Path::new(root))?;
        // Cut off anywhere, this is simply done again: the key that was made is taken up.
        let enrolment = Enrolment::new(server.parse()?, Proof::Tpm)
            .believing(roots)
            .of(device)
            .keys_in(key_store)
            .attested();
        let profile = enrol(&folder, &enrolment, &|text| eprintln!("{text}")).await?;
        println!("{}: enrolled", profile.id);
    }

    // One service at a time on a folder, this program or the agent: held until the end.
    let Some(_alone) = folder.try_running()? else {
        return Err(EnrolFault::Usage("a service runs on this folder already".into()));
    };
    // Renews by itself, each time with a new key that the TPM attests.
    let service = Service::open(
        folder.path(),
        LinkOptions::default(),
        Some(RenewalWindow::default()),
        QueueBounds::default(),
    )?;
    let topic = format!("devices/{}/telemetry", service.device());
    let sensor = tokio::spawn(sense(service.outbox(), topic));
    let stop = Arc::new(Notify::new());
    let stopping = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stopping.notify_one();
    });
    // Until it is stopped: no fault of the platform or the network ends it.
    let ended = service.run(stop, &mut Console).await;
    sensor.abort();
    ended
}

/// The device's own work: it knows nothing of the network. What is taken is on disk, and is delivered when it can be.
async fn sense(outbox: Outbox, topic: String) {
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    for reading in 0_u64.. {
        every_second.tick().await;
        let payload = format!("{{\"reading\": {reading}}}");
        if let Err(fault) = outbox.hand_in(&topic, payload.as_bytes()).await {
            eprintln!("reading {reading} is lost: {fault}");
        }
    }
}

struct Console;

impl Listener for Console {
    fn message(&mut self, message: &Message) -> std::io::Result<()> {
        println!("{}\t{}", message.topic, String::from_utf8_lossy(&message.payload));
        Ok(())
    }

    fn status(&mut self, status: &Status) {
        // How it stands, in one line; a program finds the fault and its cure in `status.fault`.
        eprintln!("{}", status.lines(status.since)[0]);
    }

    /// Faults with their cures, renewals, new roots.
    fn say(&mut self, text: &str) {
        eprintln!("{text}");
    }
}
