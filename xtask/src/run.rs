//! `make run`: a container from a registry in a microVM, on this machine or, where its KVM cannot, in the test host.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::build;
use crate::packages::{self, List};
use crate::shell::{Error, output, root, say, status};

/// The words of the container when none are given.
const GREETING: &str = "echo \"hello from $(uname -sr), pid $$ of its own virtual machine\"";

/// Whether the KVM of this machine runs Linux guests, as `hull check` finds.
pub fn kvm_is_usable() -> Result<bool, Error> {
    let check = output(
        Command::new("sh")
            .arg("-c")
            .arg("\"$0\" check >&2; echo $?")
            .arg(build::target().join("release/hull")),
    )?;
    Ok(check.trim() == "0")
}

/// Runs `cmd` in `image`. Exits as the container does.
pub fn container(image: Option<&str>, cmd: Option<&str>) -> Result<ExitCode, Error> {
    build::all()?;
    say("asking hull check what this machine can do");
    let native = kvm_is_usable()?;
    if !native {
        say("this machine's KVM cannot: the microVM will run in the test host, emulated and slower");
        packages::install(&[List::Host])?;
    }
    let data = build::target().join("run/data");
    let image = pull(image, &data)?;

    say(&format!("hull run --rm {image}"));
    let hull = build::target().join("release/hull");
    let mut command = if native {
        Command::new(&hull)
    } else {
        let mut host = Command::new(root().join("tests/host/run"));
        host.arg("--").arg(&hull);
        host
    };
    command.arg("--data-dir").arg(&data).args(["run", "--rm", "--pull", "never", &image]);
    match cmd {
        Some(words) => command.args(["sh", "-c", words]),
        None => command.args(["sh", "-c", GREETING]),
    };
    let code = status(&mut command)?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    Ok(ExitCode::from(code))
}

/// Pulls the image where it can be had: from its own registry, else from one of ours on loopback. Returns its name.
fn pull(image: Option<&str>, data: &PathBuf) -> Result<String, Error> {
    let hull = build::target().join("release/hull");
    if let Some(image) = image {
        say(&format!("pulling {image}"));
        if status(Command::new(&hull).arg("--data-dir").arg(data).args(["pull", image]))?.success() {
            return Ok(image.to_owned());
        }
        say("that registry has it not or cannot be reached: looking in the registry on loopback");
    }
    let short = image.unwrap_or("busybox");
    packages::install(&[List::Tests])?;
    say("starting a registry on loopback");
    // The registry lives as long as the pull; the pulled image is then known by its name there.
    let script =
        r#"set -e; name="$HULL_TEST_REGISTRY/$2"; "$0" --data-dir "$1" pull "$name" >&2; echo "$name""#;
    let name = output(
        Command::new(root().join("tests/fixtures/registry"))
            .args([short, "--", "sh", "-c", script])
            .arg(&hull)
            .arg(data)
            .arg(short),
    )?;
    Ok(name.trim().to_owned())
}
