//! PID 1 of the guest: from the initramfs to a serving agent, and from its end to the end of the machine.

mod boot;
mod power;

use std::sync::Arc;

use futures::StreamExt;
use hull_protocol::agent::{CONTROL_PORT, HOST_CID, STREAM_PORT};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::agent::{self, Outcome};
use crate::environment::Environment;

use crate::stdio::Connection;

/// Boots, serves, and ends the machine. Never returns.
pub fn main() -> ! {
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        // One line and no more: the abort that follows makes the kernel panic, which the host reports.
        let payload = info.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        log::error!("the agent panicked at {at}: {}", text.unwrap_or("no message"));
    }));
    let outcome = boot::prepare().map_err(Into::into).and_then(|environment| serve(Arc::new(environment)));
    match outcome {
        Ok(Outcome::ShutDown) => {}
        Ok(Outcome::HungUp) => log::warn!("the host is gone"),
        Err(error) => {
            log::error!("{error}");
            eprintln!("hull-agent: {error}");
            power::restart()
        }
    }
    power::off()
}

fn serve(environment: Arc<Environment>) -> Result<Outcome, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Listening before connecting: the host may attach streams as soon as it hears from us.
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT))
            .map_err(|error| format!("cannot listen on vsock port {STREAM_PORT}: {error}"))?;
        let connection = VsockStream::connect(VsockAddr::new(HOST_CID, CONTROL_PORT))
            .await
            .map_err(|error| format!("cannot connect to the host on vsock port {CONTROL_PORT}: {error}"))?;
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await;
            Some((accepted, listener))
        })
        .filter_map(|accepted| async move {
            match accepted {
                Ok((connection, peer)) if peer.cid() == HOST_CID => {
                    Some(Box::new(connection) as Box<dyn Connection>)
                }
                Ok((_, peer)) => {
                    log::warn!("a stream connection from vsock context {} was refused", peer.cid());
                    None
                }
                Err(error) => {
                    log::warn!("accepting a stream connection: {error}");
                    None
                }
            }
        });
        Ok(agent::run(environment, connection, incoming).await?)
    })
}
