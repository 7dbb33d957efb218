//! A wire between the worker and an issuer: it may keep everything that goes through it, and it can be cut.

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
    /// Whether what goes through is not kept.
    deaf: bool,
    /// Both ends of what goes through at present, and of a little that has ended.
    open: Arc<Mutex<Vec<TcpStream>>>,
}

/// When so many ends are noted, those that have ended are forgotten.
const MANY_ENDS: usize = 64;

impl Tap {
    /// Listens; nothing is passed on until [`lead_to`](Self::lead_to).
    pub(crate) fn start() -> Self {
        Self::listen(false)
    }

    /// As [`start`](Self::start), and keeps nothing.
    pub(crate) fn deaf() -> Self {
        Self::listen(true)
    }

    fn listen(deaf: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback address");
        let address = listener.local_addr().expect("it is bound");
        let tap = Self { address, target: Arc::default(), heard: Arc::default(), deaf, open: Arc::default() };
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

    /// Ends every connection at once, wherever it is in its request or answer: as an issuer that is killed does.
    pub(crate) fn cut(&self) {
        for end in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended already.
            let _ = end.shutdown(Shutdown::Both);
        }
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
        if let (Ok(near), Ok(far)) = (near.try_clone(), far.try_clone()) {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.len() >= MANY_ENDS {
                open.retain(|end| end.peer_addr().is_ok());
            }
            open.extend([near, far]);
        }
        let deaf = self.deaf;
        let pairs = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
        for (from, to) in pairs {
            let (Ok(mut from), Ok(mut to)) = (from, to) else { return };
            let heard = Arc::clone(&self.heard);
            thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if !deaf {
                        heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
                    }
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
