//! The command line as containerd writes it: single-dash flags, then the action.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What the shim is run for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `start`: make the pod's shim run and print its address.
    Start(Identity),
    /// `delete`: clean up from disk state alone.
    Delete(Identity),
    /// The shim itself, started by `start` with its listening socket.
    Serve(Identity),
    /// `-info`.
    Info,
    /// `-v`.
    Version,
}

/// Which pod, for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Namespace of the ids.
    pub namespace: String,
    /// The container's id, which is the pod's.
    pub id: String,
    /// containerd's address; part of the pod's identity.
    pub address: String,
    /// The bundle where it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether to log more.
    pub verbosity: Verbosity,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// What matters to an administrator.
    #[default]
    Normal,
    /// What matters to a developer, too.
    Debug,
}

/// The action's name on the command line of a shim that serves.
pub const SERVE: &str = "serve";

/// A command line that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A flag that there is not.
    #[error("unknown flag {0}")]
    UnknownFlag(String),
    /// A flag without its value.
    #[error("flag {0} needs a value")]
    NoValue(&'static str),
    /// A value or an action that is no text.
    #[error("{0:?} is not UTF-8")]
    NotText(OsString),
    /// No action.
    #[error("nothing to do: give start or delete, after -namespace and -id; or -info or -v")]
    NoAction,
    /// An action that there is not.
    #[error("unknown action {0:?}: there are start and delete")]
    UnknownAction(String),
    /// More than one action.
    #[error("unexpected argument {0:?} after the action")]
    Extra(String),
    /// A flag without which nothing can be done.
    #[error("flag {0} is missing")]
    Missing(&'static str),
    /// An id that is none.
    #[error(
        "-id {0:?} is no valid id: letters, digits, '_', '.', '-', at most 128 of them, the first a letter or digit"
    )]
    InvalidId(String),
}

impl Invocation {
    /// Parses what follows the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut args = args.into_iter();
        let mut identity = Identity::default();
        let mut action = None;
        while let Some(arg) = args.next() {
            let arg = text(arg)?;
            let Some(flag) = arg.strip_prefix('-').map(|flag| flag.strip_prefix('-').unwrap_or(flag)) else {
                match action.replace(arg) {
                    None => continue,
                    Some(_) => return Err(ArgsError::Extra(action.unwrap_or_default())),
                }
            };
            let (name, mut inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (flag, None),
            };
            let mut value = |name| inline.take().or_else(|| args.next()).ok_or(ArgsError::NoValue(name));
            match name {
                "namespace" => identity.namespace = text(value("-namespace")?)?,
                "id" => identity.id = text(value("-id")?)?,
                "address" => identity.address = text(value("-address")?)?,
                "bundle" => identity.bundle = Some(PathBuf::from(value("-bundle")?)),
                // Events go over ttrpc; the binary is the fallback of older shims.
                "publish-binary" => drop(value("-publish-binary")?),
                "debug" => identity.verbosity = Verbosity::Debug,
                "info" => return Ok(Self::Info),
                "v" | "version" => return Ok(Self::Version),
                _ => return Err(ArgsError::UnknownFlag(arg)),
            }
        }
        let action = action.ok_or(ArgsError::NoAction)?;
        for (flag, value) in [("-namespace", &identity.namespace), ("-id", &identity.id)] {
            if value.is_empty() {
                return Err(ArgsError::Missing(flag));
            }
        }
        if !hull_protocol::agent::is_valid_id(&identity.id) {
            return Err(ArgsError::InvalidId(identity.id));
        }
        match action.as_str() {
            "start" => Ok(Self::Start(identity)),
            "delete" => Ok(Self::Delete(identity)),
            SERVE => Ok(Self::Serve(identity)),
            _ => Err(ArgsError::UnknownAction(action)),
        }
    }
}

impl Identity {
    /// The flags that [`Invocation::parse`] reads back.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> =
            ["-namespace", &self.namespace, "-id", &self.id, "-address", &self.address]
                .map(OsString::from)
                .into();
        if let Some(bundle) = &self.bundle {
            args.extend([OsStr::new("-bundle").to_owned(), bundle.clone().into_os_string()]);
        }
        if self.verbosity == Verbosity::Debug {
            args.push("-debug".into());
        }
        args
    }
}

fn text(value: OsString) -> Result<String, ArgsError> {
    value.into_string().map_err(ArgsError::NotText)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Result<Invocation, ArgsError> {
        Invocation::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn as_containerd_writes_it() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id abc -debug start";
        let Ok(Invocation::Start(identity)) = parse(line) else { panic!("not a start") };
        assert_eq!((identity.namespace.as_str(), identity.id.as_str()), ("k8s.io", "abc"));
        assert_eq!(identity.verbosity, Verbosity::Debug);
        let Ok(Invocation::Delete(identity)) = parse("-namespace=n -id=x -bundle /b delete") else {
            panic!("not a delete")
        };
        assert_eq!(identity.bundle, Some("/b".into()));
        assert_eq!(parse("-info"), Ok(Invocation::Info));
        assert_eq!(parse("-v"), Ok(Invocation::Version));
    }

    #[test]
    fn every_mistake_is_named() {
        for (line, error) in [
            ("-namespace n -id x -wat start", ArgsError::UnknownFlag("-wat".into())),
            ("-namespace n -id", ArgsError::NoValue("-id")),
            ("-namespace n -id x", ArgsError::NoAction),
            ("-namespace n -id x stop", ArgsError::UnknownAction("stop".into())),
            ("-namespace n -id x start delete", ArgsError::Extra("delete".into())),
            ("-id x start", ArgsError::Missing("-namespace")),
            ("-namespace n -id ../x start", ArgsError::InvalidId("../x".into())),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
    }

    proptest! {
        #[test]
        fn an_identity_survives_its_flags(namespace in "[a-z.]{1,10}", id in "[a-z0-9]{1,10}", bundle in proptest::option::of("/[a-z]{1,9}")) {
            let identity = Identity { namespace, id, address: "/run/x".into(), bundle: bundle.map(PathBuf::from), verbosity: Verbosity::Debug };
            let args = identity.to_args().into_iter().chain([OsString::from(SERVE)]);
            prop_assert_eq!(Invocation::parse(args), Ok(Invocation::Serve(identity)));
        }
    }
}
