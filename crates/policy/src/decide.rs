//! placeholder
pub struct TenantPolicy;
