//! Ages and sizes for people, in docker's words.

use super::time;

/// "About a minute", "3 hours", "2 weeks": how long ago `time` (RFC 3339) was; `None` if that is no time.
pub fn human_age(time: &str) -> Option<String> {
    time::seconds_since(time).map(duration)
}

fn duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// "124MB": three digits, powers of 1000.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut scale = 1;
    let mut unit = 0;
    let bytes = u128::from(bytes);
    while unit + 1 < UNITS.len() && bytes / scale >= 1000 {
        scale *= 1000;
        unit += 1;
    }
    let whole = bytes / scale;
    let thousandths = bytes % scale * 1000 / scale;
    let decimals = match whole {
        _ if unit == 0 || whole >= 100 => return format!("{whole}{}", UNITS[unit]),
        10.. => format!("{:01}", thousandths / 100),
        _ => format!("{:02}", thousandths / 10),
    };
    match decimals.trim_end_matches('0') {
        "" => format!("{whole}{}", UNITS[unit]),
        decimals => format!("{whole}.{decimals}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (180, "3 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86400, "24 hours"),
            (3 * 86400, "3 days"),
            (21 * 86400, "3 weeks"),
            (90 * 86400, "3 months"),
            (1000 * 86400, "2 years"),
        ] {
            assert_eq!(duration(seconds), words);
        }
        assert_eq!(human_age("no time"), None);
    }

    #[test]
    fn sizes() {
        for (bytes, words) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_500, "1.5kB"),
            (12_340, "12.3kB"),
            (124_000_000, "124MB"),
            (1_050_000_000, "1.05GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(human_size(bytes), words);
        }
    }
}
