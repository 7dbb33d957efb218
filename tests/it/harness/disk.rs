//! File systems of a test's own, which can be full, read-only or broken. Only root can mount them.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;
use tempfile::TempDir;

use super::chance::tell;

/// A mounted file system; it goes away when this is dropped, which must be after whatever uses it.
#[derive(Debug)]
pub(crate) struct Disk {
    at: TempDir,
    /// What it lies on, if that is a file on another one.
    below: Option<Box<Disk>>,
}

impl Disk {
    /// A file system in memory with room for so many MiB; `None`, and said so loudly, where none can be mounted.
    pub(crate) fn in_memory(mebibytes: u32) -> Option<Self> {
        let at = tempfile::Builder::new().prefix("consentry-disk-").tempdir().expect("a temporary folder");
        let size = format!("size={mebibytes}m,mode=0755");
        mount(&["-t", "tmpfs", "-o", &size, "tmpfs"], at.path()).then_some(Self { at, below: None })
    }

    /// An ext4 file system that believes to have `mebibytes`, in a file that takes its space in memory only as it is
    /// written to; there is `room` for so many MiB of it. What it cannot write then fails as on a disk that breaks.
    pub(crate) fn ext4(mebibytes: u32, room: u32) -> Option<Self> {
        let below = Self::in_memory(room)?;
        let image = below.path().join("image");
        fs::File::create(&image)
            .and_then(|file| file.set_len(u64::from(mebibytes) << 20))
            .expect("an empty file takes no space");
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1", &text(&image)]);
        let at = tempfile::Builder::new().prefix("consentry-disk-").tempdir().expect("a temporary folder");
        (made && mount(&["-o", "loop,errors=remount-ro", &text(&image)], at.path()))
            .then(|| Self { at, below: Some(Box::new(below)) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }

    /// The file system below, of one made by [`ext4`](Self::ext4).
    pub(crate) fn below(&self) -> &Self {
        self.below.as_ref().expect("it lies on another one")
    }

    /// Takes all the space that is left.
    pub(crate) fn fill(&self) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.filler()).expect("root may");
        for block in [64 * 1024, 4096, 1] {
            while file.write_all(&vec![7; block]).is_ok() {}
        }
    }

    /// Gives it back.
    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    /// Mounts an ext4 file system anew, as an operator does once its disk is well again. Nothing may be open on it.
    pub(crate) fn mount_again(&self) {
        assert!(run("umount", &[&text(self.path())]), "something is still open on it");
        let image = text(&self.below().path().join("image"));
        assert!(mount(&["-o", "loop,errors=remount-ro", &image], self.path()), "it was mounted before");
    }

    /// Lets an ext4 file system find a fault in itself, upon which it takes no more writes: as after damage that it
    /// notices. False where the kernel offers no such thing.
    pub(crate) fn turn_read_only(&self) -> bool {
        let mounts = fs::read_to_string("/proc/mounts").expect("Linux has it");
        let at = text(self.path());
        let device = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&at));
        let device = device.and_then(|line| line.split(' ').next()?.rsplit('/').next()).expect("it is mounted");
        let done = fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "consentry test").is_ok();
        if !done {
            tell("SKIPPED: this kernel's ext4 cannot be told to find a fault in itself");
        }
        done
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what still holds a file there lets it go when it ends.
        run("umount", &["-l", &text(self.path())]);
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    let at = text(at);
    let mut all = arguments.to_vec();
    all.push(&at);
    let mounted = run("mount", &all);
    if !mounted {
        let why = if geteuid().is_root() { "mount does not work here" } else { "only root can mount" };
        tell(&format!("SKIPPED: no file system of the test's own ({why}); run this test as root"));
    }
    mounted
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

fn text(path: &Path) -> String {
    path.to_str().expect("a temporary folder has a plain name").to_owned()
}
