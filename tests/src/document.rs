//! Tables in the documentation that tests write, and check from then on.
//!
//! In the file a table stands between `<!-- NAME: ... -->` and `<!-- /NAME -->`.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The rows below a table's heading.
#[derive(Debug, Default)]
pub struct Section {
    /// Each with its cells.
    pub rows: Vec<[String; 4]>,
}

/// Whether tables are to be written.
pub fn is_written() -> bool {
    std::env::var_os("HULL_WRITE_TABLES").is_some()
}

/// With `HULL_WRITE_TABLES=FOLDER` the file's copy there gets the new rows; else its rows must say the same in `columns`.
pub fn check_or_write(file: &str, name: &str, section: &Section, columns: &[usize]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let committed = std::fs::read_to_string(root.join(file)).unwrap();
    let (before, heading, rows, after) = split(&committed, name);
    if let Some(folder) = std::env::var_os("HULL_WRITE_TABLES") {
        let target = PathBuf::from(folder).join(Path::new(file).file_name().unwrap());
        // Another table of the same file may have been written just now.
        let text = std::fs::read_to_string(&target).unwrap_or_else(|_| committed.clone());
        let (before, heading, _, after) = split(&text, name);
        let body: String = section.rows.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
        std::fs::write(&target, format!("{before}{heading}{body}{after}")).unwrap();
        return;
    }
    let _ = (before, heading, after);
    let cells = |row: &str| -> Vec<String> {
        let inner = row.trim().trim_start_matches('|').trim_end_matches('|');
        inner.split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let select =
        |row: &[String]| -> Vec<String> { columns.iter().map(|column| row[*column].clone()).collect() };
    let said: Vec<_> = rows.lines().map(|row| select(&cells(row))).collect();
    let found: Vec<_> = section.rows.iter().map(|row| select(row)).collect();
    let differ: Vec<_> = found
        .iter()
        .filter(|row| !said.contains(row))
        .map(|row| format!("found {row:?}"))
        .chain(said.iter().filter(|row| !found.contains(row)).map(|row| format!("{file} says {row:?}")))
        .collect();
    assert!(
        differ.is_empty(),
        "{file} is not what is: `cargo xtask oci-table` writes it anew\n{}",
        differ.join("\n")
    );
}

/// The checker's answer to an attempt, as a cell.
pub fn outcome(answer: &Value) -> String {
    match answer.as_str().unwrap_or("ok") {
        "ok" => "allowed".to_owned(),
        "nothing" => "refused (empty)".to_owned(),
        // The call was made with arguments that mean nothing, and got as far as them.
        "EINVAL" | "EFAULT" | "EBADF" | "ENOEXEC" => "allowed".to_owned(),
        found if found.starts_with("-> ") => "allowed".to_owned(),
        error => format!("refused ({error})"),
    }
}

/// What stands before the table, its heading, its rows, and what comes after.
fn split<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str, &'a str) {
    let start = text.find(&format!("<!-- {name}:")).expect("the table's first mark");
    let start = start + text[start..].find('\n').unwrap() + 1;
    // An empty line, the heading, the line below it.
    let mut body = start;
    for _ in 0..3 {
        body += text[body..].find('\n').unwrap() + 1;
    }
    let end = body + text[body..].find(&format!("\n<!-- /{name} -->")).expect("the table's last mark");
    (&text[..start], &text[start..body], &text[body..end], &text[end..])
}
