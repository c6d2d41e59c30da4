//! `hull images`.

use hull_images::{Image, Reference};
use serde::Serialize;

use super::{DONE, short_digest};
use crate::cli::{Format, Global, ImagesArgs};
use crate::error::CliError;
use crate::output::{self, Table, human_age, human_size};
use crate::paths;
use crate::run::image::reference;

const NONE: &str = "<none>";

/// An image as `--format json` prints it: docker's keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    repository: String,
    tag: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    created_since: String,
    size: String,
}

/// Lists images, one line for each name.
pub fn images(global: &Global, args: &ImagesArgs) -> Result<u8, CliError> {
    let wanted = args.repository.as_deref().map(reference).transpose()?;
    let any_tag = args
        .repository
        .as_deref()
        .is_some_and(|text| !text.rsplit('/').next().unwrap_or(text).contains([':', '@']));
    let mut rows = Vec::new();
    for image in paths::store(global)?.images()? {
        let mut names: Vec<Option<&Reference>> = image.references.iter().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        for name in names {
            let fits = match (&wanted, name) {
                (None, _) => true,
                (Some(wanted), Some(name)) => {
                    wanted.familiar_name() == name.familiar_name() && (any_tag || wanted.tag() == name.tag())
                }
                (Some(_), None) => false,
            };
            if fits {
                rows.push(row(&image, name, args.no_trunc));
            }
        }
    }
    if args.quiet {
        let mut seen = std::collections::HashSet::new();
        rows.iter().filter(|row| seen.insert(&row.id)).try_for_each(|row| output::line(&row.id))?;
    } else if args.format == Format::Json {
        output::json_lines(&rows)?;
    } else {
        output::print(&table(rows, args.digests).render())?;
    }
    Ok(DONE)
}

fn table(rows: Vec<Row>, digests: bool) -> Table {
    let mut header = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if digests {
        header.insert(2, "DIGEST");
    }
    let mut table = Table::new(&header);
    for row in rows {
        let mut cells = vec![row.repository, row.tag, row.id, row.created_since, row.size];
        if digests {
            cells.insert(2, row.digest);
        }
        table.row(cells);
    }
    table
}

fn row(image: &Image, name: Option<&Reference>, no_trunc: bool) -> Row {
    let id = image.id.to_string();
    let none = || NONE.to_owned();
    let repository = name.map(Reference::familiar_name);
    let digest = image.digests.iter().find(|digest| Some(digest.familiar_name()) == repository);
    Row {
        tag: name.and_then(Reference::tag).map_or_else(none, str::to_owned),
        digest: digest.and_then(Reference::digest).map_or_else(none, ToString::to_string),
        repository: repository.unwrap_or_else(none),
        id: if no_trunc { id } else { short_digest(&id).to_owned() },
        created_at: image.created.clone().unwrap_or_default(),
        created_since: image
            .created
            .as_deref()
            .and_then(human_age)
            .map_or_else(|| "N/A".to_owned(), |age| format!("{age} ago")),
        size: human_size(image.size),
    }
}
