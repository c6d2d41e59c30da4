//! The life of containers and their processes, on a real kernel.

mod guest;

use guest::{refusal, spec, with_guest};
use ttrpc::Code;

#[test]
fn a_program_runs_and_its_output_and_exit_code_come_back() {
    with_guest(|guest| async {
        let output = guest.shell("echo out; echo err >&2; exit 7").await;
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
        assert_eq!(guest.run(&spec(&["true"])).await.code, 0);
        guest
    });
}

#[test]
fn a_killed_program_reports_its_signal() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        guest.signal("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(guest.wait("c", "").await.unwrap().code, 137);
        assert_eq!(refusal(guest.signal("c", "", libc::SIGTERM, false).await).0, Code::NOT_FOUND);
        guest.delete("c").await.unwrap();
        assert_eq!(refusal(guest.wait("c", "").await).0, Code::NOT_FOUND);
        guest
    });
}

#[test]
fn a_program_that_cannot_run_is_refused_in_the_words_of_runc() {
    with_guest(|guest| async {
        std::fs::write(guest.disk().join("plain"), "no program").unwrap();
        for (program, message) in [
            ("nonsense", r#"exec: "nonsense": executable file not found in $PATH"#),
            ("/no/such", r#"exec: "/no/such": stat /no/such: no such file or directory"#),
            ("/plain", r#"exec: "/plain": permission denied"#),
            ("/etc", r#"exec: "/etc": is a directory"#),
        ] {
            let before = guest.footprint();
            let refused = refusal(guest.create("c", &spec(&[program]), [true; 3]).await);
            assert_eq!(refused, (Code::INVALID_ARGUMENT, message.to_owned()));
            assert_eq!(guest.footprint(), before);
        }
        guest
    });
}
