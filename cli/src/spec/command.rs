//! What runs: docker's rules for an image's entrypoint and command and what the user gives instead.

/// Nothing to run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no command specified: the image has none, so name one after the image")]
pub struct NoCommand;

/// The arguments of the container's first process: entrypoint and command, one after the other.
///
/// - `--entrypoint X` replaces the image's entrypoint **and** drops the image's command.
/// - `--entrypoint ""` removes the image's entrypoint, and drops its command too.
/// - A command on the command line replaces the image's command, never its entrypoint.
pub fn resolve(
    image_entrypoint: &[String],
    image_command: &[String],
    entrypoint: Option<&str>,
    command: &[String],
) -> Result<Vec<String>, NoCommand> {
    let mut args: Vec<String> = match entrypoint {
        None => image_entrypoint.to_vec(),
        Some("") => Vec::new(),
        Some(entrypoint) => vec![entrypoint.to_owned()],
    };
    if command.is_empty() && entrypoint.is_none() {
        args.extend_from_slice(image_command);
    } else {
        args.extend_from_slice(command);
    }
    // An image built with `ENTRYPOINT [""]` has cleared its entrypoint in the same way.
    if args.first().is_some_and(String::is_empty) {
        args.remove(0);
    }
    if args.is_empty() { Err(NoCommand) } else { Ok(args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn dockers_table() {
        for (image_entrypoint, image_command, entrypoint, command, expected) in [
            ("", "bash", None, "", Some("bash")),
            ("", "bash", None, "ls -l", Some("ls -l")),
            ("entry -x", "cmd", None, "", Some("entry -x cmd")),
            ("entry -x", "cmd", None, "mine", Some("entry -x mine")),
            ("entry -x", "cmd", Some("other"), "", Some("other")),
            ("entry -x", "cmd", Some("other"), "a b", Some("other a b")),
            ("entry -x", "cmd", Some(""), "a b", Some("a b")),
            ("entry -x", "cmd", Some(""), "", None),
            ("", "", None, "", None),
            ("", "", None, "a", Some("a")),
        ] {
            let args = resolve(&words(image_entrypoint), &words(image_command), entrypoint, &words(command));
            assert_eq!(
                args.ok(),
                expected.map(words),
                "{image_entrypoint:?} {image_command:?} {entrypoint:?} {command:?}"
            );
        }
        assert_eq!(resolve(&[String::new()], &words("cmd"), None, &[]), Ok(words("cmd")));
    }
}
