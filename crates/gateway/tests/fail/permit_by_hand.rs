//! Only a decision makes a permit.
use countersign_policy::decide::{AdmissionPermit, PublishPermit};

fn forge(admission: &AdmissionPermit) -> PublishPermit<'_> {
    PublishPermit { admission, topic: "devices/d1/telemetry", policies: Default::default() }
}

fn main() {
    let _ = forge;
}
