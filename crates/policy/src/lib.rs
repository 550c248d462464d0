//! May they? Verified facts in; a permit or a typed denial out, with an explanation. No I/O.
//!
//! Reading order:
//!
//! 1. [`lifecycle`]: the states of a device and the table of moves between them
//! 2. [`facts`]: what is known of device, credential and authority, and the trait through which it is looked up
//! 3. [`spaces`]: names for parts of the topic tree, which policies speak of
//! 4. [`first_contact`]: what may be learned when a sound certificate is not known yet
//! 5. [`station`]: why a certificate of an offline factory station may not be known yet
//! 6. [`renewal_lane`]: what may be issued to a device whose certificate has expired
//! 7. [`claim`]: which devices a shared secret or certificate enrols
//! 8. [`decide`]: a tenant's compiled policies, and the permits that only they make
//! 9. [`denial`]: every way to be refused, each with a stable code, its wire form, a cause and a cure
//! 10. [`clones`]: whether two hold one key: a score of what only two live holders can cause
//! 11. [`exchange`]: the record of one connection attempt, from TCP accept to first publish
//! 12. [`session_record`]: what the session that came of it did

pub mod claim;
pub mod clones;
mod compile;
pub mod decide;
pub mod denial;
pub mod exchange;
pub mod facts;
mod fault;
pub mod first_contact;
pub mod lifecycle;
pub mod offered;
mod permit;
mod quarantine;
pub mod renewal_lane;
mod request;
pub mod session_record;
pub mod spaces;
pub mod station;

pub use claim::{ClaimId, ClaimRefusal};
pub use compile::has_template;
pub use decide::{PolicyFault, PolicyProblem, TenantPolicy};
pub use denial::{Denial, DenialCode};
pub use exchange::{ExchangeId, ExchangeRecord, Outcome, Possession, Stage, StageOutcome, StageRecord};
pub use facts::{
    ClientIdMode, CredentialFacts, CredentialState, Custody, DeviceFacts, FactSource, Generations,
};
pub use first_contact::Admission;
pub use lifecycle::{LifecycleMove, LifecycleState};
pub use permit::{AdmissionPermit, PublishPermit, SubscribePermit};
pub use renewal_lane::{LaneRefusal, RenewalLane};
pub use session_record::{SessionRecord, TopicSummary, TopicUse};
pub use spaces::{SpaceSet, TopicSpace};
pub use station::StationFacts;
