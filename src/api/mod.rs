//! The Unix socket.
