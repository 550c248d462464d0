//! Meets the device: handshake, admission, session, data.
