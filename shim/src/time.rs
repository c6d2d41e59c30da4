//! Points in time as the protocols and records write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;

/// A protobuf timestamp.
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    MessageField::some(Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Timestamp::default()
    })
}

/// Nanoseconds since the epoch to a point in time; the past before it and the far future are the epoch.
pub fn from_nanos(nanos: i64) -> SystemTime {
    u64::try_from(nanos).map_or(UNIX_EPOCH, |nanos| UNIX_EPOCH + Duration::from_nanos(nanos))
}

/// RFC 3339 in UTC, with nanoseconds.
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// Reads what [`rfc3339`] wrote.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = rest.split_once('.').unwrap_or((rest, "0"));
    let numbers = |text: &str, separator| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text.split(separator).map(str::parse).collect::<Result<_, _>>().ok()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    if !(1970..10_000).contains(&year) || !(1..13).contains(&month) || !(1..32).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    // Month lengths differ by at most three days from 31: search from the first day that is surely not later.
    let earliest = (year - 1970) * 365;
    let days = (earliest..earliest + 3_000).find(|&days| civil(days) == (year, month, day))?;
    Some(UNIX_EPOCH + Duration::new(days * 86_400 + hour * 3_600 + minute * 60 + second, nanos))
}

/// The Gregorian date `days` after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that begin in March make the leap day the last: 400 of them are 146,097 days.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0u64..100_000_000_000, nanos in 0u32..1_000_000_000) {
            let at = UNIX_EPOCH + Duration::new(seconds, nanos);
            prop_assert_eq!(parse_rfc3339(&rfc3339(at)), Some(at));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_rfc3339(&text);
        }
    }
}
