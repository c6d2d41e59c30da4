//! The device filter of a cgroup: rules as an eBPF program, which the kernel asks at every mknod(2) and open(2) of a device
//! (kernel: admin-guide/cgroup-v2 "Device controller").
//!
//! The rules are gone through from the last to the first. Each settles the kinds of access that it speaks of and that are not
//! settled yet: one refused kind refuses all, and when every kind is allowed the access is.

use crate::spec::{DeviceKind, DeviceRule, DeviceRules, DeviceVerdict};
use crate::sys::bpf::Instruction;

const ALU_AND: u8 = 0x57;
const ALU_MOVE: u8 = 0xb7;
const ALU_MOVE_REGISTER: u8 = 0xbf;
const ALU_SHIFT_RIGHT: u8 = 0x77;
const LOAD_WORD: u8 = 0x61;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The program's answer.
const RESULT: u8 = 0;
/// `struct bpf_cgroup_dev_ctx`: the access and kind, the major and the minor number, 32 bits each.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The kinds of access that no rule has settled yet.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn with(code: u8, register: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset, immediate }
}

fn between(code: u8, to: u8, from: u8, offset: i16) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate: 0 }
}

fn answer(verdict: DeviceVerdict) -> [Instruction; 2] {
    let value = match verdict {
        DeviceVerdict::Allow => 1,
        DeviceVerdict::Deny => 0,
    };
    [with(ALU_MOVE, RESULT, 0, value), with(EXIT, 0, 0, 0)]
}

/// The program for `rules`.
pub fn program(rules: &DeviceRules) -> Vec<Instruction> {
    let mut program = vec![
        between(LOAD_WORD, KIND, CONTEXT, 0),
        between(ALU_MOVE_REGISTER, OPEN, KIND, 0),
        with(ALU_SHIFT_RIGHT, OPEN, 0, 16),
        with(ALU_AND, KIND, 0, 0xffff),
        between(LOAD_WORD, MAJOR, CONTEXT, 4),
        between(LOAD_WORD, MINOR, CONTEXT, 8),
    ];
    for rule in rules.0.iter().rev().filter(|rule| rule.access != 0) {
        program.extend(one(rule));
    }
    program.extend(answer(DeviceVerdict::Deny));
    program
}

fn one(rule: &DeviceRule) -> Vec<Instruction> {
    let access = i32::from(rule.access);
    let mut settle = match rule.verdict {
        DeviceVerdict::Allow => vec![with(ALU_AND, OPEN, 0, !access), with(JUMP_NOT_EQUAL, OPEN, 2, 0)],
        DeviceVerdict::Deny => vec![
            between(ALU_MOVE_REGISTER, SCRATCH, OPEN, 0),
            with(ALU_AND, SCRATCH, 0, access),
            with(JUMP_EQUAL, SCRATCH, 2, 0),
        ],
    };
    settle.extend(answer(rule.verdict));
    let kind = rule.kind.map(|kind| match kind {
        DeviceKind::Block => 1,
        DeviceKind::Char => 2,
    });
    let wanted = [(KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let mut instructions = Vec::new();
    let comparisons = wanted.into_iter().filter_map(|(register, value)| Some((register, value?)));
    for (register, value) in comparisons.rev() {
        // Over what is left of this rule: at most seven instructions.
        let skip = i16::try_from(settle.len() + instructions.len()).unwrap_or(i16::MAX);
        instructions.push(with(JUMP_NOT_EQUAL, register, skip, value));
    }
    instructions.reverse();
    instructions.extend(settle);
    instructions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::device_rules;

    /// What the kernel would do with the program.
    fn run(program: &[Instruction], access: u8, kind: DeviceKind, major: i32, minor: i32) -> bool {
        let kind = match kind {
            DeviceKind::Block => 1,
            DeviceKind::Char => 2,
        };
        let context = [i64::from(access) << 16 | kind, major.into(), minor.into()];
        let mut registers = [0i64; 10];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let immediate = i64::from(immediate);
            at += 1;
            let mut jump = |holds: bool| at += if holds { usize::try_from(offset).unwrap() } else { 0 };
            match code {
                LOAD_WORD => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                ALU_MOVE_REGISTER => registers[to] = registers[from],
                ALU_MOVE => registers[to] = immediate,
                ALU_AND => registers[to] &= immediate,
                ALU_SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_EQUAL => jump(registers[to] == immediate),
                JUMP_NOT_EQUAL => jump(registers[to] != immediate),
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn rule() -> impl Strategy<Value = DeviceRule> {
        let verdict = prop::sample::select(vec![DeviceVerdict::Allow, DeviceVerdict::Deny]);
        let kind = prop::sample::select(vec![None, Some(DeviceKind::Block), Some(DeviceKind::Char)]);
        let number = || prop::option::of(0..3i32);
        (verdict, kind, number(), number(), 0..8u8).prop_map(|(verdict, kind, major, minor, access)| {
            DeviceRule { verdict, kind, major, minor, access }
        })
    }

    proptest! {
        #[test]
        fn each_kind_of_access_is_what_the_last_rule_for_it_says(
            rules in prop::collection::vec(rule(), 0..12),
            access in 1..8u8, major in 0..3i32, minor in 0..3i32,
        ) {
            let rules = DeviceRules(rules);
            let program = program(&rules);
            for kind in [DeviceKind::Block, DeviceKind::Char] {
                let allowed = [1, 2, 4].iter().filter(|bit| access & **bit != 0).all(|bit| {
                    let last = rules.0.iter().rev().find(|rule| {
                        rule.covers(kind, major, minor) && rule.access & bit != 0
                    });
                    last.is_some_and(|rule| rule.verdict == DeviceVerdict::Allow)
                });
                prop_assert_eq!(run(&program, access, kind, major, minor), allowed);
            }
        }
    }

    #[test]
    fn what_runc_always_allows_is_allowed_whatever_the_spec_says() {
        let rules = device_rules(
            r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 8, "access": "r"}]"#,
        );
        let program = program(&rules.unwrap());
        let char = |access, major, minor| run(&program, access, DeviceKind::Char, major, minor);
        assert!(char(6, 1, 3) && char(7, 136, 42) && char(1, 10, 1));
        assert!(!char(2, 1, 1) && !char(6, 5, 1));
        let block = |access, major| run(&program, access, DeviceKind::Block, major, 0);
        assert!(block(2, 8) && block(1, 8));
        assert!(!block(6, 8) && !block(2, 9));
    }
}
