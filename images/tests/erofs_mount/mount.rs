//! Mounts that nobody else sees and that end with the test.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` with a scratch directory in a thread that has its own mount namespace. Does nothing but explain where
/// this machine cannot mount EROFS.
pub fn in_private_namespace(test: impl FnOnce(&Path) + Send) {
    if let Some(reason) = cannot_mount() {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    std::thread::scope(|scope| {
        let result = scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                let scratch = tempfile::tempdir().unwrap();
                test(scratch.path());
            })
            .join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

fn cannot_mount() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting needs root");
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("no loop devices (/dev/loop-control)");
    }
    let known = || std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("erofs"));
    if known() {
        return None;
    }
    // A module that is not loaded yet.
    let loaded = Command::new("modprobe").arg("erofs").output().is_ok_and(|output| output.status.success());
    (!loaded || !known()).then_some("this kernel has no EROFS")
}

/// A read-only mount, undone when dropped.
pub struct Mounted {
    path: PathBuf,
    /// Loop devices made for `device=`.
    loops: Vec<String>,
}

impl Mounted {
    /// Mounts an EROFS image, with the other parts as further devices.
    pub fn new(image: &Path, devices: &[PathBuf], at: &Path) -> Mounted {
        std::fs::create_dir_all(at).unwrap();
        let mut loops = Vec::new();
        let mut options = String::from("loop,ro");
        for device in devices {
            let output = Command::new("losetup").args(["-r", "-f", "--show"]).arg(device).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let name = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            options.push_str(",device=");
            options.push_str(&name);
            loops.push(name);
        }
        let mounted = Mounted { path: at.to_path_buf(), loops };
        let mut command = Command::new("mount");
        let output = command.args(["-t", "erofs", "-o", &options]).arg(image).arg(at).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        mounted
    }

    /// Mounts a read-only overlay; `lowers` from bottom to top.
    pub fn overlay(lowers: &[Mounted], at: &Path) -> Mounted {
        std::fs::create_dir_all(at).unwrap();
        let lowers: Vec<_> = lowers.iter().rev().map(|lower| lower.path.display().to_string()).collect();
        let options = format!("lowerdir={}", lowers.join(":"));
        mount(Some("overlay"), at, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
        Mounted { path: at.to_path_buf(), loops: Vec::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A mount that failed has nothing to undo; the namespace takes the rest with it.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        for device in &self.loops {
            Command::new("losetup").args(["-d", device]).status().unwrap();
        }
    }
}
