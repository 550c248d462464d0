//! Runs on the device: key, pinned platform root, link. Ships countersign-agent.
