//! Test PKI, fleet and clock. Only ever a dev-dependency.
