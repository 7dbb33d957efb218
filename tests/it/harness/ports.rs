//! Ports for what a test tells another process to listen on.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the ports that Linux gives to connections (32,768 and up): one of those may be taken between the look and the listening.
const PORTS: Range<u16> = 20_000..32_000;

/// A port that nobody listens on, and that nobody else of this process is given.
pub(crate) fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Another run at the same time begins elsewhere.
    let begin = u16::try_from(process::id() % u32::from(count)).expect("less than all ports");
    let next = || PORTS.start + (begin + GIVEN.fetch_add(1, Ordering::Relaxed) % count) % count;
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (0..count).map(|_| next()).find(is_free).expect("one port of thousands is free")
}
