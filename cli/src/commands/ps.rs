//! `hull ps`.

use serde::Serialize;

use super::{DONE, shorten};
use crate::cli::{Format, Global, PsArgs};
use crate::engine;
use crate::error::CliError;
use crate::output::{self, Filter, Subject, Table, human_age};
use crate::paths;
use crate::state::{self, Container, Status};

/// A container as `--format json` prints it: docker's keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    command: String,
    created_at: String,
    running_for: String,
    status: String,
    state: &'static str,
    ports: String,
    names: String,
    labels: String,
}

/// Lists containers.
pub fn ps(global: &Global, args: &PsArgs) -> Result<u8, CliError> {
    let filters = args.filter.iter().map(|text| text.parse()).collect::<Result<Vec<Filter>, _>>()?;
    let state = paths::state(global)?;
    let runtime = engine::runtime()?;
    let mut rows = Vec::new();
    let every_state =
        args.all || args.last.is_some() || filters.iter().any(|f| matches!(f, Filter::Status(_)));
    for container in state.containers()? {
        let Some(status) = runtime.block_on(state::observe(&container))? else { continue };
        let record = &container.record;
        let subject = Subject {
            name: &record.name,
            id: container.id.as_str(),
            status: status.word(),
            image: &record.image,
            image_id: &record.image_id,
            labels: &record.labels,
        };
        let shown = every_state || matches!(status, Status::Running | Status::Paused);
        if shown && Filter::all_match(&filters, subject) {
            rows.push(row(&container, &status, args.no_trunc));
        }
    }
    rows.truncate(args.last.unwrap_or(usize::MAX));
    if args.quiet {
        rows.iter().try_for_each(|row| output::line(&row.id))?;
    } else if args.format == Format::Json {
        output::json_lines(&rows)?;
    } else {
        let mut table =
            Table::new(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
        for row in rows {
            table.row([row.id, row.image, row.command, row.running_for, row.status, row.ports, row.names]);
        }
        output::print(&table.render())?;
    }
    Ok(DONE)
}

fn row(container: &Container, status: &Status, no_trunc: bool) -> Row {
    let record = &container.record;
    let command = record.command.join(" ");
    let command = if no_trunc { command } else { shorten(&command, 20) };
    let labels: Vec<_> = record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Row {
        id: if no_trunc { container.id.as_str().to_owned() } else { container.id.short().to_owned() },
        image: record.image.clone(),
        command: format!("\"{command}\""),
        created_at: record.created.clone(),
        running_for: human_age(&record.created).map(|age| format!("{age} ago")).unwrap_or_default(),
        status: describe(container, status),
        state: status.word(),
        ports: crate::network::attachment(&container.bundle)
            .map(|one| one.ports_column())
            .unwrap_or_default(),
        names: record.name.clone(),
        labels: labels.join(","),
    }
}

/// "Up 3 minutes", "Exited (0) 2 hours ago".
fn describe(container: &Container, status: &Status) -> String {
    let up = || {
        let started =
            super::inspect::started_at(container).unwrap_or_else(|| container.record.created.clone());
        human_age(&started).unwrap_or_default()
    };
    match status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", up()),
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Exited(exit) => match human_age(&exit.exited_at) {
            Some(age) => format!("Exited ({}) {age} ago", exit.exit_code),
            None => format!("Exited ({})", exit.exit_code),
        },
    }
}
