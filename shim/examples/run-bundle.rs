//! `run-bundle IMAGE.erofs PROGRAM [ARG...]`: runs one container from an EROFS image as a client of the shim would,
//! its output on our own, and exits with its status. `HULL_SHIM`, `HULL_VMM` and the like say what is used.

#![allow(clippy::unwrap_used, reason = "a development tool: it may end with a backtrace")]

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use hull_shim::client::messages::CreateTaskRequest;
use hull_shim::client::{Process, Shim, TaskClient};
use serde_json::json;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let image = args.next().unwrap();
    let program: Vec<String> = args.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(run(&image, &program));
    ExitCode::from(u8::try_from(status).unwrap())
}

async fn run(image: &str, program: &[String]) -> u32 {
    let bundle = tempfile::tempdir().unwrap();
    let config = json!({
        "ociVersion": "1.0.2",
        "hostname": "example",
        "root": {"path": "rootfs"},
        "process": {
            "args": program, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin:/usr/bin"],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}, {"type": "network"}]},
    });
    std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let shim = Shim {
        binary: Shim::find().unwrap(),
        namespace: "example".into(),
        id: "example".into(),
        bundle: bundle.path().to_owned(),
        callback_address: String::new(),
    };
    let mut request = CreateTaskRequest::new();
    request.id = "example".into();
    request.bundle = bundle.path().display().to_string();
    let mut rootfs = containerd_shim_protos::types::mount::Mount::new();
    rootfs.type_ = "erofs".into();
    rootfs.source = image.into();
    request.rootfs = vec![rootfs];
    let mut copies = Vec::new();
    for (name, address) in [("stdout", &mut request.stdout), ("stderr", &mut request.stderr)] {
        let path = bundle.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        *address = path.display().to_string();
        copies.push(std::thread::spawn(move || {
            let mut fifo = std::fs::File::open(path).unwrap();
            if name == "stdout" {
                io::copy(&mut fifo, &mut io::stdout())
            } else {
                io::copy(&mut fifo, &mut io::stderr())
            }
        }));
    }

    let init = Process::init("example");
    let started = Instant::now();
    let client = TaskClient::connect(&shim.start().unwrap()).await.unwrap();
    let mut status = 125;
    match client.create(&request).await {
        Err(error) => eprintln!("create: {error}"),
        Ok(pid) => {
            eprintln!("created as {pid} after {:?}", started.elapsed());
            match client.start(init).await {
                Err(error) => eprintln!("start: {error}"),
                Ok(_) => {
                    status = client.wait(init).await.unwrap().exit_status;
                    copies.into_iter().for_each(|copy| assert!(copy.join().unwrap().is_ok()));
                }
            }
            client.delete(init).await.unwrap();
        }
    }
    client.shutdown("example").await.unwrap();
    eprintln!("{}", std::fs::read_to_string(bundle.path().join("shim.log")).unwrap());
    status
}
