//! JSON, written: enough for this program, which has no other library than libc.

use std::fmt::Write;

/// A value, already as text.
pub struct Json(pub String);

pub fn string(text: &str) -> Json {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    Json(out)
}

pub fn number(value: impl std::fmt::Display) -> Json {
    Json(value.to_string())
}

pub fn list(items: impl IntoIterator<Item = Json>) -> Json {
    let items: Vec<String> = items.into_iter().map(|Json(text)| text).collect();
    Json(format!("[{}]", items.join(",")))
}

pub fn object(members: impl IntoIterator<Item = (String, Json)>) -> Json {
    let members: Vec<String> =
        members.into_iter().map(|(key, Json(value))| format!("{}:{value}", string(&key).0)).collect();
    Json(format!("{{{}}}", members.join(",")))
}
