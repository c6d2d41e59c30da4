//! From rules to a program: for each architecture a binary search over ranges of system call numbers, whose leaves are verdicts
//! or comparisons of arguments.
//!
//! As libseccomp has it, a rule without conditions stands above those with conditions for the same call, and a call that only
//! rules with conditions name gets the default where none of them holds.

use std::collections::{BTreeMap, HashMap};

use crate::Error;
use crate::arch::{AUDIT_X86, AUDIT_X86_64, Architecture, X32_BIT};
use crate::bpf::{AT_LEAST, Assembler, EQUAL, GREATER, Instruction, Label};
use crate::profile::{Condition, Operator, Profile, Rule, Verdict};

/// `BPF_MAXINSNS`.
const INSTRUCTIONS_MAX: usize = 4096;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const ENOSYS: u16 = 38;

/// A program for seccomp(2) with the flags to install it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// At most 4096.
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

impl Filter {
    /// The program as an array of `struct sock_filter`.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.instructions.iter().flat_map(|instruction| instruction.to_bytes()).collect()
    }
}

/// Compiles `profile`. Also returns remarks for the log.
pub fn compile(profile: &Profile) -> Result<(Filter, Vec<String>), Error> {
    let mut notes = Vec::new();
    for name in profile.rules.iter().flat_map(|rule| &rule.names) {
        let known = [Architecture::X86_64, Architecture::X86]
            .iter()
            .any(|arch| arch.number(name).is_some() || arch.multiplexed(name).is_some());
        if !known {
            notes.push(format!("seccomp: system call {name:?} is unknown and ignored"));
        }
    }
    let includes = |architecture| profile.architectures.contains(&architecture);
    let mut table = Table::new(profile, Architecture::X86_64);
    if includes(Architecture::X32) {
        table.calls.append(&mut Table::new(profile, Architecture::X32).calls);
    } else {
        // The number that a tracer sets to have a call skipped; libseccomp spares it too.
        table.calls.insert(u32::MAX, Leaf::Verdict(profile.default));
        table.gaps.push((X32_BIT, Verdict::KILL_THREAD));
    }

    let mut program = Assembler::default();
    let refuse = program.verdict(Verdict::KILL_THREAD.0);
    let short = if includes(Architecture::X86) {
        Table::new(profile, Architecture::X86).write(&mut program, profile.default)
    } else {
        refuse
    };
    let short = program.branch(EQUAL, AUDIT_X86, short, refuse);
    let long = table.write(&mut program, profile.default);
    let start = program.branch(EQUAL, AUDIT_X86_64, long, short);
    let start = program.load(ARCHITECTURE, start);
    let instructions = program.finish(start);
    if instructions.len() > INSTRUCTIONS_MAX {
        return Err(Error::TooLong(instructions.len()));
    }
    Ok((Filter { instructions, flags: profile.flags }, notes))
}

/// What is decided about one call, or a range of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaf {
    Verdict(Verdict),
    /// The first whose conditions all hold.
    Tests(Vec<Test>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Test {
    conditions: Vec<Word>,
    verdict: Verdict,
}

/// A condition, with the width that its arguments are compared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word {
    condition: Condition,
    is_short: bool,
}

/// All calls of one `AUDIT_ARCH`.
struct Table {
    calls: BTreeMap<u32, Leaf>,
    /// From each number on, what calls get that are not in the map. In order.
    gaps: Vec<(u32, Verdict)>,
}

impl Table {
    fn new(profile: &Profile, architecture: Architecture) -> Self {
        let mut table = Self { calls: BTreeMap::new(), gaps: vec![(0, profile.default)] };
        let mut newest = None;
        for rule in &profile.rules {
            for name in &rule.names {
                let number = architecture.number(name);
                newest = newest.max(number);
                if rule.verdict != profile.default {
                    if let Some(number) = number {
                        table.add(number, rule, architecture);
                    }
                    table.add_multiplexed(name, rule, architecture);
                }
            }
        }
        if let (Some(newest), true) = (newest, profile.newer_is_missing) {
            table.gaps.push((newest + 1, Verdict::errno(ENOSYS)));
        }
        if architecture == Architecture::X32 {
            // Made part of the 64-bit table, whose gaps it gets; what is between the two belongs to nobody.
            table.close_gaps(profile.default, newest.filter(|_| profile.newer_is_missing));
        }
        table
    }

    /// Makes the gaps of the x32 numbers explicit.
    fn close_gaps(&mut self, default: Verdict, newest: Option<u32>) {
        /// More than any x32 call has.
        const LAST: u32 = X32_BIT + 0x3ff;
        for number in X32_BIT..=LAST {
            let missing = newest.is_some_and(|newest| number > newest);
            let verdict = if missing { Verdict::errno(ENOSYS) } else { default };
            self.calls.entry(number).or_insert(Leaf::Verdict(verdict));
        }
    }

    fn add(&mut self, number: u32, rule: &Rule, architecture: Architecture) {
        let word = |condition: &Condition| Word {
            condition: *condition,
            is_short: architecture.has_short_arguments(),
        };
        if rule.conditions.is_empty() {
            match self.calls.get(&number) {
                Some(Leaf::Verdict(_)) => {}
                _ => drop(self.calls.insert(number, Leaf::Verdict(rule.verdict))),
            }
            return;
        }
        let leaf = self.calls.entry(number).or_insert_with(|| Leaf::Tests(Vec::new()));
        let Leaf::Tests(tests) = leaf else { return };
        let repeated = rule.conditions.iter().enumerate().any(|(position, condition)| {
            rule.conditions[..position].iter().any(|before| before.index == condition.index)
        });
        if repeated {
            // runc's reading of two conditions on one argument: either will do.
            let each = rule.conditions.iter().map(|condition| vec![word(condition)]);
            tests.extend(each.map(|conditions| Test { conditions, verdict: rule.verdict }));
        } else {
            let conditions = rule.conditions.iter().map(word).collect();
            tests.push(Test { conditions, verdict: rule.verdict });
        }
    }

    /// A filter cannot read the arguments of a multiplexed call. So a rule with conditions says nothing about it where it
    /// would allow, and all of it where it would refuse. (libseccomp ignores the conditions in both cases.)
    fn add_multiplexed(&mut self, name: &str, rule: &Rule, architecture: Architecture) {
        let Some((number, value)) = architecture.multiplexed(name) else { return };
        if !rule.conditions.is_empty() && rule.verdict == Verdict::ALLOW {
            return;
        }
        let which = Condition { index: 0, operator: Operator::Equal, value, value_two: 0 };
        let rule = Rule { names: Vec::new(), verdict: rule.verdict, conditions: vec![which] };
        self.add(number, &rule, architecture);
    }

    /// Every number from 0 on: where each range begins, and what it gets. Neighbours differ.
    fn ranges(&self) -> Vec<(u32, Leaf)> {
        let gap = |number: u32| {
            let covering = self.gaps.iter().rev().find(|(start, _)| *start <= number);
            Leaf::Verdict(covering.map_or(Verdict::KILL_THREAD, |(_, verdict)| *verdict))
        };
        let mut starts: Vec<u32> = self.gaps.iter().map(|(start, _)| *start).collect();
        for number in self.calls.keys() {
            starts.push(*number);
            starts.extend(number.checked_add(1));
        }
        starts.sort_unstable();
        starts.dedup();
        let mut ranges: Vec<(u32, Leaf)> = Vec::new();
        for start in starts {
            let leaf = self.calls.get(&start).cloned().unwrap_or_else(|| gap(start));
            if ranges.last().is_none_or(|(_, before)| *before != leaf) {
                ranges.push((start, leaf));
            }
        }
        ranges
    }

    fn write(&self, program: &mut Assembler, default: Verdict) -> Label {
        let mut writer = Writer { program, default, tests: HashMap::new() };
        let search = writer.search(&self.ranges());
        program.load(NUMBER, search)
    }
}

/// Writes one table.
struct Writer<'a> {
    program: &'a mut Assembler,
    default: Verdict,
    /// Comparisons that are written already: calls with the same rules share them.
    tests: HashMap<Vec<Test>, Label>,
}

impl Writer<'_> {
    /// A balanced tree: the number is in the accumulator.
    fn search(&mut self, ranges: &[(u32, Leaf)]) -> Label {
        match ranges {
            [] => self.program.verdict(self.default.0),
            [(_, Leaf::Verdict(verdict))] => self.program.verdict(verdict.0),
            [(_, Leaf::Tests(tests))] => self.tests(tests),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let high_label = self.search(high);
                let low_label = self.search(low);
                self.program.branch(AT_LEAST, high[0].0, high_label, low_label)
            }
        }
    }

    fn tests(&mut self, tests: &[Test]) -> Label {
        if let Some(label) = self.tests.get(tests) {
            return *label;
        }
        let mut otherwise = self.program.verdict(self.default.0);
        for test in tests.iter().rev() {
            let verdict = self.program.verdict(test.verdict.0);
            let conditions = test.conditions.iter().rev();
            otherwise = conditions
                .fold(verdict, |holds, word| write_condition(self.program, *word, holds, otherwise));
        }
        self.tests.insert(tests.to_vec(), otherwise);
        otherwise
    }
}

fn halves(value: u64) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "each half")]
    ((value >> 32) as u32, value as u32)
}

fn write_condition(program: &mut Assembler, word: Word, holds: Label, fails: Label) -> Label {
    let Word { condition, is_short } = word;
    let argument = ARGUMENTS + 8 * u32::from(condition.index);
    let (low, high) = (argument, (!is_short).then_some(argument + 4));
    let value = condition.value;
    let order = Order { low, high, value };
    match condition.operator {
        Operator::Equal => equal(program, (low, high), value, u64::MAX, (holds, fails)),
        Operator::NotEqual => equal(program, (low, high), value, u64::MAX, (fails, holds)),
        Operator::MaskedEqual => {
            equal(program, (low, high), condition.value_two & value, value, (holds, fails))
        }
        Operator::Greater => order.write(program, GREATER, holds, fails),
        Operator::AtLeast => order.write(program, AT_LEAST, holds, fails),
        Operator::AtMost => order.write(program, GREATER, fails, holds),
        Operator::Less => order.write(program, AT_LEAST, fails, holds),
    }
}

/// Whether the argument, masked, is `value`. The high half is looked at first, if at all.
fn equal(
    program: &mut Assembler,
    (low, high): (u32, Option<u32>),
    value: u64,
    mask: u64,
    (yes, no): (Label, Label),
) -> Label {
    let (value_high, value_low) = halves(value);
    let (mask_high, mask_low) = halves(mask);
    let half = |program: &mut Assembler, offset, value, mask, yes| {
        let label = program.branch(EQUAL, value, yes, no);
        let label = if mask == u32::MAX { label } else { program.mask(mask, label) };
        program.load(offset, label)
    };
    // What is masked away entirely holds: the caller has masked the value too.
    let after = if mask_low == 0 { yes } else { half(program, low, value_low, mask_low, yes) };
    match high {
        Some(high) if mask_high != 0 => half(program, high, value_high, mask_high, after),
        _ => after,
    }
}

/// An argument that is compared by order.
struct Order {
    low: u32,
    high: Option<u32>,
    value: u64,
}

impl Order {
    /// Whether the argument is greater than the value, or at least as great: `comparison` says which.
    fn write(&self, program: &mut Assembler, comparison: u16, yes: Label, no: Label) -> Label {
        let (value_high, value_low) = halves(self.value);
        let label = program.branch(comparison, value_low, yes, no);
        let label = program.load(self.low, label);
        let Some(high) = self.high else { return label };
        let label = program.branch(EQUAL, value_high, label, no);
        let label = program.branch(GREATER, value_high, yes, label);
        program.load(high, label)
    }
}
