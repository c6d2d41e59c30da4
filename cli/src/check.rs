//! `hull check`: can this host run microVMs, and if not, why not and what to do.

use std::fs::OpenOptions;
use std::io;

use kvm_ioctls::{Cap, Kvm};
use serde::Serialize;

mod artifacts;
mod containerd;
mod guest;
mod overhead;
mod probe;

use crate::cli::{CheckArgs, Format, Global};
use crate::error::{self, CliError};
use crate::output;

const DEVICE: &str = "/dev/kvm";
/// KVM_GET_API_VERSION has returned this since Linux 2.6.22; nothing else is valid (KVM API §4.1).
const API_VERSION: i32 = 12;

/// The extensions that the monitor uses.
const EXTENSIONS: [(Cap, &str); 9] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
];

/// How one check went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Check {
    /// What was looked at.
    name: &'static str,
    /// Whether it is as it must be.
    ok: bool,
    /// What was found.
    detail: String,
    /// What to do, where something is wrong.
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, ok: true, detail: detail.into(), remedy: "" }
    }

    fn failed(name: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, ok: false, detail: detail.into(), remedy }
    }
}

/// Runs the checks and prints them. The exit status says whether microVMs can run.
pub fn command(global: &Global, args: &CheckArgs) -> Result<u8, CliError> {
    let mut checks = kvm_checks();
    checks.extend(artifacts::checks());
    checks.push(network());
    if args.containerd {
        checks.extend(containerd::checks());
    }
    match args.format {
        Format::Json => output::json_lines(&checks)?,
        Format::Table => checks.iter().try_for_each(|check| {
            let word = if check.ok { "ok  " } else { "FAIL" };
            output::line(&format!("{word}  {}: {}", check.name, check.detail))?;
            if check.remedy.is_empty() { Ok(()) } else { output::line(&format!("      {}", check.remedy)) }
        })?,
    }
    let usable = checks.iter().all(|check| check.ok);
    if args.format == Format::Table {
        output::line(if usable { "This host can run microVMs." } else { "This host cannot run microVMs." })?;
    }
    if args.overhead && usable {
        let overhead = overhead::measure(&global.state_dir)?;
        match args.format {
            Format::Json => output::json_lines(&[overhead])?,
            Format::Table => overhead.lines().iter().try_for_each(|line| output::line(line))?,
        }
    }
    Ok(u8::from(!usable))
}

/// Nothing that is wrong: containers run without a network too.
fn network() -> Check {
    Check::ok(
        "network",
        match crate::network::available() {
            Ok(()) => "the CNI plugins are there".to_owned(),
            Err(missing) => format!("containers get none by default: {}", error::describe(&missing)),
        },
    )
}

/// The checks of KVM, up to the first failure that makes the rest meaningless.
fn kvm_checks() -> Vec<Check> {
    let mut checks = Vec::new();
    let Some(kvm) = open(&mut checks) else { return checks };
    let missing: Vec<_> =
        EXTENSIONS.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        checks.push(Check::ok("KVM extensions", format!("all {} are there", EXTENSIONS.len())));
    } else {
        checks.push(Check::failed(
            "KVM extensions",
            format!("missing: {}", missing.join(", ")),
            "use a host with a newer kernel",
        ));
        return checks;
    }
    let not_here =
        "use a host with hardware virtualization, or one that passes it on in full (nested virtualization)";
    match probe::create(&kvm) {
        Ok(()) => checks.push(Check::ok("create a VM", "memory, interrupt controller and vCPU work")),
        Err(error) => {
            checks.push(Check::failed("create a VM", error::describe(&error), not_here));
            return checks;
        }
    }
    checks.push(match probe::speed(&kvm) {
        Ok(speed) if speed.is_native() => Check::ok("guest kernel speed", speed.to_string()),
        Ok(speed) => Check::failed(
            "guest kernel speed",
            format!("{speed}: this KVM emulates kernel code instead of running it"),
            not_here,
        ),
        Err(error) => Check::failed("guest kernel speed", error::describe(&error), not_here),
    });
    checks.push(match probe::instructions(&kvm) {
        Ok(tried) => {
            Check::ok("guest kernel instructions", format!("{} work: {}", tried.len(), tried.join(", ")))
        }
        Err(failures) => {
            let failures: Vec<_> = failures.iter().map(|failure| error::describe(failure)).collect();
            Check::failed(
                "guest kernel instructions",
                format!("this KVM cannot run Linux guests: {}", failures.join("; ")),
                not_here,
            )
        }
    });
    checks
}

fn open(checks: &mut Vec<Check>) -> Option<Kvm> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => {}
        Err(error) => {
            let (detail, remedy) = match error.kind() {
                io::ErrorKind::NotFound => (
                    "/dev/kvm does not exist".to_owned(),
                    "switch virtualization on in the firmware and load the module: modprobe kvm-intel or modprobe kvm-amd",
                ),
                io::ErrorKind::PermissionDenied => (
                    "/dev/kvm cannot be opened: permission denied".to_owned(),
                    "run hull as root, or add the user to the group kvm: usermod -aG kvm <user>",
                ),
                _ => (
                    format!("/dev/kvm cannot be opened: {error}"),
                    "load the module: modprobe kvm-intel or modprobe kvm-amd",
                ),
            };
            checks.push(Check::failed(DEVICE, detail, remedy));
            return None;
        }
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            checks.push(Check::failed(
                DEVICE,
                format!("/dev/kvm cannot be opened: {error}"),
                "look into the kernel's log",
            ));
            return None;
        }
    };
    checks.push(Check::ok(DEVICE, "exists and can be opened"));
    match kvm.get_api_version() {
        API_VERSION => {
            checks.push(Check::ok("KVM API", format!("version {API_VERSION}")));
            Some(kvm)
        }
        other => {
            let detail = format!("/dev/kvm answers with version {other}, not {API_VERSION}: it is not KVM");
            checks.push(Check::failed(
                "KVM API",
                detail,
                "make sure that /dev/kvm is the kernel's own device",
            ));
            None
        }
    }
}
