//! `hull-fuzz TARGET --runs N`: inputs without end, from a seed, with any toolchain.
//!
//! Half of the inputs are random, half are kept cases with mistakes in them. The input that is being tried is kept in a
//! file, so that one that ends the process is found there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here is a finding")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use hull_fuzz::{TARGETS, allocation, target};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// The most that may be held for good after the first inputs, in bytes.
const GROWTH_MAX: usize = 4 << 20;
/// Inputs until whatever is kept is kept.
const WARM: u64 = 10_000;
const INPUT_MAX: usize = 16 << 10;

/// Throws inputs at a target until it breaks, or so many were tried.
#[derive(Parser)]
struct Args {
    /// The target, or "all".
    target: String,
    /// Inputs to try.
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Where the sequence of inputs begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One input, from a file, instead.
    #[arg(long)]
    input: Option<PathBuf>,
}

fn main() {
    let Args { target: name, runs, seed, input } = Args::parse();
    if name == "all" {
        for target in TARGETS {
            run(target.name, runs, seed);
        }
    } else if let Some(input) = input {
        (target(&name).expect("no such target").make)()(&fs::read(input).unwrap());
    } else {
        run(&name, runs, seed);
    }
}

fn run(name: &str, runs: u64, seed: u64) {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    let target = target(name).unwrap_or_else(|| panic!("{name} is none of {names:?}"));
    let kept = corpus(name);
    let last = std::env::temp_dir().join(format!("hull-fuzz-{name}-{}", std::process::id()));
    let journal = File::options().create(true).truncate(false).write(true).read(true).open(&last).unwrap();
    journal.set_len(8 + INPUT_MAX as u64).unwrap();
    eprintln!("{name}: {} kept cases; the input at work is in {}", kept.len(), last.display());
    let mut body = (target.make)();
    let mut random = Random(seed | 1);
    let mut input = Vec::new();
    let (start, mut held, mut highest) = (Instant::now(), None, 0);
    for round in 0..runs {
        next(&mut random, &kept, &mut input);
        journal.write_all_at(&[&(input.len() as u64).to_le_bytes(), input.as_slice()].concat(), 0).unwrap();
        let before = allocation::held();
        allocation::take_peak();
        body(&input);
        // A thread of an earlier round may have given back what it held only now.
        let peak = allocation::take_peak().saturating_sub(before);
        highest = highest.max(peak);
        assert!(peak <= target.peak_max(), "{name}, run {round}: {peak} bytes were held at once");
        if round == WARM {
            held = Some(allocation::held());
        }
    }
    let growth = allocation::held().saturating_sub(held.unwrap_or_else(allocation::held));
    assert!(growth <= GROWTH_MAX, "{name}: {growth} bytes more are held than in the beginning");
    fs::remove_file(&last).unwrap();
    println!(
        "{name}: {runs} runs in {:.0} s, at most {} KiB held by one, {} KiB kept",
        start.elapsed().as_secs_f64(),
        highest >> 10,
        growth >> 10
    );
}

/// The kept cases of a target.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The next input.
fn next(random: &mut Random, kept: &[Vec<u8>], input: &mut Vec<u8>) {
    input.clear();
    if kept.is_empty() || random.below(2) == 0 {
        // Short ones are more frequent than long ones.
        let bits = random.below(12);
        let length = random.below(1 << bits) + 1;
        input.extend((0..length).map(|_| random.byte()));
        return;
    }
    input.extend(&kept[random.below(kept.len())]);
    for _ in 0..=random.below(8) {
        mistake(random, kept, input);
    }
    input.truncate(INPUT_MAX);
}

fn mistake(random: &mut Random, kept: &[Vec<u8>], input: &mut Vec<u8>) {
    if input.is_empty() {
        return input.push(random.byte());
    }
    let at = random.below(input.len());
    match random.below(7) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.byte(),
        2 => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
        3 => input.insert(at, random.byte()),
        4 => drop(input.remove(at)),
        5 => {
            let other = &kept[random.below(kept.len())];
            if !other.is_empty() {
                let from = random.below(other.len());
                input.truncate(at);
                input.extend(&other[from..]);
            }
        }
        _ => {
            let end = (at + random.below(32)).min(input.len());
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
    }
}

/// A sequence of numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).unwrap() % end
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}
