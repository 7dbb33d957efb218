//! What the process denies itself and others.

use rustix::{
    fs::Mode,
    io,
    process::{DumpableBehavior, set_dumpable_behavior, umask},
};

/// Switches core dumps off, and with them other processes of the same user that would look into this one: whatever it
/// holds of secrets stays in it. A program that is executed later is not bound by it.
pub fn no_core_dumps() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// From here on, what is made can be read by its owner alone unless its mode says otherwise.
pub fn private_files() {
    umask(Mode::RWXG | Mode::RWXO);
}
