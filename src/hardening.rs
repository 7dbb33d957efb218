//! What the process denies itself and others.

use rustix::{
    fs::Mode,
    io,
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask},
    thread::set_no_new_privs,
};

/// The most descriptors that a worker asks for: more than its listeners, exchanges and files can ever use.
const MOST_DESCRIPTORS: u64 = 65_536;

/// Switches core dumps off, and with them other processes of the same user that would look into this one: whatever it
/// holds of secrets stays in it. A program that is executed later is not bound by it.
pub fn no_core_dumps() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// What a worker denies itself besides, for good: core files, should it become dumpable after all, and privileges from
/// programs that it might be made to execute. To be called while the process has one thread.
pub fn confine() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_no_new_privs(true)
}

/// From here on, what is made can be read by its owner alone unless its mode says otherwise.
pub fn private_files() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Takes as many descriptors as the process may have, up to a bound. Shells and service managers often give 1,024 and
/// allow far more.
pub fn raise_descriptors() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MOST_DESCRIPTORS, |maximum| maximum.min(MOST_DESCRIPTORS));
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
}
