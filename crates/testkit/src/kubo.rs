//! kubo as a peer that knows nobody but whom it is told of.
//!
//! In       nothing.
//! Out      what to configure before `ipfs daemon`.
//! Not here running it.

/// Keys of kubo's configuration and their values in JSON: TCP, WebSocket and QUIC on ports of
/// loopback that the system chooses; no routing, no discovery, no relays, no retrieval over HTTP.
pub const PEER_CONFIG: [(&str, &str); 7] = [
    ("Routing.Type", r#""none""#),
    (
        "Addresses.Swarm",
        r#"["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/quic-v1"]"#,
    ),
    ("Provide.Enabled", "false"),
    ("Swarm.RelayClient.Enabled", "false"),
    ("Swarm.RelayService.Enabled", "false"),
    ("Swarm.EnableHolePunching", "false"),
    ("HTTPRetrieval.Enabled", "false"),
];
