//! The only code that can mint: profile, prepare, lint, sign.
