//! Closes the monitor's own jail, its filters or the file broker's around itself and then misbehaves, for the tests of the jail:
//!
//! - `jail-probe full ID` and `jail-probe unprivileged`: closes the jail and says what it can still do, a line each.
//! - `jail-probe nobody LEVEL`: the same, as a user without privileges.
//! - `jail-probe event-loop|vcpu|files|broker|nothing call NUMBER [ARGUMENT...]`: closes that filter and makes a system call.
//! - `jail-probe event-loop|vcpu|files|broker|nothing panic`, `... live`: panics; or does what any thread does, in a thread that ends.

use std::error::Error;
use std::fs::File;

use hull_protocol::vmm::{JailConfig, JailNetwork};
use hull_vmm::jail;
use hull_vmm::jail::denied::{self, Program};
use hull_vmm::jail::filters::Role;
use hull_vmm::jail::seccomp::{Filter, FilterError};
use nix::errno::Errno;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["full", id] => {
            let id = id.parse()?;
            inside(JailConfig::Full { uid: id, gid: id, network: JailNetwork::Empty })
        }
        ["unprivileged"] => inside(JailConfig::Unprivileged),
        ["nobody", ref level @ ..] => {
            const NOBODY: u32 = 65534;
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(NOBODY.into())?;
            nix::unistd::setuid(NOBODY.into())?;
            match level {
                ["full"] => {
                    inside(JailConfig::Full { uid: NOBODY, gid: NOBODY, network: JailNetwork::Inherited })
                }
                _ => inside(JailConfig::Unprivileged),
            }
        }
        ["nothing", ref what @ ..] => under(Program::Monitor, Filter::of_never, what),
        ["event-loop", ref what @ ..] => under(Program::Monitor, || Filter::of(Role::EventLoop), what),
        ["vcpu", ref what @ ..] => under(Program::Monitor, || Filter::of(Role::Vcpu), what),
        ["files", ref what @ ..] => under(Program::Monitor, || Filter::of(Role::Files), what),
        ["broker", ref what @ ..] => under(Program::Broker, || Filter::of(Role::Broker), what),
        _ => Err("see the head of its source".into()),
    }
}

/// Closes the jail and tries the walls.
fn inside(config: JailConfig) -> Result<(), Box<dyn Error>> {
    // The signal that a shim would have set.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    jail::enter(config)?;
    let errno = |result: std::io::Result<File>| match result {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{:?}", Errno::from_raw(error.raw_os_error().unwrap_or_default())),
    };
    let of = |result: nix::Result<()>| result.map_or_else(|errno| format!("{errno:?}"), |()| "done".into());
    println!("open / {}", errno(File::open("/")));
    let connected = std::net::TcpStream::connect("127.0.0.1:9").map(|_| ());
    let connected = connected.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()));
    println!("connect {}", of(connected));
    println!("open /etc/passwd {}", errno(File::open("/etc/passwd")));
    println!("create /x {}", errno(File::create("/x")));
    println!("setuid 0 {}", of(nix::unistd::setuid(0.into())));
    println!("chroot {}", of(nix::unistd::chroot("/")));
    println!("parent's death {:?}", nix::sys::prctl::get_pdeathsig()?);
    println!("dumpable {}", nix::sys::prctl::get_dumpable()?);
    Ok(())
}

fn under(
    program: Program,
    filter: impl Fn() -> Result<Filter, FilterError>,
    what: &[&str],
) -> Result<(), Box<dyn Error>> {
    denied::report(program)?;
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    match what {
        ["call", numbers @ ..] => {
            let mut call = [0; 7];
            for (to, from) in call.iter_mut().zip(numbers) {
                *to = if *from == "pid" { std::process::id().into() } else { from.parse()? };
            }
            let [number, a, b, c, d, e, f] = call;
            filter()?.close()?;
            // SAFETY: none, for any call and any arguments: this is what a process that was taken over does.
            unsafe { libc::syscall(number, a, b, c, d, e, f) };
            Ok(())
        }
        ["panic"] => {
            filter()?.close()?;
            panic!("as asked")
        }
        ["live"] => {
            let theirs = filter()?;
            let name = "a-thread".to_owned();
            let thread = std::thread::Builder::new().name(name).spawn(move || live(&theirs))?;
            thread.join().map_err(|_| "the thread panicked")??;
            live(&filter()?).map_err(Into::into)
        }
        _ => Err("see the head of its source".into()),
    }
}

/// What threads do without thinking.
fn live(filter: &Filter) -> Result<(), String> {
    filter.close().map_err(|error| error.to_string())?;
    let mut blocks = Vec::new();
    for size in [1, 1000, 100_000, 10_000_000] {
        let mut block = vec![1_u8; size];
        block.resize(size * 3, 2);
        block.shrink_to_fit();
        blocks.push(block);
    }
    let table: std::collections::HashMap<usize, usize> = (0..1000).map(|n| (n, n)).collect();
    drop(blocks);
    std::thread::yield_now();
    eprintln!("lived, {} entries", table.len());
    Ok(())
}
