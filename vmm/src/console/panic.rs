//! Catches the guest kernel's last words on the console. What it finds is the guest's claim, not the truth: a process
//! that may write to the console can say the same.

/// What the kernel's `panic()` prints.
const MARK: &[u8] = b"Kernel panic - not syncing: ";
/// The longest line that is looked at, in bytes.
const LINE_MAX: usize = 512;
/// The longest message that is kept, in bytes.
const MESSAGE_MAX: usize = 256;

/// Watches lines for a panic.
#[derive(Debug, Default)]
pub struct PanicMatcher {
    line: Vec<u8>,
    found: Option<String>,
}

impl PanicMatcher {
    /// Looks at the next bytes.
    pub fn watch(&mut self, bytes: &[u8]) {
        if self.found.is_some() {
            return;
        }
        for byte in bytes {
            if *byte == b'\n' {
                self.found = message_in(&self.line);
                if self.found.is_some() {
                    self.line = Vec::new();
                    return;
                }
                self.line.clear();
            } else if self.line.len() < LINE_MAX {
                self.line.push(*byte);
            }
        }
    }

    /// The first panic message so far, at most 256 bytes of printable ASCII; one whose line has not ended counts.
    pub fn message(&self) -> Option<String> {
        self.found.clone().or_else(|| message_in(&self.line))
    }
}

fn message_in(line: &[u8]) -> Option<String> {
    let start = line.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let message = line[start..].iter().take(MESSAGE_MAX);
    let printable = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
    Some(message.map(printable).collect::<String>().trim_end_matches('?').trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watched(parts: &[&[u8]]) -> Option<String> {
        let mut matcher = PanicMatcher::default();
        for part in parts {
            matcher.watch(part);
        }
        matcher.message()
    }

    #[test]
    fn the_first_panic_is_kept() {
        let text =
            b"[    0.5] Kernel panic - not syncing: VFS: no root\r\nKernel panic - not syncing: second\n";
        assert_eq!(watched(&[text]), Some("VFS: no root".into()));
    }

    #[test]
    fn a_line_without_end_counts() {
        assert_eq!(watched(&[b"Kernel panic - not syn", b"cing: test"]), Some("test".into()));
    }

    #[test]
    fn other_lines_are_nothing() {
        assert_eq!(watched(&[b"Kernel panic - not\n syncing: test\nfine\n"]), None);
        assert_eq!(watched(&[b"Kernel panic - syncing: test\n"]), None);
    }

    #[test]
    fn long_and_unprintable_words_are_bounded() {
        let line = [MARK, b"\x1b[31m", &b"z".repeat(5000)].concat();
        let message = watched(&[&line]).unwrap();
        assert_eq!(message.len(), MESSAGE_MAX);
        assert!(message.starts_with("?[31mzzz"));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(
            text in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'K'), any::<u8>()], 0..600),
            cut in 0..700_usize,
        ) {
            let text = [&text[..], b"\nKernel panic - not syncing: x\n"].concat();
            let cut = cut.min(text.len());
            let (whole, parts) = (watched(&[&text]), watched(&[&text[..cut], &text[cut..]]));
            prop_assert!(whole.is_some());
            prop_assert_eq!(whole, parts);
        }
    }
}
