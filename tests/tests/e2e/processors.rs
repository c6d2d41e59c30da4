//! The processor that a guest sees is as an administrator has chosen. The host's must have all that such a one has.

use hull_tests::hull::{Hull, finished, image, said};

use crate::configured::choose;

#[test]
fn a_guest_sees_what_its_template_has_and_no_more() {
    let hull = Hull::new();
    let config = choose("[vm]\ncpu = \"v2\"\n[disk]\nmib_per_second = 64\noperations_per_second = 2000\n");
    let script = "grep -o -w -E 'cx16|sse4_2|avx|avx2' /proc/cpuinfo | sort -u";
    let mut run = hull.command(["run", "--rm", &image("busybox"), "sh", "-c", script]);
    let run = said(&finished(run.env("HULL_CONFIG", config.path())));
    assert_eq!((run.code, run.out.as_str()), (0, "cx16\nsse4_2\n"), "{run:?}");
    hull.left_nothing();
}
