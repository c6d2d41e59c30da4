//! The `linux.seccomp` object: its JSON shape, and the same checked and turned into what the kernel knows.

use serde::Deserialize;

use crate::{Architecture, Error};

/// What the kernel does with a call: the return value of a filter (linux/seccomp.h `SECCOMP_RET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Verdict(pub u32);

impl Verdict {
    /// Ends the calling thread.
    pub const KILL_THREAD: Self = Self(0);
    /// Lets the call happen.
    pub const ALLOW: Self = Self(0x7fff_0000);

    /// Fails the call.
    pub const fn errno(number: u16) -> Self {
        Self(0x0005_0000 | number as u32)
    }

    /// Whether a program notices nothing of it.
    fn is_permissive(self) -> bool {
        const TRACE: u32 = 0x7ff0;
        const LOG: u32 = 0x7ffc;
        const ALLOW: u32 = 0x7fff;
        matches!(self.0 >> 16, TRACE | LOG | ALLOW)
    }
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum Operator {
    /// Not equal.
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// Less than, unsigned like all of them.
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// Less than or equal.
    #[serde(rename = "SCMP_CMP_LE")]
    AtMost,
    /// Equal.
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// Greater than or equal.
    #[serde(rename = "SCMP_CMP_GE")]
    AtLeast,
    /// Greater than.
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// Equal in the bits of a mask: `value` is the mask, `valueTwo` what is compared with.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// One comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// How.
    pub operator: Operator,
    /// With what, or the mask.
    pub value: u64,
    /// With what, for a mask.
    pub value_two: u64,
}

/// What happens to some calls.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The calls.
    pub names: Vec<String>,
    /// What happens.
    pub verdict: Verdict,
    /// All must hold. None: always.
    pub conditions: Vec<Condition>,
}

/// A profile that was checked.
#[derive(Clone, Debug)]
pub struct Profile {
    /// For calls that no rule names.
    pub default: Verdict,
    /// Whether calls that are newer than the profile fail with `ENOSYS` instead, so that programs try the older ones.
    pub newer_is_missing: bool,
    /// Besides the native one.
    pub architectures: Vec<Architecture>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// In the order of the profile.
    pub rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<JsonRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<JsonArgument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArgument {
    index: u64,
    value: u64,
    value_two: Option<u64>,
    op: Operator,
}

/// Interfaces of other machines: a profile may list them, and no call on this one comes through them.
const FOREIGN: [&str; 18] = [
    "ARM",
    "AARCH64",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PPC",
    "PPC64",
    "PPC64LE",
    "S390",
    "S390X",
    "PARISC",
    "PARISC64",
    "RISCV64",
    "LOONGARCH64",
    "M68K",
];

const EPERM: u16 = 1;
const ENOSYS: u32 = 38;

impl Profile {
    /// Parses the JSON of a `linux.seccomp` object.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let json: Json = serde_json::from_slice(json)?;
        let default = verdict("defaultAction", &json.default_action, json.default_errno_ret)?;
        let mut architectures = Vec::new();
        for name in json.architectures.iter().flatten() {
            let known = match name.strip_prefix("SCMP_ARCH_") {
                Some("X86_64") => Architecture::X86_64,
                Some("X86") => Architecture::X86,
                Some("X32") => Architecture::X32,
                Some(foreign) if FOREIGN.contains(&foreign) => continue,
                _ => {
                    return Err(Error::invalid("architectures", format!("{name:?} is not an architecture")));
                }
            };
            if !architectures.contains(&known) {
                architectures.push(known);
            }
        }
        let rules = json.syscalls.into_iter().flatten().map(Rule::parse).collect::<Result<_, _>>()?;
        Ok(Self {
            default,
            newer_is_missing: !default.is_permissive() && json.default_errno_ret != Some(ENOSYS),
            architectures,
            flags: flags(json.flags.as_deref())?,
            rules,
        })
    }
}

impl Rule {
    fn parse(rule: JsonRule) -> Result<Self, Error> {
        const FIELD: &str = "syscalls";
        if rule.names.is_empty() {
            return Err(Error::invalid(FIELD, "a rule names no system call"));
        }
        let conditions = rule
            .args
            .into_iter()
            .flatten()
            .map(|argument| {
                let index = u8::try_from(argument.index).ok().filter(|index| *index < 6);
                let index = index.ok_or_else(|| {
                    Error::invalid(FIELD, format!("there is no argument {}", argument.index))
                })?;
                let value_two = argument.value_two.unwrap_or(0);
                Ok(Condition { index, operator: argument.op, value: argument.value, value_two })
            })
            .collect::<Result<_, Error>>()?;
        let verdict = verdict(FIELD, &rule.action, rule.errno_ret)?;
        Ok(Self { names: rule.names, verdict, conditions })
    }
}

fn verdict(field: &'static str, action: &str, errno: Option<u32>) -> Result<Verdict, Error> {
    let number = |largest: u16| {
        let number = errno.unwrap_or(EPERM.into());
        u16::try_from(number).ok().filter(|number| *number <= largest).ok_or_else(|| {
            Error::invalid(field, format!("{number} is more than {largest}, the largest value of {action}"))
        })
    };
    let verdict = match action {
        // The kernel's limit, MAX_ERRNO: it would make more of it another error.
        "SCMP_ACT_ERRNO" => return number(4095).map(Verdict::errno),
        "SCMP_ACT_TRACE" => return Ok(Verdict(0x7ff0_0000 | u32::from(number(u16::MAX)?))),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Verdict::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => Verdict(0x8000_0000),
        "SCMP_ACT_TRAP" => Verdict(0x0003_0000),
        "SCMP_ACT_LOG" => Verdict(0x7ffc_0000),
        "SCMP_ACT_ALLOW" => Verdict::ALLOW,
        "SCMP_ACT_NOTIFY" => {
            return Err(Error::unsupported(
                field,
                "SCMP_ACT_NOTIFY is not supported: its listener is a program on the host, outside the VM",
            ));
        }
        _ => return Err(Error::invalid(field, format!("{action:?} is not an action"))),
    };
    match errno {
        None => Ok(verdict),
        Some(_) => Err(Error::invalid(field, format!("{action} takes no errno value"))),
    }
}

fn flags(names: Option<&[String]>) -> Result<u32, Error> {
    const FIELD: &str = "flags";
    const TSYNC: u32 = 1;
    const LOG: u32 = 2;
    const SPEC_ALLOW: u32 = 4;
    // What runc does for a profile that says nothing: the kernel's mitigation for every filtered process costs more than it
    // gives.
    let Some(names) = names else { return Ok(SPEC_ALLOW) };
    names.iter().try_fold(0, |flags, name| match name.as_str() {
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags | TSYNC),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | SPEC_ALLOW),
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
            Err(Error::unsupported(FIELD, format!("{name} needs SCMP_ACT_NOTIFY, which is not supported")))
        }
        _ => Err(Error::invalid(FIELD, format!("{name:?} is not a flag"))),
    })
}
