//! The agent as a container runtime, beside crun and runc on the same kernel: the section of docs/benchmarks.md.
//!
//! One container of `true` from creation to deletion, and one exec, each with docker's default seccomp profile. Times say little where the
//! host is emulated: read the ratios and the numbers of system calls.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hull_tests::oci::{Bundle, Runtime, default_config, default_seccomp};
use serde_json::{Value, json};

mod served;
mod steps;

use served::Served;

/// Counted rounds of each kind, after two that are not counted.
const ROUNDS: usize = 9;
/// Rounds whose system calls are counted.
const TRACED: usize = 4;

/// What one way to run a container costs.
struct Cost {
    name: &'static str,
    container: (Duration, u64),
    exec: (Duration, u64),
}

fn main() {
    // The last part alone.
    if std::env::args().nth(1).as_deref() == Some("steps") {
        return print_steps();
    }
    let costs = [
        by_api(),
        by_command("hull-agent run, exec", &Runtime::hull()),
        by_command("crun run, exec", &Runtime::crun()),
        by_command("runc run, exec", &Runtime::runc()),
    ];
    println!(
        "| `true` with docker's seccomp profile | container | beside crun | beside runc | system calls | beside crun | beside runc |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    print(&costs, |cost| cost.container);
    println!(
        "\n| exec of `true` | time | beside crun | beside runc | system calls | beside crun | beside runc |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    print(&costs, |cost| cost.exec);
    println!();
    print_steps();
    let agent = Runtime::hull();
    println!("\n| of the agent | |\n|---|---:|");
    println!("| binary | {} bytes |", std::fs::metadata(agent.program()).unwrap().len());
    println!("| resident memory, idle | {} KiB |", Served::start(&[]).resident_kib());
}

fn print_steps() {
    println!(
        "| step, to the first instruction of `true` | system calls | time | share |\n|---|---:|---:|---:|"
    );
    let steps = steps::measure();
    let whole: Duration = steps.iter().map(|step| step.time).sum();
    for step in &steps {
        let share = step.time.as_secs_f64() / whole.as_secs_f64() * 100.0;
        println!("| {} | {} | {:.2} ms | {share:.0} % |", step.name, step.calls, milliseconds(step.time));
    }
    let calls: usize = steps.iter().map(|step| step.calls).sum();
    println!("| **all together** | {calls} | {:.2} ms | |", milliseconds(whole));
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn print(costs: &[Cost], of: impl Fn(&Cost) -> (Duration, u64)) {
    let find = |name: &str| costs.iter().find(|cost| cost.name.starts_with(name)).map(&of).unwrap();
    let (crun, runc) = (find("crun"), find("runc"));
    for cost in costs {
        let (time, calls) = of(cost);
        let times = |peer: Duration| format!("{:.2}", time.as_secs_f64() / peer.as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "thousands")]
        let counts = |peer: u64| format!("{:.2}", calls as f64 / peer as f64);
        println!(
            "| {} | {:.1} ms | {} | {} | {calls} | {} | {} |",
            cost.name,
            milliseconds(time),
            times(crun.0),
            times(runc.0),
            counts(crun.1),
            counts(runc.1)
        );
    }
}

/// A container of one program.
pub fn config(args: &[&str]) -> Value {
    let mut config = default_config();
    config["process"]["args"] = json!(args);
    config["linux"]["seccomp"] = default_seccomp();
    config
}

/// A bundle with busybox in it, as `true` and as `sleep`.
pub fn bundle(args: &[&str]) -> Bundle {
    let bundle = Bundle::empty();
    for name in ["true", "sleep"] {
        std::fs::copy("/bin/busybox", bundle.root().join(name)).unwrap();
    }
    bundle.write(&config(args));
    bundle
}

fn by_command(name: &'static str, runtime: &Runtime) -> Cost {
    let short = bundle(&["/true"]);
    let path = short.path().to_string_lossy().into_owned();
    let run = ["run", "--bundle", &path, "bench"];
    let long = bundle(&["/sleep", "1000"]);
    let container = (median(|| timed(&mut runtime.command(run))), traced(&mut runtime.command(run)));
    assert_eq!(runtime.create("bench", &long).code, 0);
    runtime.ok(["start", "bench"]);
    let exec = ["exec", "bench", "/true"];
    let exec = (median(|| timed(&mut runtime.command(exec))), traced(&mut runtime.command(exec)));
    runtime.ok(["delete", "--force", "bench"]);
    Cost { name, container, exec }
}

fn by_api() -> Cost {
    let mut served = Served::start(&[]);
    let container = median(|| served.timed_container());
    let exec = served.with_container(|served| median(|| served.timed_exec()));
    drop(served);
    let per_round = |few: u64, many: u64| (many - few) / TRACED as u64;
    let rounds = |count: usize, exec: bool| {
        served::traced(|served| {
            if exec {
                served.with_container(|served| (0..count).map(|_| served.timed_exec()).max());
            } else {
                (0..count).for_each(|_| assert!(served.timed_container() > Duration::ZERO));
            }
        })
    };
    let calls = |exec: bool| per_round(rounds(2, exec), rounds(2 + TRACED, exec));
    Cost {
        name: "the agent, asked by its API",
        container: (container, calls(false)),
        exec: (exec, calls(true)),
    }
}

fn median(mut run: impl FnMut() -> Duration) -> Duration {
    for _ in 0..2 {
        run();
    }
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| run()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn timed(command: &mut Command) -> Duration {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}");
    start.elapsed()
}

/// How many system calls a command makes, with all that it starts.
fn traced(command: &mut Command) -> u64 {
    let folder = tempfile::TempDir::new().unwrap();
    let log = folder.path().join("strace");
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-c", "-U", "calls,name", "-o"])
        .arg(&log)
        .arg(command.get_program())
        .args(command.get_args());
    timed(&mut strace);
    total(&log)
}

/// The number of calls in the closing line of strace's summary, whose columns are calls and name.
pub fn total(log: &Path) -> u64 {
    let text = std::fs::read_to_string(log).unwrap();
    let line = text.lines().rfind(|line| line.ends_with("total")).expect("strace's sum");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
