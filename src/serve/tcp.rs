use std::{io, net::SocketAddr};

use tokio::net::TcpListener;

/// A TCP listener that is bound, so that connections wait, and not served yet.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: TcpListener,
    /// Where it listens, with the port that was really bound.
    pub(crate) addr: SocketAddr,
}

/// Binds the listener, so that connections wait from now on.
pub(crate) async fn bind(addr: SocketAddr) -> io::Result<Bound> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    Ok(Bound { listener, addr })
}
