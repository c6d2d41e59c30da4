//! What the guest tells unasked: that its memory runs short, that its kernel killed for want of it. A guest may say anything at any
//! rate: what it says is bounded, and is about nothing but its own containers.

use std::sync::Weak;
use std::time::{Duration, Instant};

use hull_protocol::agent::api::agent::guest_event::What;
use hull_protocol::agent::api::agent::{MemoryPressure, Pressure};

use super::{Agent, AgentError, Pod};
use crate::process::Phase;

/// The least time between two events that are listened to.
const PAUSE: Duration = Duration::from_millis(500);
/// The least time between two lines about the guest's memory.
const QUIET: Duration = Duration::from_secs(10);

/// Listens for as long as the VM lives.
pub async fn follow(pod: Weak<Pod>, agent: Agent) {
    let mut pressure = Seldom::default();
    loop {
        let event = match agent.next_event().await {
            Ok(event) => event,
            Err(AgentError::VmEnded(_)) => return,
            Err(error) => return log::warn!("the guest's events are not heard any more: {error}"),
        };
        let Some(pod) = pod.upgrade() else { return };
        match event.what {
            Some(What::OomKill(container)) => pod.oom_kill(&container),
            Some(What::MemoryPressure(figures)) if pressure.is_due(Instant::now()) => {
                log::warn!("{}", short_of_memory(&figures));
            }
            // An agent that is newer knows of more.
            Some(_) | None => {}
        }
        drop(pod);
        tokio::time::sleep(PAUSE).await;
    }
}

impl Pod {
    fn oom_kill(&self, id: &str) {
        let Ok(container) = self.container(id) else { return };
        if !container.is_sandbox() && !matches!(container.init.phase(), Phase::Exited(_)) {
            log::warn!(container:% = container.id; "out of memory: a process was killed");
            container.tell_oom();
        }
    }
}

/// Something that is worth a line now and then.
#[derive(Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

fn short_of_memory(figures: &MemoryPressure) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let share =
        |pressure: Option<&Pressure>| pressure.map_or(0.0, |pressure| pressure.avg10).clamp(0.0, 100.0);
    let (some, full) = (figures.pressure.some.as_ref(), figures.pressure.full.as_ref());
    let stalled = some.map_or(0, |some| some.total_usec / 1000);
    format!(
        "the guest is short of memory: processes waited for it {:.1} % of ten seconds, all at once {:.1} %, {stalled} ms since the boot; \
         {} of {} MiB are available; containers take {} of {} MiB",
        share(some),
        share(full),
        mib(figures.available_bytes),
        mib(figures.total_bytes),
        mib(figures.containers_bytes),
        mib(figures.containers_limit_bytes)
    )
}

#[cfg(test)]
mod tests {
    use hull_protocol::agent::api::agent::PressureStats;

    use super::*;

    #[test]
    fn a_line_has_figures_whatever_the_guest_says() {
        let some = Pressure { avg10: 34.25, total_usec: 1_234_567, ..Pressure::default() };
        let full = Pressure { avg10: f64::NAN, ..Pressure::default() };
        let pressure =
            PressureStats { some: Some(some).into(), full: Some(full).into(), ..PressureStats::default() };
        let figures = MemoryPressure {
            pressure: Some(pressure).into(),
            total_bytes: 490 << 20,
            available_bytes: 13 << 20,
            containers_bytes: u64::MAX,
            ..MemoryPressure::default()
        };
        let line = short_of_memory(&figures);
        assert!(line.contains("34.2 % of ten seconds") && line.contains("1234 ms"), "{line}");
        assert!(line.contains("13 of 490 MiB are available") && line.len() < 300, "{line}");
        assert!(short_of_memory(&MemoryPressure::new()).contains("0 of 0 MiB"));
    }

    #[test]
    fn lines_are_seldom() {
        let (start, mut seldom) = (Instant::now(), Seldom::default());
        let due = |seconds| start + Duration::from_secs(seconds);
        let told: Vec<u64> = (0..25).filter(|second| seldom.is_due(due(*second))).collect();
        assert_eq!(told, [0, 10, 20]);
    }
}
