//! Numbers as LEB128, byte strings with their length.

/// Appends to a buffer.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    pub(super) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push((value & 0x7f) as u8);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    /// Bytes whose length the reader knows.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Takes from a slice; every error names what was being read.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A number that is at most `max`.
    pub(super) fn number<T>(&mut self, max: T, what: &'static str) -> Result<T, &'static str>
    where
        T: TryFrom<u64> + PartialOrd + Copy,
    {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or("cut off")?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(what);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return T::try_from(value).ok().filter(|value| *value <= max).ok_or(what);
            }
        }
        Err(what)
    }

    /// A byte string of at most `max` bytes.
    pub(super) fn bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], &'static str> {
        let length = self.number(max, what)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or("cut off")?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or("cut off")?;
        self.rest = rest;
        Ok(*bytes)
    }
}
