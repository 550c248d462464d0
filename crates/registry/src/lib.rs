//! Remembers: tenants, devices, credentials, exchanges, audit, revisions.
