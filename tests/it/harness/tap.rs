//! A wire that listens: everything between the worker and an issuer goes through it and is kept.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
};

/// A port that passes on to another one. Its threads end with the test's process.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    address: SocketAddr,
    target: Arc<OnceLock<SocketAddr>>,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    /// Listens; nothing is passed on until [`lead_to`](Self::lead_to).
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback address");
        let address = listener.local_addr().expect("it is bound");
        let tap = Self { address, target: Arc::default(), heard: Arc::default() };
        let wire = tap.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                wire.pass_on(stream);
            }
        });
        tap
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes connections on to `target` from now on.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.target.set(target).expect("it leads to one place");
    }

    /// Every token that went through as this field of JSON; what was cut off is none.
    pub(crate) fn tokens(&self, field: &str) -> Vec<String> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&heard);
        let start = format!("\"{field}\":\"");
        let values = text.split(&start).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0));
        let whole =
            |value: &&str| value.len() >= 32 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        values.filter(whole).map(str::to_owned).collect()
    }

    /// Whether `text` went through.
    pub(crate) fn heard(&self, text: &str) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.windows(text.len()).any(|window| window == text.as_bytes())
    }

    fn pass_on(&self, near: TcpStream) {
        let Some(far) = self.target.get().and_then(|target| TcpStream::connect(target).ok()) else { return };
        let pairs = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
        for (from, to) in pairs {
            let (Ok(mut from), Ok(mut to)) = (from, to) else { return };
            let heard = Arc::clone(&self.heard);
            thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                // Either end may be gone already.
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }
}
