//! The progress of a pull or load on stderr: bars on a terminal, plain lines elsewhere, nothing when silent.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hull_images::{Progress, ProgressEvent};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Nothing.
    Silent,
    /// What docker says.
    Normal,
}

/// Shows what happens.
pub struct Shown {
    look: Look,
    layers: Mutex<Vec<Layer>>,
}

enum Look {
    Silent,
    Lines,
    Bars(MultiProgress),
}

struct Layer {
    name: String,
    bar: Option<ProgressBar>,
}

impl Shown {
    /// Bars if stderr is a terminal.
    pub fn new(volume: Volume) -> Self {
        let look = match volume {
            Volume::Silent => Look::Silent,
            Volume::Normal if io::stderr().is_terminal() => {
                Look::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
            }
            Volume::Normal => Look::Lines,
        };
        Self { look, layers: Mutex::default() }
    }

    /// Says a line, whatever bars there are.
    pub fn note(&self, text: &str) {
        match &self.look {
            Look::Silent => {}
            Look::Lines => eprint_line(text),
            Look::Bars(bars) => {
                // stderr is gone: nobody is there to read it.
                let _ = bars.println(text);
            }
        }
    }

    /// The bars stay as they are, and the line after them is free.
    pub fn finish(&self) {
        for layer in self.layers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(bar) = &layer.bar {
                bar.abandon();
            }
        }
    }

    fn bar(&self, name: &str, size: u64) -> Option<ProgressBar> {
        let Look::Bars(bars) = &self.look else { return None };
        let style = ProgressStyle::with_template("{prefix}: {msg} [{bar:30}] {bytes}/{total_bytes}");
        let bar = bars.add(ProgressBar::new(size).with_prefix(name.to_owned()).with_message("Waiting"));
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Some(bar)
    }

    fn step(&self, index: usize, what: &'static str, done: bool) {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(layer) = layers.get(index) else { return };
        match &layer.bar {
            Some(bar) => {
                bar.set_message(what);
                if done {
                    bar.abandon();
                }
            }
            None if matches!(self.look, Look::Lines) => eprint_line(&format!("{}: {what}", layer.name)),
            None => {}
        }
    }
}

impl Progress for Shown {
    fn event(&self, event: ProgressEvent) {
        match event {
            ProgressEvent::Resolving { reference } => {
                let which = reference.tag().map_or_else(|| reference.to_string(), str::to_owned);
                self.note(&format!("{which}: Pulling from {}", reference.repository()));
            }
            ProgressEvent::Resolved { layers, .. } => {
                let made = layers
                    .iter()
                    .map(|layer| {
                        let digest = layer.digest.to_string();
                        let hex = digest.split_once(':').map_or(digest.as_str(), |(_, hex)| hex);
                        let name: String = hex.chars().take(12).collect();
                        Layer { bar: self.bar(&name, layer.size), name }
                    })
                    .collect();
                *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = made;
            }
            ProgressEvent::LayerExists { layer } => self.step(layer, "Already exists", true),
            ProgressEvent::LayerStarted { layer } => self.step(layer, "Pulling", false),
            ProgressEvent::LayerProgress { layer, received, .. } => {
                let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(bar) = layers.get(layer).and_then(|layer| layer.bar.as_ref()) {
                    bar.set_position(received);
                }
            }
            ProgressEvent::LayerDone { layer } => self.step(layer, "Pull complete", true),
            ProgressEvent::Retrying { reason, .. } => self.note(&format!("Retrying: {reason}")),
            _ => {}
        }
    }
}

fn eprint_line(text: &str) {
    use io::Write;
    // stderr is gone: nobody is there to read it.
    let _ = writeln!(io::stderr(), "{text}");
}
