//! Files of the host in the container: `-v` and `--mount type=bind`.

use std::path::PathBuf;
use std::str::FromStr;

use super::RootAccess;

/// Why such a flag is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// `-v` without the shape of one.
    #[error("expected HOST:PATH[:ro], for example /srv/data:/data:ro")]
    Shape,
    /// A name where a path should be.
    #[error("{0:?} would be a named volume, and there are only folders and files of the host: write a path")]
    Named(String),
    /// The place in the container.
    #[error("{0:?} is no absolute path below / in the container")]
    Target(String),
    /// An option of `-v`.
    #[error("the option {0:?} is not supported: known are ro and rw")]
    Option(String),
    /// A key of `--mount`.
    #[error("the field {0:?} is not supported: known are type=bind, source, target and readonly")]
    Field(String),
    /// A field that must be there.
    #[error("the field {0} is missing")]
    Missing(&'static str),
}

/// A folder or a file of the host, and where it is in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host, as it was given.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
    /// Whether the container may write to it.
    pub access: RootAccess,
    /// What happens when it is not there.
    pub absent: Absent,
}

/// What to do about a source that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// A folder is made, as docker does for `-v`.
    Make,
    /// It is an error, as docker has it for `--mount`.
    Fail,
}

/// `-v HOST:PATH[:OPTIONS]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFlag(pub Bind);

/// `--mount type=bind,source=HOST,target=PATH[,readonly]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlag(pub Bind);

impl FromStr for VolumeFlag {
    type Err = BindError;

    fn from_str(text: &str) -> Result<Self, BindError> {
        let mut parts = text.split(':');
        let (Some(source), Some(target), options, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BindError::Shape);
        };
        let mut access = RootAccess::ReadWrite;
        for option in options.unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
            access = match option {
                "ro" => RootAccess::ReadOnly,
                "rw" => RootAccess::ReadWrite,
                other => return Err(BindError::Option(other.to_owned())),
            };
        }
        bind(source, target, access, Absent::Make).map(Self)
    }
}

impl FromStr for MountFlag {
    type Err = BindError;

    fn from_str(text: &str) -> Result<Self, BindError> {
        let (mut source, mut target, mut access) = (None, None, RootAccess::ReadWrite);
        let mut kind = None;
        for field in text.split(',') {
            match field.split_once('=').unwrap_or((field, "true")) {
                ("type", value) => kind = Some(value),
                ("source" | "src", value) => source = Some(value),
                ("target" | "dst" | "destination", value) => target = Some(value),
                ("readonly" | "ro", "true" | "1") => access = RootAccess::ReadOnly,
                ("readonly" | "ro", "false" | "0") => access = RootAccess::ReadWrite,
                _ => return Err(BindError::Field(field.to_owned())),
            }
        }
        match kind {
            Some("bind") => {}
            // docker's default type is a named volume.
            None => return Err(BindError::Missing("type=bind")),
            Some(other) => return Err(BindError::Field(format!("type={other}"))),
        }
        let source = source.ok_or(BindError::Missing("source"))?;
        bind(source, target.ok_or(BindError::Missing("target"))?, access, Absent::Fail).map(Self)
    }
}

fn bind(source: &str, target: &str, access: RootAccess, absent: Absent) -> Result<Bind, BindError> {
    if source.is_empty() {
        return Err(BindError::Shape);
    }
    if !source.starts_with(['/', '.']) {
        return Err(BindError::Named(source.to_owned()));
    }
    let below_root = target.starts_with('/') && target.split('/').any(|part| !part.is_empty());
    if !below_root || target.split('/').any(|part| part == "..") || target.contains('\0') {
        return Err(BindError::Target(target.to_owned()));
    }
    Ok(Bind { source: PathBuf::from(source), target: target.to_owned(), access, absent })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> Result<Bind, BindError> {
        text.parse().map(|VolumeFlag(bind)| bind)
    }

    fn mount(text: &str) -> Result<Bind, BindError> {
        text.parse().map(|MountFlag(bind)| bind)
    }

    fn wanted(source: &str, target: &str, access: RootAccess, absent: Absent) -> Bind {
        Bind { source: source.into(), target: target.into(), access, absent }
    }

    #[test]
    fn volumes() {
        use RootAccess::{ReadOnly, ReadWrite};
        assert_eq!(volume("/a:/b"), Ok(wanted("/a", "/b", ReadWrite, Absent::Make)));
        assert_eq!(volume("./a:/b/c:ro"), Ok(wanted("./a", "/b/c", ReadOnly, Absent::Make)));
        assert_eq!(volume("/a:/b:rw"), Ok(wanted("/a", "/b", ReadWrite, Absent::Make)));
        for shape in ["", "/a", "/a:/b:ro:x", ":/b"] {
            assert_eq!(volume(shape), Err(BindError::Shape), "{shape}");
        }
        assert_eq!(volume("data:/b"), Err(BindError::Named("data".into())));
        assert_eq!(volume("/a:/b:z"), Err(BindError::Option("z".into())));
        for target in ["b", "/", "", "/a/../..", "//"] {
            assert_eq!(volume(&format!("/a:{target}")), Err(BindError::Target(target.into())), "{target}");
        }
    }

    #[test]
    fn mounts() {
        use RootAccess::{ReadOnly, ReadWrite};
        let bind = wanted("/a", "/b", ReadWrite, Absent::Fail);
        assert_eq!(mount("type=bind,source=/a,target=/b"), Ok(bind.clone()));
        assert_eq!(mount("type=bind,src=/a,dst=/b,readonly=false"), Ok(bind.clone()));
        let read_only = Ok(Bind { access: ReadOnly, ..bind });
        assert_eq!(mount("type=bind,src=/a,destination=/b,readonly"), read_only);
        assert_eq!(mount("dst=/b,ro=1,type=bind,src=/a"), read_only);
        assert_eq!(mount("src=/a,dst=/b"), Err(BindError::Missing("type=bind")));
        assert_eq!(mount("type=bind,dst=/b"), Err(BindError::Missing("source")));
        assert_eq!(mount("type=volume,src=a,dst=/b"), Err(BindError::Field("type=volume".into())));
        assert_eq!(mount("type=bind,src=/a,dst=/b,x=1"), Err(BindError::Field("x=1".into())));
    }
}
