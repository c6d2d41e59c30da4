//! Classic BPF, written backwards: every jump goes forward, so its target is known when the jump is written.

use std::collections::HashMap;

/// One instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Instruction {
    /// As the kernel reads it on a little-endian machine.
    pub fn to_bytes(self) -> [u8; 8] {
        let [c0, c1] = self.code.to_le_bytes();
        let [k0, k1, k2, k3] = self.k.to_le_bytes();
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// `BPF_LD | BPF_W | BPF_ABS`: accumulator = the word at offset k.
pub const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`: accumulator &= k.
pub const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`: skips k instructions.
pub const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`: accumulator == k.
pub const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`: accumulator > k, unsigned.
pub const GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`: accumulator >= k, unsigned.
pub const AT_LEAST: u16 = 0x35;
/// `BPF_RET | BPF_K`: ends with verdict k.
pub const RETURN: u16 = 0x06;

/// How far a conditional jump may be aimed. It could reach 255; the rest is for the steps that are inserted on the way.
const REACH: usize = 250;

/// A place in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// A program that grows at its front.
#[derive(Debug, Default)]
pub struct Assembler {
    /// The last instruction first.
    reversed: Vec<Instruction>,
    /// The foremost return of each verdict.
    returns: HashMap<u32, Label>,
}

impl Assembler {
    /// A place that ends with `verdict`.
    pub fn verdict(&mut self, verdict: u32) -> Label {
        match self.returns.get(&verdict) {
            Some(label) if self.distance(*label) <= REACH => *label,
            _ => {
                let label = self.push(RETURN, 0, 0, verdict);
                self.returns.insert(verdict, label);
                label
            }
        }
    }

    /// Loads the word at `offset` of the call's data, then goes to `next`.
    pub fn load(&mut self, offset: u32, next: Label) -> Label {
        self.plain(LOAD, offset, next)
    }

    /// Masks the accumulator, then goes to `next`.
    pub fn mask(&mut self, mask: u32, next: Label) -> Label {
        self.plain(AND, mask, next)
    }

    fn plain(&mut self, code: u16, k: u32, next: Label) -> Label {
        if self.distance(next) > 0 {
            self.jump(next);
        }
        self.push(code, 0, 0, k)
    }

    /// Compares the accumulator with `k` and goes to `yes` or `no`.
    pub fn branch(&mut self, comparison: u16, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        let yes = self.near(yes);
        let no = self.near(no);
        let (jt, jf) = (self.short(yes), self.short(no));
        self.push(comparison, jt, jf, k)
    }

    /// The whole program, beginning at `start`.
    pub fn finish(mut self, start: Label) -> Vec<Instruction> {
        if self.distance(start) > 0 {
            self.jump(start);
        }
        self.reversed.reverse();
        self.reversed
    }

    /// How many instructions a jump written now would skip.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - 1 - to.0
    }

    /// A place within reach that leads to `label`.
    fn near(&mut self, label: Label) -> Label {
        if self.distance(label) <= REACH {
            return label;
        }
        let target = self.reversed[label.0];
        // A return is as short as a jump to one.
        if target.code == RETURN { self.verdict(target.k) } else { self.jump(label) }
    }

    fn jump(&mut self, to: Label) -> Label {
        // No program is longer than the instructions that fit in memory, which is less than 2^32 of them.
        let distance = u32::try_from(self.distance(to)).unwrap_or(u32::MAX);
        self.push(JUMP, 0, 0, distance)
    }

    fn short(&self, to: Label) -> u8 {
        u8::try_from(self.distance(to)).unwrap_or_else(|_| unreachable!("the target was brought near"))
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        Label(self.reversed.len() - 1)
    }
}
