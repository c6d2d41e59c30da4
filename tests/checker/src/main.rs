//! `hull-checker`: runs inside a container and prints one JSON object: what the kernel says about the process and the
//! container, and under `probes` how each attempt that was named as an argument went.
//!
//! Static and without libraries, so that it runs in an empty root file system. It judges nothing: expectations are the
//! tests'. It must not change what it reports before it has reported it, so the report is made before the first probe.

mod disk;
mod json;
mod probe;
mod report;
mod system;

fn main() {
    let mut members = report::report();
    let probes = std::env::args().skip(1).map(|word| {
        let answer = probe::probe(&word);
        (word, answer)
    });
    members.push(("probes".to_owned(), json::object(probes)));
    println!("{}", json::object(members).0);
}
