//! Random numbers that are the same each time.

/// A sequence of numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    /// From 0 to below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).unwrap() % end
    }

    /// Any.
    pub fn any(&mut self) -> u32 {
        self.below(u32::MAX)
    }
}
