//! A kubelet's part: pods through containerd's CRI plugin.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use protobuf::MessageField;

use crate::containerd::{Containerd, busybox};
use crate::cri::*;
use crate::eventually;

/// gRPC's status code of who cannot answer yet.
const UNAVAILABLE: u32 = 14;

/// A kubelet for one pod.
pub struct Pod<'a> {
    containerd: &'a Containerd,
    /// The way to containerd.
    pub cri: Cri,
    /// What was asked for.
    pub config: PodSandboxConfig,
    /// The sandbox's id.
    pub id: String,
    /// How long `RunPodSandbox` took, if this made it.
    pub ready_after: Duration,
}

/// A field that is set.
pub fn some<T>(message: T) -> MessageField<T> {
    MessageField::some(message)
}

/// Namespaces that only say how process ids are shared.
pub fn namespaces(pid: NamespaceMode) -> MessageField<NamespaceOption> {
    some(NamespaceOption { pid: pid.into(), ..NamespaceOption::default() })
}

impl<'a> Pod<'a> {
    /// Runs a sandbox; its containers share the process id namespace, or do not.
    pub fn run(containerd: &'a Containerd, name: &str, pid: NamespaceMode) -> Self {
        Self::try_run(containerd, name, |config| {
            config.linux.mut_or_insert_default().security_context.mut_or_insert_default().namespace_options =
                namespaces(pid);
        })
        .unwrap()
    }

    /// Runs a sandbox that `change` has changed before.
    pub fn try_run(
        containerd: &'a Containerd,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Self, Refused> {
        Self::try_run_by(containerd, containerd.handler(), name, change)
    }

    /// Runs one by this of containerd's runtimes.
    pub fn try_run_by(
        containerd: &'a Containerd,
        handler: &str,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Self, Refused> {
        let cri = Cri::connect(&containerd.socket());
        cri.pull(&busybox());
        let logs = containerd.file("hull-logs");
        fs::create_dir_all(&logs).unwrap();
        let mut config = PodSandboxConfig {
            metadata: some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "tests".into(),
                ..PodSandboxMetadata::default()
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            dns_config: some(DNSConfig { servers: vec!["192.0.2.53".into()], ..DNSConfig::default() }),
            linux: some(LinuxPodSandboxConfig {
                security_context: some(LinuxSandboxSecurityContext {
                    namespace_options: namespaces(NamespaceMode::CONTAINER),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        change(&mut config);
        let request = RunPodSandboxRequest {
            config: some(config.clone()),
            runtime_handler: handler.into(),
            ..RunPodSandboxRequest::default()
        };
        let begun = Instant::now();
        let pod: RunPodSandboxResponse = cri.call("RunPodSandbox", &request)?;
        Ok(Self { containerd, cri, config, id: pod.pod_sandbox_id, ready_after: begun.elapsed() })
    }

    /// One that a containerd has which was restarted meanwhile.
    pub fn known(containerd: &'a Containerd, id: String, config: PodSandboxConfig) -> Self {
        let pod = Self {
            containerd,
            cri: Cri::connect(&containerd.socket()),
            config,
            id,
            ready_after: Duration::ZERO,
        };
        // The plugin looks at its pods before it answers.
        let up = || match pod.cri.call::<PodSandboxStatusResponse>("PodSandboxStatus", &pod.status_request())
        {
            Err(Refused { code: UNAVAILABLE, .. }) => None,
            Err(Refused { message, .. }) if message.contains("unknown service") => None,
            _ => Some(()),
        };
        eventually("the CRI plugin answers", up);
        pod
    }

    fn status_request(&self) -> PodSandboxStatusRequest {
        PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: true,
            ..PodSandboxStatusRequest::default()
        }
    }

    /// How the sandbox is, and what more there is to say of it.
    pub fn sandbox_status(&self) -> (PodSandboxState, std::collections::HashMap<String, String>) {
        let response: PodSandboxStatusResponse = self.cri.ok("PodSandboxStatus", &self.status_request());
        (response.status.state.enum_value().unwrap(), response.info.clone())
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn container(&self, name: &str, attempt: u32, script: &str, mounts: &[Mount]) -> String {
        self.attempt(name, attempt, script, mounts).unwrap_or_else(|error| panic!("{name}: {error:?}"))
    }

    /// The same, where it may be refused.
    pub fn attempt(
        &self,
        name: &str,
        attempt: u32,
        script: &str,
        mounts: &[Mount],
    ) -> Result<String, Refused> {
        self.try_container(name, script, |config| {
            config.metadata.mut_or_insert_default().attempt = attempt;
            config.log_path = format!("{name}-{attempt}.log");
            config.mounts = mounts.to_vec();
        })
    }

    /// Creates and starts a container that `change` has changed before.
    #[track_caller]
    pub fn container_with(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> String {
        self.try_container(name, script, change).unwrap_or_else(|error| panic!("{name}: {error:?}"))
    }

    /// The same, where it may be refused.
    pub fn try_container(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, Refused> {
        let linux = self.config.linux.security_context.namespace_options.clone();
        let mut config = ContainerConfig {
            metadata: some(ContainerMetadata { name: name.into(), ..ContainerMetadata::default() }),
            image: some(ImageSpec { image: busybox(), ..ImageSpec::default() }),
            command: ["sh", "-c", script].map(str::to_owned).into(),
            log_path: format!("{name}-0.log"),
            linux: some(LinuxContainerConfig {
                security_context: some(LinuxContainerSecurityContext {
                    namespace_options: linux,
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: some(config),
            sandbox_config: some(self.config.clone()),
            ..CreateContainerRequest::default()
        };
        let created: CreateContainerResponse = self.cri.call("CreateContainer", &request)?;
        let _: Empty = self.cri.call("StartContainer", &of(&created.container_id))?;
        Ok(created.container_id)
    }

    /// Runs a command in a container.
    pub fn exec(&self, id: &str, words: &[&str], timeout: i64) -> Result<ExecSyncResponse, Refused> {
        let cmd = words.iter().map(|&word| word.to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout, ..ExecSyncRequest::default() };
        self.cri.call("ExecSync", &request)
    }

    /// What a script says in a container.
    #[track_caller]
    pub fn says(&self, id: &str, script: &str) -> String {
        let said = self.exec(id, &["sh", "-c", script], 60).unwrap();
        assert_eq!(said.exit_code, 0, "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    }

    /// How a container is.
    pub fn status(&self, id: &str) -> ContainerStatus {
        let response: ContainerStatusResponse = self.cri.ok("ContainerStatus", &of(id));
        response.status.unwrap()
    }

    /// Waits for the end; the exit code.
    pub fn exited(&self, id: &str) -> i32 {
        let exited =
            || Some(self.status(id)).filter(|status| status.state == ContainerState::CONTAINER_EXITED.into());
        eventually("the container has exited", exited).exit_code
    }

    /// Stops a container; seconds until it is killed.
    pub fn stop(&self, id: &str, timeout: i64) {
        let request =
            StopContainerRequest { container_id: id.into(), timeout, ..StopContainerRequest::default() };
        let _: Empty = self.cri.ok("StopContainer", &request);
    }

    /// Removes a container.
    pub fn remove(&self, id: &str) {
        let _: Empty = self.cri.ok("RemoveContainer", &of(id));
    }

    /// The lines of a container's log: stream and text.
    pub fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.containerd.file("hull-logs").join(name)).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').map_or("", |(_, rest)| rest).to_owned()).collect()
    }

    /// Its bundle.
    pub fn bundle(&self) -> std::path::PathBuf {
        self.containerd.pod_bundle(&self.id)
    }

    /// What the shim wrote down about the pod.
    pub fn shim_record(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.bundle().join("shim.json")).unwrap()).unwrap()
    }

    /// Ends the pod and everything in it, the logs too.
    pub fn end(self) {
        self.take_down();
        fs::remove_dir_all(self.containerd.file("hull-logs")).unwrap();
    }

    /// Ends the pod, as often as one likes; its logs stay.
    pub fn take_down(&self) {
        let request = PodRequest { pod_sandbox_id: self.id.clone(), ..PodRequest::default() };
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox", "RemovePodSandbox"] {
            let _: Empty = self.cri.ok(method, &request);
        }
    }
}

/// A request that only names a container.
pub fn of(container: &str) -> ContainerRequest {
    ContainerRequest { container_id: container.into(), ..ContainerRequest::default() }
}

/// A volume.
pub fn mount(host: &Path, container: &str, readonly: bool) -> Mount {
    let host_path = host.display().to_string();
    Mount { host_path, container_path: container.into(), readonly, ..Mount::default() }
}
