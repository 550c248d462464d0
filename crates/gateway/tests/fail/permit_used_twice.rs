//! A permit is good once: it is neither copied nor cloned.
use countersign_policy::decide::{AdmissionPermit, PublishPermit};

fn twice(permit: PublishPermit<'_>) -> (PublishPermit<'_>, PublishPermit<'_>) {
    (permit, permit)
}

fn copied(permit: &AdmissionPermit) -> AdmissionPermit {
    permit.clone()
}

fn main() {
    let _ = (twice, copied);
}
