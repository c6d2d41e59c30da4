//! Seccomp filters, as the processes of a container meet them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use guest::{Guest, Output, refusal, spec, with_guest};
use serde_json::{Value, json};
use ttrpc::Code;

/// What unshare(1) and mount(8) need is refused; the rest is as it was.
fn profile() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["unshare", "mount", "keyctl"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS",
             "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}]
    })
}

const SCRIPT: &str = "
    grep ^Seccomp: /proc/self/status | tr -d '\\t'; grep ^NoNewPrivs /proc/self/status | tr -d '\\t'
    grep ^CapEff /proc/self/status | tr -d '\\t'
    unshare -m true 2>&1; mount -t tmpfs t /tmp 2>&1; hostname other 2>&1
    sh -c 'kill -12 $$'; echo $?; sh -c 'kill -10 $$'; echo $?";

/// An otherwise all-powerful container.
fn powerful(args: &[&str]) -> Value {
    let mut spec = spec(args);
    let all = ["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_KILL"];
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    spec
}

fn refused(no_new_privileges: u8, capabilities: u64) -> String {
    // 12 is SIGUSR2, which the profile lets through; 31 is SIGSYS.
    format!(
        "Seccomp:2\nNoNewPrivs:{no_new_privileges}\nCapEff:{capabilities:016x}\n\
         unshare: unshare(0x20000): Operation not permitted\nmount: permission denied (are you root?)\n\
         hostname: sethostname: No space left on device\n140\n159\n"
    )
}

const POWERFUL: u64 = 1 << 21 | 1 << 5 | 1;

#[test]
fn refused_calls_fail_as_the_profile_says() {
    with_guest(|guest| async {
        let mut filtered = powerful(&["sh", "-c", SCRIPT]);
        let free = guest.run(&filtered).await;
        assert_eq!(
            free.stdout,
            format!("Seccomp:0\nNoNewPrivs:0\nCapEff:{POWERFUL:016x}\n140\n138\n"),
            "{}",
            free.stderr
        );
        filtered["linux"]["seccomp"] = profile();
        assert_eq!(guest.run(&filtered).await.stdout, refused(0, POWERFUL));
        filtered["process"]["noNewPrivileges"] = json!(true);
        assert_eq!(guest.run(&filtered).await.stdout, refused(1, POWERFUL));
        guest
    });
}

#[test]
fn a_process_without_privileges_is_filtered_too_and_gains_none_by_it() {
    with_guest(|guest| async {
        for (no_new_privileges, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
            let script = "grep -E '^(Seccomp:|NoNewPrivs|Cap)' /proc/self/status | tr -d '\\t'";
            let mut plain = spec(&["sh", "-c", script]);
            plain["process"]["noNewPrivileges"] = json!(no_new_privileges);
            plain["process"]["user"] = json!({"uid": uid, "gid": uid});
            let kill = ["CAP_KILL"];
            plain["process"]["capabilities"] = json!({
                "bounding": kill, "effective": kill, "permitted": kill, "inheritable": kill, "ambient": kill});
            plain["linux"]["seccomp"] = profile();
            let kill = format!("{:016x}", 1 << 5);
            let expected = format!(
                "CapInh:{kill}\nCapPrm:{kill}\nCapEff:{kill}\nCapBnd:{kill}\nCapAmb:{kill}\nNoNewPrivs:{}\nSeccomp:2\n",
                u8::from(no_new_privileges)
            );
            let Output { stdout, stderr, .. } = guest.run(&plain).await;
            assert_eq!((stdout, stderr), (expected, String::new()), "{no_new_privileges} {uid}");
        }
        guest
    });
}

/// libcontainer 0.7 forgets the filter here.
#[test]
fn an_exec_is_filtered_as_its_container() {
    with_guest(|guest| async {
        let mut filtered = powerful(&["sleep", "1000"]);
        filtered["linux"]["seccomp"] = profile();
        guest.create("c", &filtered, [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut process = powerful(&["sh", "-c", SCRIPT])["process"].take();
        assert_eq!(guest.exec("c", "e", &process).await.stdout, refused(0, POWERFUL));
        process["capabilities"] = json!({"bounding": [], "effective": [], "permitted": []});
        assert_eq!(guest.exec("c", "e", &process).await.stdout, refused(0, 0));
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn the_set_up_itself_needs_no_allowance() {
    with_guest(|guest| async {
        // busybox true, and what its C library does at start.
        let names = [
            "execve",
            "exit_group",
            "brk",
            "arch_prctl",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "prlimit64",
            "readlink",
            "readlinkat",
            "getrandom",
            "mprotect",
            "mmap",
            "prctl",
            "getuid",
            "uname",
            "fstat",
            "newfstatat",
        ];
        let mut strict = spec(&["true"]);
        strict["process"]["noNewPrivileges"] = json!(true);
        strict["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]});
        let output = guest.run(&strict).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        guest
    });
}

#[test]
fn a_profile_without_a_filter_and_a_filter_that_is_none_are_refused() {
    with_guest(|guest: Guest| async {
        let before = guest.footprint();
        let mut filtered = spec(&["true"]);
        filtered["linux"]["seccomp"] = profile();
        let mut request = guest.create_request("c", &filtered, [false; 3], Some(1 << 20));
        request.seccomp = None.into();
        let (code, message) = refusal(guest.client.create_container(guest::context(), &request).await);
        assert_eq!(code, Code::UNIMPLEMENTED);
        assert!(message.contains("linux.seccomp"), "{message}");
        for (program, flags, code) in [
            (vec![0; 7], 0, Code::INVALID_ARGUMENT),
            (vec![0; 4097 * 8], 0, Code::INVALID_ARGUMENT),
            (vec![6, 0, 0, 0, 0, 0, 0, 0], 8, Code::UNIMPLEMENTED),
        ] {
            request.seccomp = Some(hull_protocol::agent::api::agent::SeccompFilter {
                program,
                flags,
                ..Default::default()
            })
            .into();
            let result = guest.client.create_container(guest::context(), &request).await;
            assert_eq!(refusal(result).0, code);
        }
        assert_eq!(guest.footprint(), before);
        // The kernel refuses a program without an end, just before the exec.
        let seccomp = request.seccomp.as_mut().unwrap();
        (seccomp.program, seccomp.flags) = (vec![0x20, 0, 0, 0, 0, 0, 0, 0], 0);
        guest.client.create_container(guest::context(), &request).await.unwrap();
        let (_, message) = refusal(guest.start_process("c", "").await);
        assert_eq!(message, "cannot install the seccomp filter: invalid argument");
        guest.delete("c").await.unwrap();
        guest
    });
}
