//! What the agent is sent: messages of its API, config.json files, and what they hold.

use arbitrary::{Result, Unstructured};
use hull_agent::testing;
use serde_json::{Map, Number, Value};

use crate::Body;

/// A container's config.json that uses everything.
const CONFIG: &str = include_str!("../corpus/agent_spec/config");

const WORDS: [&str; 24] = [
    "",
    "/",
    "..",
    "/a/../../b",
    "a\u{0}b",
    "/proc/sys",
    "max",
    "rbind",
    "rro",
    "size=1k",
    "mode=777",
    "RLIMIT_CORE",
    "CAP_CHOWN",
    "SCHED_DEADLINE",
    "memory.max",
    "cgroup.procs",
    "net.ipv4.ip_forward",
    "2MB",
    "0-3,7",
    "hull-volume",
    "hull-shared-tmpfs",
    "time",
    "type",
    "destination",
];

/// The first byte says which message of the API the others are to be.
pub fn messages() -> Body {
    Box::new(|input| {
        if let Some((number, bytes)) = input.split_first() {
            testing::message(*number, bytes);
        }
    })
}

/// JSON as it comes.
pub fn spec() -> Body {
    Box::new(|input| {
        // That it is accepted or refused, with a message, is all that is asked.
        let _refused = [testing::config(input), testing::process(input), testing::resources(input)];
    })
}

/// JSON whose text is right and whose values are not: a config.json with other values in some of its places.
pub fn spec_values() -> Body {
    let config: Value = serde_json::from_str(CONFIG).unwrap();
    // Otherwise nothing behind the first refusal would ever be reached.
    assert_eq!(testing::config(CONFIG.as_bytes()), Ok(()));
    Box::new(move |input| {
        let mut config = config.clone();
        let _ended: Result<()> = change(&mut Unstructured::new(input), &mut config);
        let part = |pointer| config.pointer(pointer).unwrap_or(&Value::Null).to_string();
        let _refused = [
            testing::config(config.to_string().as_bytes()),
            testing::process(part("/process").as_bytes()),
            testing::resources(part("/linux/resources").as_bytes()),
        ];
    })
}

fn change(u: &mut Unstructured<'_>, config: &mut Value) -> Result<()> {
    for _ in 0..u.int_in_range(1..=6)? {
        change_one(u, config)?;
    }
    Ok(())
}

/// Changes one place, here or further in.
fn change_one(u: &mut Unstructured<'_>, at: &mut Value) -> Result<()> {
    let further = u.ratio(7, 8)?;
    match at {
        Value::Object(members) if further && !members.is_empty() => {
            let place = u.choose_index(members.len())?;
            change_one(u, members.values_mut().nth(place).unwrap())
        }
        Value::Array(items) if further && !items.is_empty() => {
            let place = u.choose_index(items.len())?;
            change_one(u, &mut items[place])
        }
        Value::Array(items) if u.ratio(1, 2)? => {
            items.extend(items.last().cloned());
            Ok(())
        }
        Value::Object(members) if u.ratio(1, 2)? => {
            members.insert(word(u)?, value(u, 3)?);
            Ok(())
        }
        at => {
            *at = value(u, 3)?;
            Ok(())
        }
    }
}

fn word(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(3, 4)? { Ok((*u.choose(&WORDS)?).to_owned()) } else { Ok(u.arbitrary::<&str>()?.to_owned()) }
}

fn value(u: &mut Unstructured<'_>, depth: u32) -> Result<Value> {
    Ok(match u.int_in_range(0..=if depth == 0 { 7 } else { 9 })? {
        0 => Value::Null,
        1 => Value::Bool(u.arbitrary()?),
        2 => Number::from(*u.choose(&[0i64, -1, 1, i64::MAX, i64::MIN, 4096, 0xffff_ffff])?).into(),
        3 => Number::from(u.arbitrary::<u64>()?).into(),
        4 => Number::from(u.arbitrary::<i16>()?).into(),
        5 => Number::from_f64(u.arbitrary()?).map_or(Value::Null, Value::from),
        6 | 7 => word(u)?.into(),
        8 => (0..u.int_in_range(0..=4)?).map(|_| value(u, depth - 1)).collect::<Result<_>>()?,
        _ => {
            let mut members = Map::new();
            for _ in 0..u.int_in_range(0..=4)? {
                members.insert(word(u)?, value(u, depth - 1)?);
            }
            members.into()
        }
    })
}
