//! Which trace a span belongs to (W3C Trace Context, level 1).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

/// By which a client says its span, in a request's metadata.
const HEADER: &str = "traceparent";
/// The flag of one that is recorded (§ 3.2.2.5.1).
const SAMPLED: u8 = 1;

/// The client's span, if the request names one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parent(Option<Remote>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remote {
    trace: u128,
    span: u64,
    flags: u8,
}

/// Whether there is to be a span.
pub enum Sampled {
    /// The client does not record its own.
    No,
    /// Here.
    Yes(Context),
}

/// A span's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Of all spans of a trace.
    pub trace: u128,
    /// Of this one.
    pub span: u64,
    /// Of the one above it.
    pub parent: Option<u64>,
}

impl Parent {
    /// What a request's metadata says. What cannot be understood is as if it were not there (§ 4.3).
    pub fn of(metadata: &HashMap<String, Vec<String>>) -> Self {
        let value = metadata.get(HEADER).and_then(|values| values.first());
        Self(value.and_then(|value| Remote::parse(value)))
    }
}

impl Remote {
    /// `00-<trace>-<span>-<flags>`; later versions may have more behind it (§ 3.2.4).
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = lower_hex(parts.next()?, 2)?;
        let trace = lower_hex(parts.next()?, 32)?;
        let span = u64::try_from(lower_hex(parts.next()?, 16)?).ok()?;
        let flags = u8::try_from(lower_hex(parts.next()?, 2)?).ok()?;
        let known = version != 0xff && (version > 0 || parts.next().is_none());
        (known && trace != 0 && span != 0).then_some(Self { trace, span, flags })
    }
}

fn lower_hex(text: &str, digits: usize) -> Option<u128> {
    let fits = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if fits { u128::from_str_radix(text, 16).ok() } else { None }
}

impl Context {
    /// A span below the client's, or one of a trace of its own.
    pub fn below(parent: &Parent) -> Sampled {
        match parent.0 {
            Some(Remote { flags, .. }) if flags & SAMPLED == 0 => Sampled::No,
            Some(Remote { trace, span, .. }) => {
                Sampled::Yes(Self { trace, span: random(), parent: Some(span) })
            }
            None => {
                let trace = u128::from(random()) << 64 | u128::from(random());
                Sampled::Yes(Self { trace, span: random(), parent: None })
            }
        }
    }

    /// A span below this one.
    pub fn child(self) -> Self {
        Self { trace: self.trace, span: random(), parent: Some(self.span) }
    }
}

/// A number that is not 0, which would be no id.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // It is always there, and there is nothing to lose but a trace.
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    u64::from_ne_bytes(bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn parent(value: &str) -> Parent {
        Parent::of(&[(HEADER.to_owned(), vec![value.to_owned()])].into())
    }

    #[test]
    fn a_span_is_below_the_clients() {
        let Sampled::Yes(context) = Context::below(&parent(&format!("00-{TRACE}-00f067aa0ba902b7-01")))
        else {
            panic!("no span")
        };
        assert_eq!(format!("{:032x}", context.trace), TRACE);
        assert_eq!(context.parent, Some(0x00f0_67aa_0ba9_02b7));
        let child = context.child();
        assert_eq!((child.trace, child.parent), (context.trace, Some(context.span)));
        assert_ne!(child.span, context.span);
    }

    #[test]
    fn what_the_client_does_not_record_is_not_recorded() {
        let parent = parent(&format!("00-{TRACE}-00f067aa0ba902b7-02"));
        assert!(matches!(Context::below(&parent), Sampled::No));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        assert_ne!(parent(&format!("cc-{TRACE}-00f067aa0ba902b7-01-more")), Parent::default());
    }

    #[test]
    fn nonsense_is_no_parent() {
        let zeros = "0".repeat(32);
        for text in [
            "",
            "00",
            &format!("00-{TRACE}-00f067aa0ba902b7"),
            &format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            &format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            &format!("00-{zeros}-00f067aa0ba902b7-01"),
            &format!("00-{TRACE}-0000000000000000-01"),
            &format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            &format!("00-+{}-00f067aa0ba902b7-01", &TRACE[1..]),
        ] {
            assert_eq!(parent(text), Parent::default(), "{text}");
        }
        assert_eq!(Parent::of(&HashMap::new()), Parent::default());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[0-9a-f-]{0,80}|.{0,60}") {
            let _ = Context::below(&parent(&text));
        }
    }
}
