//! The table of docs/oci.md: each row is run with both runtimes, and judged by what the checker says.

use std::fmt::Write;

use hull_tests::document::{self, Section};
use hull_tests::oci::{Bundle, Runtime, default_config, merge};
use serde_json::Value;

use crate::rows::{Expect, Row, Through, rows};

const DOCUMENT: &str = "docs/oci.md";

/// What came of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// As the specification says.
    Yes,
    /// The runtime refuses, and says why.
    Refused(String),
    /// The container runs, and is not what was asked for.
    No(String),
}

impl Verdict {
    /// The cell of the table: without reasons, which differ by host.
    fn cell(&self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Refused(_) => "refused",
            Self::No(_) => "**no**",
        }
    }
}

/// Runs one row.
fn judge(runtime: &Runtime, row: &Row) -> Verdict {
    let bundle = Bundle::new();
    let mut config = default_config();
    config["process"]["args"] = match row.through {
        Through::Init | Through::Terminal => words(row),
        Through::Exec(_) => serde_json::json!(["/checker", "sleep:60000"]),
    };
    merge(&mut config, &row.patch);
    (row.prepare)(bundle.path());
    bundle.write(&config);
    let path = bundle.path().to_string_lossy().into_owned();
    let output = match &row.through {
        Through::Init => {
            let said = runtime.run(["run", "--bundle", &path, "row"]);
            if said.code == 0 { Ok(said.out) } else { Err(said.err) }
        }
        Through::Terminal => runtime.run_with_terminal("row", &bundle),
        Through::Exec(process) => in_exec(runtime, row, &bundle, &config, process),
    };
    // Whatever went wrong, the next row starts with nothing.
    runtime.run(["delete", "--force", "row"]);
    match (output, &row.expect[..]) {
        (Err(reason), [Expect::Refused(words)]) if reason.contains(words) => Verdict::Yes,
        (Err(reason), _) => Verdict::Refused(last_line(&reason)),
        (Ok(output), expectations) => {
            let report: Value = match serde_json::from_str(output.trim()) {
                Ok(report) => report,
                Err(error) => return Verdict::No(format!("{error}: {output:?}")),
            };
            let failures = expectations.iter().filter_map(|expect| expect.failure(&report, bundle.path()));
            match failures.reduce(|all, next| format!("{all}; {next}")) {
                None => Verdict::Yes,
                Some(failures) => Verdict::No(failures),
            }
        }
    }
}

fn words(row: &Row) -> Value {
    std::iter::once("/checker").chain(row.probes.iter().copied()).collect()
}

fn in_exec(
    runtime: &Runtime,
    row: &Row,
    bundle: &Bundle,
    config: &Value,
    process: &Value,
) -> Result<String, String> {
    let created = runtime.create("row", bundle);
    if created.code != 0 {
        return Err(created.err);
    }
    let started = runtime.run(["start", "row"]);
    if started.code != 0 {
        return Err(started.err);
    }
    // As docker and containerd make it: the container's own, with other words.
    let mut own = config["process"].clone();
    own["args"] = words(row);
    merge(&mut own, process);
    let file = bundle.path().join("process.json");
    std::fs::write(&file, own.to_string()).unwrap();
    let said = runtime.run(["exec", "--process", &file.to_string_lossy(), "row"]);
    if said.code == 0 { Ok(said.out) } else { Err(said.err) }
}

/// Of an error, what a person reads: the message of the last line, without runc's prefix.
fn last_line(error: &str) -> String {
    let line = error.lines().next_back().unwrap_or_default();
    let message = line.split_once("msg=\"").map_or(line, |(_, message)| message.trim_end_matches('"'));
    message.trim_start_matches("hull-agent: ").replace('|', "/")
}

#[test]
fn every_row_of_the_table_is_as_the_document_says() {
    let (hull, runc) = (Runtime::hull(), Runtime::runc());
    // The reference's column is not checked, so it need not be found each time.
    let writes = document::is_written();
    let only = std::env::var("HULL_OCI_ROWS").ok();
    let mut section = Section::default();
    let mut reasons = String::new();
    for row in rows() {
        if only.as_ref().is_some_and(|only| !row.field.contains(only.as_str())) {
            continue;
        }
        let ours = judge(&hull, &row);
        let theirs = writes.then(|| judge(&runc, &row));
        for (name, verdict) in std::iter::once(("hull", &ours)).chain(theirs.iter().map(|it| ("runc", it))) {
            if let Verdict::No(reason) | Verdict::Refused(reason) = verdict {
                writeln!(reasons, "{name}: {}: {} ({reason})", row.field, verdict.cell()).unwrap();
            }
        }
        let remark = match (&ours, row.remark) {
            (Verdict::Refused(reason), "") => format!("refused: {reason}"),
            (_, remark) => remark.to_owned(),
        };
        section.rows.push([
            row.field.to_owned(),
            ours.cell().to_owned(),
            theirs.map_or_else(String::new, |verdict| verdict.cell().to_owned()),
            remark,
        ]);
    }
    println!("{reasons}");
    if only.is_some() {
        return;
    }
    // Only what is said of Hull: which runc is there is the host's choice.
    document::check_or_write(DOCUMENT, "oci-table", &section, &[0, 1]);
}
