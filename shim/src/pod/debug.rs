//! The debug console: lines that the host's administrator asks of the guest, where the configuration allows it.

use std::sync::Arc;

use hull_protocol::agent::api::agent::DebugRequest;

use super::Pod;
use crate::config::DebugConsole;
use crate::error::TaskError;

/// The longest answer that is handed on, in bytes; the guest's agent keeps to the same.
const ANSWER_MAX: usize = 1 << 20;

impl Pod {
    /// What the guest answers. It is the guest's: any bytes.
    pub async fn debug(&self, line: String) -> Result<Vec<u8>, TaskError> {
        if self.config.debug_console == DebugConsole::Off {
            return Err(TaskError::NoConsole);
        }
        let vm = self.containers().first().map(|container| Arc::clone(&container.vm));
        let vm = vm.filter(|vm| vm.ended().now().is_none()).ok_or(TaskError::Precondition {
            action: "ask the guest",
            subject: "VM",
            state: "not running",
        })?;
        let answer = vm.agent.debug(&DebugRequest { line, ..DebugRequest::default() }).await?;
        let (mut bytes, cut) = (answer.output, answer.cut);
        if cut || bytes.len() > ANSWER_MAX {
            bytes.truncate(ANSWER_MAX);
            bytes.extend_from_slice(b"\n(there is more)\n");
        }
        Ok(bytes)
    }
}
