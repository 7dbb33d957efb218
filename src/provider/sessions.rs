//! What is remembered of TLS sessions, so that the next connection to the same server takes up one of them: that saves it looking at a
//! certificate, and the server a signature.
//!
//! A one-time token travels on a connection of its own, and the commits before leave many exchanges ready at one moment. Each takes
//! up another session (RFC 8446 appendix C.4: a ticket is used once), so that there must be as many as exchanges under way; rustls'
//! own store keeps eight.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustls::{
    NamedGroup,
    client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};

/// Servers of which anything is remembered: a provider has one or two.
const MOST_SERVERS: usize = 8;
/// Sessions of TLS 1.3 that are remembered of each.
const MOST_TICKETS: usize = super::transport::POOL_SIZE;
/// How rustls counts what its own store remembers: so many for each server.
const COUNTED_FOR_EACH: usize = 8;

/// Remembers sessions in memory, the newest first. Nothing is ever sent before a handshake has ended, whichever is taken up.
pub(super) struct Sessions {
    /// All but the sessions of TLS 1.3.
    others: ClientSessionMemoryCache,
    tickets: Mutex<HashMap<ServerName<'static>, VecDeque<Tls13ClientSessionValue>>>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        let others = ClientSessionMemoryCache::new(MOST_SERVERS * COUNTED_FOR_EACH);
        Self { others, tickets: Mutex::default() }
    }

    fn tickets(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, VecDeque<Tls13ClientSessionValue>>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.others.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.others.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.others.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.others.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.others.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, session: Tls13ClientSessionValue) {
        let mut servers = self.tickets();
        if servers.len() >= MOST_SERVERS && !servers.contains_key(&server) {
            // More than any provider has: what is forgotten costs a handshake.
            servers.clear();
        }
        let tickets = servers.entry(server).or_default();
        if tickets.len() >= MOST_TICKETS {
            tickets.pop_front();
        }
        tickets.push_back(session);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tickets().get_mut(server)?.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
        client::Resumption,
        crypto::ring::{Ticketer, default_provider},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    };

    use super::*;

    /// A certificate for 127.0.0.1, and its key.
    const PEM: &[u8] = include_bytes!("../../benches/refresh/issuer.pem");

    fn client(sessions: Arc<Sessions>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(PEM).expect("a certificate")).expect("one that can be believed");
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::store(sessions);
        Arc::new(config)
    }

    fn server() -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let certificate = CertificateDer::from_pem_slice(PEM).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(PEM).expect("a key");
        let mut config = builder.with_single_cert(vec![certificate], key).expect("they belong together");
        config.ticketer = Ticketer::new().expect("randomness");
        Arc::new(config)
    }

    fn begin(config: &Arc<ClientConfig>) -> ClientConnection {
        let address = ServerName::try_from("127.0.0.1").expect("an address");
        ClientConnection::new(Arc::clone(config), address).expect("a name that can be asked for")
    }

    /// Ends a handshake, and gives how it went.
    fn end(mut client: ClientConnection, server: &Arc<ServerConfig>) -> Option<HandshakeKind> {
        let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
        while client.wants_write() || server.wants_write() {
            let (mut request, mut answer) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut request).expect("room");
            }
            let mut request = request.as_slice();
            while !request.is_empty() {
                server.read_tls(&mut request).expect("bytes");
                server.process_new_packets().expect("a client that keeps to the rules");
            }
            while server.wants_write() {
                server.write_tls(&mut answer).expect("room");
            }
            let mut answer = answer.as_slice();
            while !answer.is_empty() {
                client.read_tls(&mut answer).expect("bytes");
                client.process_new_packets().expect("a server that keeps to the rules");
            }
        }
        client.handshake_kind()
    }

    #[test]
    fn as_many_connections_at_once_as_exchanges_take_up_a_session_each() {
        let (sessions, server) = (Arc::new(Sessions::new()), server());
        let config = client(Arc::clone(&sessions));
        assert_eq!(end(begin(&config), &server), Some(HandshakeKind::Full), "nothing is known yet");
        // Each uses one and is given two.
        for _ in 0..MOST_TICKETS {
            assert_eq!(end(begin(&config), &server), Some(HandshakeKind::Resumed));
        }
        let at_once: Vec<_> = (0..MOST_TICKETS).map(|_| begin(&config)).collect();
        let one_more = begin(&config);
        for client in at_once {
            assert_eq!(end(client, &server), Some(HandshakeKind::Resumed));
        }
        assert_eq!(end(one_more, &server), Some(HandshakeKind::Full), "no session is taken up twice");
        let kept = sessions.tickets().values().map(VecDeque::len).sum::<usize>();
        assert_eq!(kept, MOST_TICKETS, "those that are over are forgotten");
        assert_eq!(format!("{sessions:?}"), "Sessions { .. }", "nothing of a session is shown");
    }

    #[test]
    fn no_more_servers_are_remembered_than_a_provider_could_have() {
        let (sessions, server) = (Arc::new(Sessions::new()), server());
        let config = client(Arc::clone(&sessions));
        let name = |number: usize| ServerName::try_from(format!("{number}.test")).expect("a name");
        for number in 0..=MOST_SERVERS {
            end(begin(&config), &server);
            let address = ServerName::try_from("127.0.0.1").expect("an address");
            let session = sessions.take_tls13_ticket(&address).expect("it was given one");
            sessions.insert_tls13_ticket(name(number), session);
            assert!(sessions.tickets().len() <= MOST_SERVERS);
        }
        assert!(sessions.take_tls13_ticket(&name(MOST_SERVERS)).is_some());
    }
}
