//! A permit to publish ends with the admission it was made under.
use countersign_policy::decide::{AdmissionPermit, DataFacts, PublishPermit, TenantPolicy};
use countersign_policy::DeviceFacts;

fn keep<'s>(policy: &TenantPolicy, admission: AdmissionPermit, device: &DeviceFacts, facts: DataFacts) -> PublishPermit<'s> {
    policy.publish(&admission, device, "devices/d1/telemetry", facts).unwrap()
}

fn main() {
    let _ = keep;
}
