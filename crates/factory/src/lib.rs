//! Factory to device: claims, certificate requests, enrolment grants. No I/O.
