//! docker runs its containers in Hull: `docker run --runtime hull`, and all that a person does with them.

use std::io::{Read, Write};
use std::net::TcpStream;

use hull_tests::docker::{Docker, IMAGE};
use hull_tests::eventually;

use super::devices::{Loop, USE, WRITE};

/// `docker run` of a container without a network.
const RUN: [&str; 3] = ["run", "--network", "none"];

fn run<'a>(options: &[&'a str], words: &[&'a str]) -> Vec<&'a str> {
    [&RUN, options, &[IMAGE], words].concat()
}

#[test]
fn run_gives_output_and_exit_code() {
    let docker = Docker::start();
    let said = docker.run(run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]));
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (7, "out\n", "err\n"));
    let release = docker.ok(run(&["--rm"], &["uname", "-r"]));
    assert!(release.ends_with("-hull"), "{release:?} is the guest's kernel");
    let said = docker.run(run(&["--rm"], &["no-such-program"]));
    assert_eq!(said.code, 127, "{said:?}");
    assert!(said.err.contains("executable file not found in $PATH"), "{said:?}");
    let users = docker.ok(run(
        &["--rm", "-u", "1000:29", "-w", "/tmp", "-e", "A=b c"],
        &["sh", "-c", "id -u; id -g; pwd; echo $A"],
    ));
    assert_eq!(users, "1000\n29\n/tmp\nb c");
    docker.left_nothing();
}

#[test]
fn a_container_lives_is_looked_at_and_comes_again() {
    let docker = Docker::start();
    let script = "echo begun; trap 'echo ended; exit 3' TERM; while :; do sleep 1; done";
    docker.ok(run(&["-d", "--name", "web", "--memory", "64m"], &["sh", "-c", script]));
    eventually("its output is in the log", || (docker.ok(["logs", "web"]) == "begun").then_some(()));
    let said = docker.run(["exec", "-e", "X=1", "web", "sh", "-c", "echo $X; echo kept >/kept; exit 5"]);
    assert_eq!((said.code, said.out.as_str()), (5, "1\n"));
    assert!(docker.ok(["top", "web"]).contains("hull-vmm"), "docker top shows the processes on the host");
    let web = docker.inspect("web");
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", web["State"]["Pid"])).unwrap();
    assert_eq!(cgroup, format!("0::/docker/{}\n", web["Id"].as_str().unwrap()));
    let stats = docker.ok(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "web"]);
    assert!(stats.contains("64MiB") && !stats.starts_with("0B"), "{stats}");

    docker.ok(["update", "--memory", "48m", "--memory-swap", "48m", "web"]);
    assert_eq!(docker.ok(["exec", "web", "cat", "/sys/fs/cgroup/memory.max"]), (48 << 20).to_string());
    docker.ok(["pause", "web"]);
    assert_eq!(docker.inspect("web")["State"]["Status"], "paused");
    docker.ok(["unpause", "web"]);

    docker.ok(["stop", "web"]);
    let state = docker.inspect("web")["State"].clone();
    assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &3.into()), "{state}");
    assert_eq!(docker.ok(["logs", "web"]), "begun\nended");
    docker.ok(["start", "web"]);
    assert_eq!(docker.ok(["exec", "web", "cat", "/kept"]), "kept");
    docker.ok(["restart", "--time", "0", "web"]);
    docker.becomes("web", "running");
    docker.ok(["kill", "web"]);
    docker.becomes("web", "exited");
    assert_eq!(docker.inspect("web")["State"]["ExitCode"], 137);
    docker.ok(["rm", "web"]);
    docker.left_nothing();
}

#[test]
fn files_go_in_and_out() {
    let docker = Docker::start();
    std::fs::create_dir(docker.file("shared")).unwrap();
    std::fs::write(docker.file("shared/from-host"), "host\n").unwrap();
    let shared = docker.file("shared").display().to_string();
    docker.ok(["volume", "create", "store"]);
    let (writable, read_only) = (format!("{shared}:/rw"), format!("{shared}:/ro:ro"));
    let options = [
        "-d",
        "--name",
        "files",
        "-v",
        &writable,
        "-v",
        &read_only,
        "-v",
        "store:/store",
        "--tmpfs",
        "/scratch",
    ];
    docker.ok(run(&options, &["sleep", "1000"]));
    let exec = |script: &str| docker.run(["exec", "files", "sh", "-c", script]);
    assert_eq!(exec("cat /rw/from-host /ro/from-host").out, "host\nhost\n");
    assert_eq!(exec("echo guest >/rw/from-guest && echo x >/store/x && echo y >/scratch/y").code, 0);
    assert_eq!(std::fs::read_to_string(docker.file("shared/from-guest")).unwrap(), "guest\n");
    assert_ne!(exec("echo no >/ro/no").code, 0);
    assert_eq!(exec("stat -f -c %T /scratch").out, "tmpfs\n");

    std::fs::write(docker.file("in"), "in\n").unwrap();
    let input = docker.file("in").display().to_string();
    docker.ok(["create", "--runtime", "runc", "--network", "none", "--name", "runcs", IMAGE]);
    // docker 28 cannot before Linux 6.6, whatever the runtime.
    if docker.run(["cp", &input, "runcs:/tmp/in"]).code == 0 {
        docker.ok(["cp", &input, "files:/tmp/in"]);
        assert_eq!(exec("cat /tmp/in").out, "in\n");
    }
    docker.ok(["rm", "runcs"]);
    assert_eq!(exec("echo out >/tmp/out").code, 0);
    docker.ok(["cp", "files:/tmp/out", &docker.file("out").display().to_string()]);
    assert_eq!(std::fs::read_to_string(docker.file("out")).unwrap(), "out\n");
    docker.ok(["rm", "-f", "files"]);
    assert_eq!(docker.ok(run(&["--rm", "-v", "store:/store"], &["cat", "/store/x"])), "x");
    docker.ok(["volume", "rm", "store"]);
    docker.left_nothing();
}

#[test]
fn health_is_watched_and_failures_are_restarted() {
    let docker = Docker::start();
    let health = ["--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "1"];
    docker.ok(run(&[&["-d", "--name", "ill"], &health[..]].concat(), &["sleep", "1000"]));
    let becomes = |wanted: &str| {
        eventually(wanted, || (docker.inspect("ill")["State"]["Health"]["Status"] == wanted).then_some(()));
    };
    becomes("unhealthy");
    docker.ok(["exec", "ill", "touch", "/well"]);
    becomes("healthy");
    docker.ok(["rm", "-f", "ill"]);

    docker.ok(run(&["-d", "--name", "again", "--restart", "on-failure:1"], &["sh", "-c", "echo x; exit 9"]));
    eventually("it was restarted once", || {
        let container = docker.inspect("again");
        (container["RestartCount"] == 1 && container["State"]["Status"] == "exited").then_some(())
    });
    assert_eq!(docker.ok(["logs", "again"]), "x\nx");
    assert_eq!(docker.inspect("again")["State"]["ExitCode"], 9);
    docker.ok(["rm", "again"]);
    docker.left_nothing();
}

/// What a web server answers.
fn fetched(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[test]
fn a_port_is_published_and_containers_reach_one_another() {
    let docker = Docker::start();
    let serve = "mkdir /www && echo hello >/www/index.html && exec httpd -f -p 80 -h /www";
    docker.ok(["run", "-d", "--name", "web", "-p", "127.0.0.1:18080:80", IMAGE, "sh", "-c", serve]);
    eventually("the published port answers", || (fetched("127.0.0.1:18080")? == "hello\n").then_some(()));
    let address = docker.inspect("web")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        .as_str()
        .unwrap()
        .to_owned();
    let url = format!("http://{address}/");
    assert_eq!(docker.ok(["run", "--rm", IMAGE, "wget", "-qO-", &url]), "hello");
    let own = docker.ok(["exec", "web", "ip", "-4", "-o", "addr", "show", "eth0"]);
    assert!(own.contains(&address), "{own}");
    docker.ok(["rm", "-f", "web"]);
    docker.left_nothing();
}

#[test]
fn a_block_device_of_the_host_is_a_disk() {
    let (disk, docker) = (Loop::new(), Docker::start());
    let given = format!("{}:/dev/given", disk.path());
    let said = docker.ok(run(&["--rm", "--device", &given], &["sh", "-c", USE, "/dev/given"]));
    assert!(said.starts_with("from the host\n8389120\nblock special file"), "{said}");
    assert_eq!(disk.reads(8_388_608, 14), "from the guest");
    // With fewer rights it cannot be written to, whatever the guest does.
    let only_read = format!("{given}:r");
    let said = docker.ok(run(&["--rm", "--device", &only_read], &["sh", "-c", WRITE, "/dev/given"]));
    assert_eq!(said, "from the host\nrefused");
    assert_eq!(disk.reads(0, 13), "from the host");
    let said = docker.ok(run(&["--rm"], &["sh", "-c", "ls /dev/given /sys/block 2>&1 | grep -c vd; true"]));
    assert_eq!(said, "0", "nobody asked for it");
    docker.left_nothing();
}

#[test]
fn three_services_of_a_network_know_one_another_by_name() {
    let docker = Docker::start();
    docker.ok(["network", "create", "stack"]);
    // The image's wget is a static program, which can ask no name server; its nslookup can.
    let find = |name: &str| {
        format!("nslookup -type=a {name} | awk '/^Name/ {{ f = 1 }} f && /^Address/ {{ print $2 }}'")
    };
    // Each has a page of its own, and behind it that of the service it asks by name.
    let service = |name: &str, asks: &str, options: &[&str]| {
        let ask = if asks.is_empty() {
            "true".to_owned()
        } else {
            format!("wget -qO /www/other \"http://$({})/\"", find(asks))
        };
        let script = format!(
            "mkdir /www; until {ask}; do sleep 1; done; {{ echo {name}; cat /www/other; }} >/www/index.html 2>/dev/null
             exec httpd -f -p 80 -h /www"
        );
        let words = ["-d", "--network", "stack", "--name", name];
        docker.ok([&["run"], &words[..], options, &[IMAGE, "sh", "-c", &script]].concat());
    };
    service("web", "app", &["-p", "127.0.0.1:18081:80"]);
    service("app", "store", &[]);
    // The last that is started is the first to serve; it is asked by a second name.
    service("db", "", &["--network-alias", "store"]);
    eventually("all three have answered", || (fetched("127.0.0.1:18081")? == "web\napp\ndb\n").then_some(()));
    let said = docker.ok(["exec", "app", "nslookup", "-type=a", "db"]);
    let address = docker.inspect("db")["NetworkSettings"]["Networks"]["stack"]["IPAddress"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(said.contains("127.0.0.11") && said.contains(&address), "{said}");
    // Over a connection too (RFC 1035 §4.2.2), as programs do whose answer was too long: the address ends the answer.
    let question = r"\0\24\22\64\1\0\0\1\0\0\0\0\0\0\2db\0\0\1\0\1";
    let ask = format!("printf '{question}' | nc 127.0.0.11 53 | tail -c 4 | od -An -tu1");
    let said = docker.ok(["exec", "app", "sh", "-c", &ask]);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>().join("."), address);
    // A service that comes again has another address, perhaps, and the same name.
    docker.ok(["restart", "-t", "0", "db"]);
    let again = format!("wget -qO- \"http://$({})/\"", find("db"));
    eventually("it is found again", || {
        (docker.run(["exec", "app", "sh", "-c", &again]).out == "db\n").then_some(())
    });
    docker.ok(["rm", "-f", "web", "app", "db"]);
    docker.ok(["network", "rm", "stack"]);
    docker.left_nothing();
}
