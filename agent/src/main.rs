//! `hull-agent`: /init of the guest; with `serve` the same agent outside a VM; with runc's words an OCI runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use hull_agent::logger::{self, Destination};
use hull_agent::{init, oci, outside};

const USAGE: &str =
    "hull-agent is PID 1 of a Hull guest. Outside of one: hull-agent serve DIRECTORY DISKS CGROUP,
or a runtime of OCI bundles: hull-agent --help";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, directory, disks, cgroup] = arguments.as_slice()
        && command == "serve"
    {
        return serve(outside::Options {
            directory: PathBuf::from(directory),
            disks: PathBuf::from(disks),
            cgroup: cgroup.clone(),
        });
    }
    if std::process::id() == 1 {
        init::main();
    }
    if arguments.first().is_some_and(|word| oci::is_command(word)) {
        return oci::main(arguments);
    }
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn serve(options: outside::Options) -> ExitCode {
    logger::start(Destination::Stderr);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(outside::run(options))) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hull-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
