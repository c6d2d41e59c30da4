//! The words of the command line, as runc takes them, to one typed command.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::OciError;

/// Where containers are remembered unless `--root` says otherwise.
const ROOT: &str = "/run/hull-agent";

/// Every command.
pub const COMMANDS: [&str; 10] =
    ["create", "run", "start", "state", "kill", "delete", "exec", "list", "pause", "resume"];

pub const USAGE: &str = "\
usage: hull-agent [--root DIR] [--log FILE] COMMAND
  create [--bundle DIR] [--console-socket PATH] [--pid-file FILE] [--no-pivot] ID
  run    [the same] [--detach] [--keep] ID
  start ID
  state ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID
  exec [--process FILE] [--cwd DIR] [--env NAME=VALUE] [--tty] [--user UID[:GID]] [--additional-gids GID] [--cap CAP]
       [--no-new-privs] [--cgroup PATH] [--detach] [--console-socket PATH] [--pid-file FILE] ID [COMMAND ARGUMENT...]
  list [--format table|json] [--quiet]
  pause ID
  resume ID
";

/// The whole command line.
#[derive(Debug)]
pub struct Invocation {
    pub root: PathBuf,
    pub log: Option<PathBuf>,
    pub command: Command,
}

#[derive(Debug)]
pub enum Command {
    Create(Creation),
    Run(Creation),
    Start { id: String },
    State { id: String },
    Kill { id: String, signal: i32, target: Target },
    Delete { id: String, running: Running },
    Exec(Box<Exec>),
    List { shape: Shape },
    Pause { id: String },
    Resume { id: String },
    Version,
    Help,
}

#[derive(Debug)]
pub struct Creation {
    pub id: String,
    pub bundle: PathBuf,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub attention: Attention,
    pub afterwards: Afterwards,
}

#[derive(Debug)]
pub struct Exec {
    pub id: String,
    pub process: ExecProcess,
    /// Below the container's cgroup.
    pub cgroup: Option<String>,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub attention: Attention,
}

/// What an exec runs.
#[derive(Debug)]
pub enum ExecProcess {
    /// A file with a `process` object.
    File(PathBuf),
    /// The container's own process with changes.
    Changed(Box<Changes>),
}

#[derive(Debug)]
pub struct Changes {
    pub args: Vec<String>,
    pub cwd: Option<String>,
    pub env: Vec<String>,
    pub terminal: bool,
    pub user: Option<(u32, Option<u32>)>,
    pub additional_gids: Vec<u32>,
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
}

/// Whether the command waits for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Foreground,
    Detached,
}

/// What `run` does with a container that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    Delete,
    Keep,
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Init,
    All,
}

/// What `delete` does with a container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    Refused,
    Killed,
}

/// How `list` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Table,
    Json,
    Ids,
}

/// An option: long name, short name, whether a value follows.
type Flag = (&'static str, &'static str, bool);

/// Options that came before the first other word, by long name, and the rest.
struct Words {
    options: BTreeMap<&'static str, Vec<String>>,
    rest: Vec<String>,
}

fn usage(reason: impl Into<String>) -> OciError {
    OciError::Usage(reason.into())
}

impl Words {
    fn split(words: Vec<String>, known: &[Flag]) -> Result<Self, OciError> {
        let mut options: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let mut words = words.into_iter();
        let mut rest = Vec::new();
        while let Some(word) = words.next() {
            if word == "--" || !word.starts_with('-') || word == "-" {
                rest.extend((word != "--").then_some(word));
                break;
            }
            let stripped = word.trim_start_matches('-');
            let (name, value) = stripped.split_once('=').map_or((stripped, None), |(n, v)| (n, Some(v)));
            let flag = known.iter().find(|(long, short, _)| *long == name || *short == name);
            let (long, _, takes_value) =
                flag.ok_or_else(|| usage(format!("flag provided but not defined: {word}")))?;
            let value = match (takes_value, value) {
                (_, Some(value)) => value.to_owned(),
                (false, None) => "true".to_owned(),
                (true, None) => {
                    words.next().ok_or_else(|| usage(format!("flag needs an argument: {word}")))?
                }
            };
            options.entry(long).or_default().push(value);
        }
        rest.extend(words);
        Ok(Self { options, rest })
    }

    fn last(&mut self, name: &str) -> Option<String> {
        self.options.remove(name).and_then(|mut values| values.pop())
    }

    fn all(&mut self, name: &str) -> Vec<String> {
        self.options.remove(name).unwrap_or_default()
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.last(name).map(PathBuf::from)
    }

    fn is_set(&mut self, name: &str) -> bool {
        self.last(name).is_some_and(|value| value != "false")
    }

    fn id(&mut self) -> Result<String, OciError> {
        if self.rest.is_empty() {
            return Err(usage("a container ID is needed"));
        }
        Ok(self.rest.remove(0))
    }

    fn only_id(&mut self) -> Result<String, OciError> {
        let id = self.id()?;
        match self.rest.first() {
            None => Ok(id),
            Some(word) => Err(usage(format!("unexpected argument {word:?}"))),
        }
    }
}

impl Invocation {
    pub fn parse(words: Vec<String>) -> Result<Self, OciError> {
        // Accepted for callers of runc and without a meaning here: there is one log format, no criu and no systemd.
        let mut words = Words::split(
            words,
            &[
                ("root", "", true),
                ("log", "", true),
                ("log-format", "", true),
                ("debug", "", false),
                ("systemd-cgroup", "", false),
                ("criu", "", true),
                ("rootless", "", true),
                ("version", "v", false),
                ("help", "h", false),
            ],
        )?;
        let (root, log) = (words.path("root").unwrap_or_else(|| PathBuf::from(ROOT)), words.path("log"));
        let command = if words.is_set("version") {
            Command::Version
        } else if words.is_set("help") || words.rest.is_empty() {
            Command::Help
        } else {
            let name = words.rest.remove(0);
            Command::parse(&name, words.rest)?
        };
        Ok(Self { root, log, command })
    }
}

impl Command {
    fn parse(name: &str, words: Vec<String>) -> Result<Self, OciError> {
        let plain = |words| Words::split(words, &[]).and_then(|mut words| words.only_id());
        Ok(match name {
            "create" => Self::Create(creation(words)?),
            "run" => Self::Run(creation(words)?),
            "start" => Self::Start { id: plain(words)? },
            "state" => Self::State { id: plain(words)? },
            "pause" => Self::Pause { id: plain(words)? },
            "resume" => Self::Resume { id: plain(words)? },
            "kill" => {
                let mut words = Words::split(words, &[("all", "a", false)])?;
                let id = words.id()?;
                let target = if words.is_set("all") { Target::All } else { Target::Init };
                let signal = match words.rest.as_slice() {
                    [] => libc::SIGTERM,
                    [name] => signal(name)?,
                    [_, word, ..] => return Err(usage(format!("unexpected argument {word:?}"))),
                };
                Self::Kill { id, signal, target }
            }
            "delete" => {
                let mut words = Words::split(words, &[("force", "f", false)])?;
                let running = if words.is_set("force") { Running::Killed } else { Running::Refused };
                Self::Delete { id: words.only_id()?, running }
            }
            "list" => {
                let mut words = Words::split(words, &[("format", "f", true), ("quiet", "q", false)])?;
                let shape = match (words.is_set("quiet"), words.last("format").as_deref()) {
                    (true, _) => Shape::Ids,
                    (false, None | Some("table")) => Shape::Table,
                    (false, Some("json")) => Shape::Json,
                    (false, Some(other)) => return Err(usage(format!("invalid format option {other:?}"))),
                };
                Self::List { shape }
            }
            "exec" => Self::Exec(Box::new(exec(words)?)),
            other => return Err(usage(format!("no such command: {other:?}\n{USAGE}"))),
        })
    }
}

fn creation(words: Vec<String>) -> Result<Creation, OciError> {
    let mut words = Words::split(
        words,
        &[
            ("bundle", "b", true),
            ("console-socket", "", true),
            ("pid-file", "", true),
            ("no-pivot", "", false),
            ("no-new-keyring", "", false),
            ("detach", "d", false),
            ("keep", "", false),
            ("preserve-fds", "", true),
        ],
    )?;
    refuse_preserved(&mut words)?;
    if words.is_set("no-pivot") {
        return Err(usage("--no-pivot is not supported: a container's root is always pivoted into"));
    }
    Ok(Creation {
        bundle: words.path("bundle").unwrap_or_else(|| PathBuf::from(".")),
        console_socket: words.path("console-socket"),
        pid_file: words.path("pid-file"),
        attention: attention(&mut words),
        afterwards: if words.is_set("keep") { Afterwards::Keep } else { Afterwards::Delete },
        id: words.only_id()?,
    })
}

fn refuse_preserved(words: &mut Words) -> Result<(), OciError> {
    match words.last("preserve-fds").as_deref() {
        None | Some("0") => Ok(()),
        Some(_) => Err(usage("--preserve-fds is not supported: a process has its three standard streams")),
    }
}

fn attention(words: &mut Words) -> Attention {
    if words.is_set("detach") { Attention::Detached } else { Attention::Foreground }
}

fn exec(words: Vec<String>) -> Result<Exec, OciError> {
    let mut words = Words::split(
        words,
        &[
            ("process", "p", true),
            ("cwd", "", true),
            ("env", "e", true),
            ("tty", "t", false),
            ("user", "u", true),
            ("additional-gids", "g", true),
            ("cap", "c", true),
            ("no-new-privs", "", false),
            ("detach", "d", false),
            ("console-socket", "", true),
            ("pid-file", "", true),
            ("preserve-fds", "", true),
            ("apparmor", "", true),
            ("process-label", "", true),
            ("cgroup", "", true),
        ],
    )?;
    refuse_preserved(&mut words)?;
    let cgroup = sub_cgroup(&words.all("cgroup"))?;
    let id = words.id()?;
    let process = match words.path("process") {
        Some(file) => ExecProcess::File(file),
        None if words.rest.is_empty() => return Err(usage("exec needs a command or --process")),
        None => ExecProcess::Changed(Box::new(Changes {
            cwd: words.last("cwd"),
            env: words.all("env"),
            terminal: words.is_set("tty"),
            user: words.last("user").map(|user| self::user(&user)).transpose()?,
            additional_gids: words
                .all("additional-gids")
                .iter()
                .map(|gid| number(gid))
                .collect::<Result<_, _>>()?,
            capabilities: words.all("cap"),
            no_new_privileges: words.is_set("no-new-privs"),
            args: std::mem::take(&mut words.rest),
        })),
    };
    Ok(Exec {
        id,
        process,
        cgroup,
        console_socket: words.path("console-socket"),
        pid_file: words.path("pid-file"),
        attention: attention(&mut words),
    })
}

/// The words of version 1, where each controller has a path of its own, are told from a path.
fn sub_cgroup(words: &[String]) -> Result<Option<String>, OciError> {
    match words {
        [] => Ok(None),
        [path] if !path.contains(':') => Ok(Some(path.clone())),
        [word, ..] => Err(usage(format!(
            "invalid --cgroup argument: {word}: it is one path below the container's cgroup, as there are no \
             controllers with paths of their own in version 2"
        ))),
    }
}

fn number(text: &str) -> Result<u32, OciError> {
    text.parse().map_err(|_| usage(format!("{text:?} is not the number of a user or group")))
}

fn user(text: &str) -> Result<(u32, Option<u32>), OciError> {
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

/// A signal by number or by name, with or without `SIG`.
fn signal(word: &str) -> Result<i32, OciError> {
    let unknown = || usage(format!("unknown signal {word:?}"));
    if let Ok(number) = word.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    const NAMES: [(&str, i32); 31] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", libc::SIGSTKFLT),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Invocation, OciError> {
        Invocation::parse(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn the_words_that_containerd_gives_to_runc() {
        let line = "--root /run/r --log /l.json --log-format json --systemd-cgroup create --bundle /b --pid-file /p c1";
        let invocation = parse(line).unwrap();
        assert_eq!(invocation.root, PathBuf::from("/run/r"));
        assert_eq!(invocation.log, Some(PathBuf::from("/l.json")));
        let Command::Create(creation) = invocation.command else { panic!("not a creation") };
        assert_eq!((creation.id.as_str(), creation.bundle), ("c1", PathBuf::from("/b")));

        let Command::Exec(exec) =
            parse("exec --process /p.json --detach --pid-file=/pid c1").unwrap().command
        else {
            panic!("not an exec")
        };
        assert_eq!(exec.attention, Attention::Detached);
        assert!(matches!(exec.process, ExecProcess::File(file) if file.ends_with("p.json")));

        let Command::Exec(exec) = parse("exec -u 5:6 -e A=b --cgroup a/b c1 ls -l --all").unwrap().command
        else {
            panic!("not an exec")
        };
        assert_eq!(exec.cgroup.as_deref(), Some("a/b"));
        let ExecProcess::Changed(changes) = exec.process else { panic!("not changed") };
        assert_eq!(
            (changes.user, changes.args),
            (Some((5, Some(6))), vec!["ls".into(), "-l".into(), "--all".into()])
        );
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (word, number) in [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("term", 15), ("64", 64)] {
            assert_eq!(signal(word).unwrap(), number, "{word}");
        }
        for word in ["0", "65", "-1", "NONE", ""] {
            assert!(signal(word).is_err(), "{word}");
        }
    }

    #[test]
    fn wrong_words_are_refused() {
        for line in [
            "start",
            "start a b",
            "frobnicate",
            "create --nonsense a",
            "kill a KILL b",
            "exec a",
            "run --bundle",
            "exec --cgroup cpu:b a ls",
            "exec --cgroup b --cgroup c a ls",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
