//! A device that proved its key, and no more, has nothing to publish with.
use countersign_gateway::exchange::Handshaken;

fn main() {
    let publish = |handshaken: Handshaken| handshaken.publish("devices/d1/telemetry", b"21.5");
    drop(publish);
}
