//! Numbers with units as docker writes them on the command line: bytes, CPUs, limits.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: `64m`, `1.5g`, `512`, `10 MiB`. Suffixes are powers of 1024, whatever their spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Why a text is not a number of bytes, CPUs or processes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a size.
    #[error("expected a number of bytes with the suffix b, k, m, g or t, for example 512m")]
    Bytes,
    /// A size beyond what can be counted.
    #[error("the number is too large")]
    TooLarge,
    /// Not a number of CPUs.
    #[error("expected a number of CPUs, at least 0.01 and with at most 9 decimals, for example 1.5")]
    Cpus,
    /// Not a limit.
    #[error("expected a positive number, or -1 for no limit")]
    Pids,
}

impl FromStr for Bytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let suffix = suffix.strip_prefix(' ').unwrap_or(suffix).to_ascii_lowercase();
        let shift = match suffix.as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" | "ki" => 10,
            "m" | "mb" | "mib" | "mi" => 20,
            "g" | "gb" | "gib" | "gi" => 30,
            "t" | "tb" | "tib" | "ti" => 40,
            "p" | "pb" | "pib" | "pi" => 50,
            _ => return Err(QuantityError::Bytes),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Bytes);
        }
        let parse = |digits: &str| digits.parse::<u128>().map_err(|_| QuantityError::TooLarge);
        // Twelve decimals say more than a byte of a tebibyte; what lies behind them cannot matter.
        let fraction = &fraction[..fraction.len().min(12)];
        let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let part = if fraction.is_empty() { 0 } else { parse(fraction)? << shift };
        let total = parse(whole)?.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(part / scale));
        total
            .and_then(|bytes| i64::try_from(bytes).ok())
            .map(|bytes| Self(bytes.unsigned_abs()))
            .ok_or(QuantityError::TooLarge)
    }
}

/// A number of CPUs, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus {
    nano: u64,
}

impl Cpus {
    const ONE: u64 = 1_000_000_000;

    /// Whole CPUs, rounded up.
    pub fn ceil(self) -> u64 {
        self.nano.div_ceil(Self::ONE)
    }

    /// The CFS quota in microseconds for a period of [`Self::PERIOD_US`].
    pub fn quota_us(self) -> u64 {
        self.nano / (Self::ONE / Self::PERIOD_US)
    }

    /// The CFS period in microseconds.
    pub const PERIOD_US: u64 = 100_000;
}

impl FromStr for Cpus {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole)
            || !digits(fraction)
            || fraction.len() > 9
            || (whole.is_empty() && fraction.is_empty())
        {
            return Err(QuantityError::Cpus);
        }
        let whole: u64 =
            if whole.is_empty() { 0 } else { whole.parse().map_err(|_| QuantityError::TooLarge)? };
        let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| QuantityError::Cpus)?;
        let nano = whole
            .checked_mul(Self::ONE)
            .and_then(|n| n.checked_add(fraction))
            .ok_or(QuantityError::TooLarge)?;
        // Below this the quota is under the kernel's minimum of one millisecond.
        if nano < Self::ONE / 100 { Err(QuantityError::Cpus) } else { Ok(Self { nano }) }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:09}", self.nano % Self::ONE);
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{}", self.nano / Self::ONE),
            fraction => write!(f, "{}.{fraction}", self.nano / Self::ONE),
        }
    }
}

/// The most processes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidsLimit {
    /// As many as the guest's kernel allows.
    Unlimited,
    /// This many.
    At(u32),
}

impl PidsLimit {
    /// Enough for any service, few enough that a fork bomb does not take the guest's kernel down with it.
    pub const DEFAULT: Self = Self::At(4096);

    /// As the runtime specification writes it: -1 is no limit.
    pub fn to_spec(self) -> i64 {
        match self {
            Self::Unlimited => -1,
            Self::At(limit) => i64::from(limit),
        }
    }
}

impl FromStr for PidsLimit {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        match text.parse::<i64>() {
            Ok(-1 | 0) => Ok(Self::Unlimited),
            Ok(limit) => u32::try_from(limit).map(Self::At).map_err(|_| QuantityError::Pids),
            Err(_) => Err(QuantityError::Pids),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("32", 32),
            ("32b", 32),
            ("64k", 65536),
            ("64 KiB", 65536),
            ("64m", 64 << 20),
            ("1.5G", 3 << 29),
            ("0.5k", 512),
            ("1tb", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in
            ["", "m", "-1", "1..5", "1.", ".5m", "1x", "1  m", "1 m ", "0x10", "1e3", "99999999p", "1kbb"]
        {
            assert!(text.parse::<Bytes>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn cpus() {
        let half: Cpus = "0.5".parse().unwrap();
        assert_eq!((half.nano, half.ceil(), half.quota_us()), (500_000_000, 1, 50_000));
        let more: Cpus = "2.25".parse().unwrap();
        assert_eq!((more.ceil(), more.quota_us(), more.to_string()), (3, 225_000, "2.25".to_owned()));
        assert_eq!(".5".parse::<Cpus>(), Ok(half));
        for text in ["", ".", "0", "0.001", "-1", "1.2.3", "1e2", "0.0000000001", "99999999999999999999"] {
            assert!(text.parse::<Cpus>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn pids() {
        assert_eq!("-1".parse(), Ok(PidsLimit::Unlimited));
        assert_eq!("0".parse(), Ok(PidsLimit::Unlimited));
        assert_eq!("100".parse(), Ok(PidsLimit::At(100)));
        assert!("-2".parse::<PidsLimit>().is_err());
        assert!("many".parse::<PidsLimit>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Cpus>();
            let _ = text.parse::<PidsLimit>();
        }

        #[test]
        fn whole_numbers_scale_exactly(number in 0_u64..1 << 20, (suffix, shift) in prop::sample::select(
            vec![("", 0), ("b", 0), ("k", 10), ("K", 10), ("m", 20), ("MiB", 20), ("g", 30), ("gb", 30), ("t", 40)]
        )) {
            prop_assert_eq!(format!("{number}{suffix}").parse(), Ok(Bytes(number << shift)));
        }

        #[test]
        fn fractions_round_down(whole in 0_u64..4096, thousandths in 0_u64..1000) {
            let Bytes(bytes) = format!("{whole}.{thousandths:03}m").parse().unwrap();
            prop_assert_eq!(bytes, (whole << 20) + (thousandths << 20) / 1000);
        }

        #[test]
        fn cpus_survive_printing(nano in 10_000_000_u64..64_000_000_000) {
            let cpus = Cpus { nano };
            prop_assert_eq!(cpus.to_string().parse(), Ok(cpus));
        }
    }
}
