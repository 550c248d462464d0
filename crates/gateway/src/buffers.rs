//! The buffers of one turn: each worker thread lends its own, so that an idle connection holds none.

use std::cell::Cell;

/// How many bytes are read at once, at most, with what was left before.
pub(crate) const INPUT_BYTES: usize = 64 * 1024;
/// A buffer that grew beyond this in one turn is not kept.
const KEPT_BYTES: usize = 256 * 1024;

/// What one turn of a connection works in.
pub(crate) struct Buffers {
    /// TLS records as they came.
    pub(crate) input: Box<[u8]>,
    /// What they held.
    pub(crate) plaintext: Vec<u8>,
    /// MQTT packets to be sealed.
    pub(crate) replies: Vec<u8>,
    /// TLS records to be written.
    pub(crate) records: Vec<u8>,
}

impl Buffers {
    fn new() -> Self {
        Self {
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            plaintext: Vec::new(),
            replies: Vec::new(),
            records: Vec::new(),
        }
    }
}

thread_local! {
    static LENT: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// Runs `work` with this thread's buffers, empty. A panic in it costs the buffers, no more.
pub(crate) fn lend<R>(work: impl FnOnce(&mut Buffers) -> R) -> R {
    let mut buffers = LENT.take().unwrap_or_else(|| Box::new(Buffers::new()));
    let result = work(&mut buffers);
    for buffer in [&mut buffers.plaintext, &mut buffers.replies, &mut buffers.records] {
        buffer.clear();
        buffer.shrink_to(KEPT_BYTES);
    }
    LENT.set(Some(buffers));
    result
}

/// What a connection must keep between turns. Most hold none of it.
#[derive(Debug, Default)]
pub(crate) struct Spill {
    /// The start of a TLS record.
    pub(crate) input: Vec<u8>,
    /// The start of an MQTT packet.
    pub(crate) plaintext: Vec<u8>,
    /// Records that the socket did not take.
    pub(crate) output: Vec<u8>,
}

impl Spill {
    pub(crate) fn is_empty(&self) -> bool {
        self.input.is_empty() && self.plaintext.is_empty() && self.output.is_empty()
    }
}
