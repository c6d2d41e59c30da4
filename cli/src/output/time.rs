//! Points in time as text: RFC 3339 in UTC with nine decimals, so that texts sort as times do.

use jiff::Timestamp;

/// Now.
pub fn now() -> String {
    write(Timestamp::now())
}

/// A point in time as a protobuf timestamp has it; empty if it is none.
pub fn from_unix(seconds: i64, nanos: i32) -> String {
    Timestamp::new(seconds, nanos).map(write).unwrap_or_default()
}

fn write(time: Timestamp) -> String {
    format!("{time:.9}")
}

/// Seconds since the time that `text` names; `None` if it names none or lies ahead.
pub fn seconds_since(text: &str) -> Option<u64> {
    let then: Timestamp = text.parse().ok()?;
    u64::try_from(Timestamp::now().as_second() - then.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(from_unix(0, 1_000), "1970-01-01T00:00:00.000001000Z");
        assert_eq!(now().len(), "1970-01-01T00:00:00.000000000Z".len());
        assert!(now() <= now());
        assert_eq!(seconds_since(&now()), Some(0));
        assert_eq!(seconds_since("9999-01-01T00:00:00Z"), None);
        assert_eq!(seconds_since("yesterday"), None);
        assert!(seconds_since("1970-01-01T01:00:00+01:00").unwrap() > 1_600_000_000);
    }
}
