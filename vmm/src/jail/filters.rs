//! The allow-lists of system calls: one file for each concern, put together for each role that a thread can have.
//!
//! A call that is not on a thread's list kills the process (see [`denied`](super::denied)). Every entry says which code needs it.
//! Entries for one call are alternatives. To give new code what it needs, add a file with its list and name it in
//! [`Role::lists`]; leave it out of the roles that can do without.

mod broker;
mod device;
mod disk;
mod event_loop;
mod every_thread;
mod files;
mod hotplug;
mod never;
mod tap;
mod uring;
mod vcpu;
mod vhost;

pub use never::NEVER;

/// What a thread does, or the file broker, which has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The main thread from the start of the vCPUs on: the event loop and the VM's end.
    EventLoop,
    /// Runs a vCPU. The guest's accesses to registers run device code on it.
    Vcpu,
    /// Serves a shared directory: moves data between files that the broker has opened and the guest.
    Files,
    /// The file broker, a process of its own.
    Broker,
}

impl Role {
    /// Those of the monitor's threads.
    pub const OF_THE_MONITOR: [Self; 3] = [Self::EventLoop, Self::Vcpu, Self::Files];
    /// All there are.
    pub const ALL: [Self; 4] = [Self::EventLoop, Self::Vcpu, Self::Files, Self::Broker];

    /// What the role may do.
    pub fn rules(self) -> impl Iterator<Item = &'static Rule> {
        self.lists().iter().copied().flatten()
    }

    fn lists(self) -> &'static [&'static [Rule]] {
        match self {
            Self::EventLoop => &[
                every_thread::RULES,
                device::RULES,
                disk::RULES,
                event_loop::RULES,
                hotplug::RULES,
                tap::RULES,
                uring::RULES,
                vhost::PREPARE,
                vhost::STOP,
            ],
            Self::Vcpu => &[
                every_thread::RULES,
                device::RULES,
                tap::RULES,
                uring::RULES,
                vcpu::RULES,
                vhost::START,
                vhost::STOP,
            ],
            Self::Files => &[every_thread::RULES, files::RULES],
            Self::Broker => &[every_thread::RULES, broker::RULES],
        }
    }
}

/// One system call that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub call: libc::c_long,
    /// What its arguments must be, all of it.
    pub when: &'static [Argument],
    /// Which code needs it.
    pub why: &'static str,
}

/// A condition on the lower 32 bits of an argument: everything that is compared here is an `int` or a set of flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Which argument, from 0.
    pub index: u8,
    /// What it must be.
    pub test: Test,
}

/// What an argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// This value.
    Is(u32),
    /// A set without any of these bits.
    Lacks(u32),
    /// A set with all of these bits.
    Has(u32),
    /// The process's own id.
    IsThisProcess,
}

/// Allows a call whatever its arguments are.
const fn always(call: libc::c_long, why: &'static str) -> Rule {
    Rule { call, when: &[], why }
}

/// Allows a call with certain arguments.
const fn when(call: libc::c_long, when: &'static [Argument], why: &'static str) -> Rule {
    Rule { call, when, why }
}

const fn is(index: u8, value: i32) -> Argument {
    Argument { index, test: Test::Is(value.cast_unsigned()) }
}

const fn has(index: u8, bits: i32) -> Argument {
    Argument { index, test: Test::Has(bits.cast_unsigned()) }
}

const fn lacks(index: u8, bits: i32) -> Argument {
    Argument { index, test: Test::Lacks(bits.cast_unsigned()) }
}

const fn is_this_process(index: u8) -> Argument {
    Argument { index, test: Test::IsThisProcess }
}

/// The request of an `ioctl`.
const fn request(number: u32) -> Argument {
    Argument { index: 1, test: Test::Is(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_entry_is_said_twice_or_void() {
        for role in Role::ALL {
            let rules: Vec<_> = role.rules().collect();
            for (index, rule) in rules.iter().enumerate() {
                assert!(!rule.why.is_empty());
                for other in &rules[..index] {
                    let same_call = rule.call == other.call;
                    // An entry without conditions leaves others of the call without meaning.
                    let void = rule.when.is_empty() || other.when.is_empty() || rule.when == other.when;
                    assert!(!(same_call && void), "{role:?}: {rule:?} and {other:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_that_opens_executes_or_escapes_is_allowed() {
        // Nor is what a thread needs to get others, handlers, filters or rings, once it has its role.
        let settled = [
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_userfaultfd,
            libc::SYS_memfd_create,
            libc::SYS_rt_sigaction,
            libc::SYS_seccomp,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
        ];
        for role in Role::OF_THE_MONITOR {
            assert_eq!(
                role.rules().find(|rule| NEVER.contains(&rule.call) || settled.contains(&rule.call)),
                None,
                "{role:?}"
            );
        }
        // The broker names files, relative to descriptors, and does no more of all this.
        let names = [
            libc::SYS_openat2,
            libc::SYS_openat,
            libc::SYS_mknodat,
            libc::SYS_symlinkat,
            libc::SYS_linkat,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_renameat,
        ];
        let broker = Role::Broker.rules().map(|rule| rule.call);
        let denied_elsewhere = broker.filter(|call| NEVER.contains(call) || settled.contains(call));
        assert_eq!(denied_elsewhere.collect::<Vec<_>>(), names);
    }

    #[test]
    fn nothing_but_what_an_interface_needs_is_asked_of_vhost() {
        // VHOST_RESET_OWNER, SET_LOG_BASE, SET_LOG_FD, NEW_WORKER, FREE_WORKER, ATTACH_VRING_WORKER, SET_VRING_ENDIAN.
        let others = [0xaf02, 0x4008_af04, 0x4004_af07, 0x8004_af08, 0x4004_af09, 0x4008_af15, 0x4008_af13]
            .map(Test::Is);
        for role in Role::ALL {
            let of_vhost = |rule: &&Rule| {
                rule.when.iter().any(|argument| {
                    argument.index == 1
                        && matches!(argument.test, Test::Is(number) if number >> 8 & 0xff == 0xaf)
                })
            };
            let count = role.rules().filter(|rule| rule.call == libc::SYS_ioctl).filter(of_vhost).count();
            let expected = match role {
                Role::EventLoop => 4,
                Role::Vcpu => 8,
                Role::Files | Role::Broker => 0,
            };
            assert_eq!(count, expected, "{role:?}");
            for rule in role.rules().filter(|rule| rule.call == libc::SYS_ioctl) {
                assert!(!rule.when.iter().any(|argument| others.contains(&argument.test)), "{rule:?}");
            }
        }
    }

    #[test]
    fn what_can_do_harm_has_conditions() {
        let conditional = [
            libc::SYS_ioctl,
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_prctl,
            libc::SYS_fcntl,
            libc::SYS_tgkill,
            libc::SYS_socketpair,
            libc::SYS_madvise,
            libc::SYS_mremap,
        ];
        for rule in Role::ALL.iter().flat_map(|role| role.rules()) {
            assert!(!conditional.contains(&rule.call) || !rule.when.is_empty(), "{rule:?}");
        }
    }
}
