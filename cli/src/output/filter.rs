//! `ps --filter`: conditions on containers.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Why a filter is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not KEY=VALUE.
    #[error("filter {0:?}: expected KEY=VALUE")]
    Shape(String),
    /// An unknown key.
    #[error("filter {0:?} is not supported: use name, id, status, ancestor or label")]
    Key(String),
    /// An unknown status.
    #[error("{0:?} is not a status: use created, running, paused or exited")]
    Status(String),
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The name contains it.
    Name(String),
    /// The id begins with it.
    Id(String),
    /// The status is it.
    Status(String),
    /// The image was named so, or has this id.
    Ancestor(String),
    /// The label is there, with that value if one is given.
    Label(String, Option<String>),
}

/// What filters look at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The container's name.
    pub name: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Its status in docker's word.
    pub status: &'a str,
    /// Its image as the user wrote it.
    pub image: &'a str,
    /// The image's id, with the algorithm in front.
    pub image_id: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (key, value) = text.split_once('=').ok_or_else(|| FilterError::Shape(text.to_owned()))?;
        match key {
            "name" => Ok(Self::Name(value.trim_start_matches(['^', '/']).to_owned())),
            "id" => Ok(Self::Id(value.to_owned())),
            "status" if ["created", "running", "paused", "exited"].contains(&value) => {
                Ok(Self::Status(value.to_owned()))
            }
            "status" => Err(FilterError::Status(value.to_owned())),
            "ancestor" => Ok(Self::Ancestor(value.to_owned())),
            "label" => Ok(match value.split_once('=') {
                Some((label, value)) => Self::Label(label.to_owned(), Some(value.to_owned())),
                None => Self::Label(value.to_owned(), None),
            }),
            other => Err(FilterError::Key(other.to_owned())),
        }
    }
}

impl Filter {
    /// Whether all conditions hold; several of one kind are alternatives, as in docker, except labels.
    pub fn all_match(filters: &[Self], subject: Subject<'_>) -> bool {
        filters.iter().all(|filter| match filter {
            Self::Label(..) => filter.matches(subject),
            _ => filters
                .iter()
                .filter(|other| std::mem::discriminant(*other) == std::mem::discriminant(filter))
                .any(|other| other.matches(subject)),
        })
    }

    fn matches(&self, subject: Subject<'_>) -> bool {
        match self {
            Self::Name(part) => match part.strip_suffix('$') {
                Some(exact) => subject.name.ends_with(exact),
                None => subject.name.contains(part),
            },
            Self::Id(prefix) => subject.id.starts_with(prefix),
            Self::Status(status) => subject.status == status,
            Self::Ancestor(image) => {
                subject.image == image
                    || subject.image.strip_suffix(":latest") == Some(image)
                    || (image.len() >= 12
                        && subject.image_id.trim_start_matches("sha256:").starts_with(image.as_str()))
            }
            Self::Label(label, value) => {
                subject.labels.get(label).is_some_and(|is| value.as_ref().is_none_or(|value| is == value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filters: &[&str]) -> bool {
        let filters: Vec<Filter> = filters.iter().map(|text| text.parse().unwrap()).collect();
        let labels = BTreeMap::from([("tier".to_owned(), "web".to_owned())]);
        let subject = Subject {
            name: "front",
            id: "abcdef",
            status: "running",
            image: "nginx:latest",
            image_id: "sha256:0123456789abcdef",
            labels: &labels,
        };
        Filter::all_match(&filters, subject)
    }

    #[test]
    fn conditions() {
        for filters in [
            &[][..],
            &["name=ron"],
            &["name=^front"],
            &["name=x", "name=front"],
            &["id=abc", "status=running"],
            &["ancestor=nginx"],
            &["ancestor=0123456789ab"],
            &["label=tier", "label=tier=web"],
        ] {
            assert!(matches(filters), "{filters:?}");
        }
        for filters in [
            &["name=back"][..],
            &["id=bc"],
            &["status=exited"],
            &["label=tier=db"],
            &["name=front", "status=paused"],
        ] {
            assert!(!matches(filters), "{filters:?}");
        }
        assert!("status=dead".parse::<Filter>().is_err());
        assert!("colour=red".parse::<Filter>().is_err());
        assert!("name".parse::<Filter>().is_err());
    }
}
