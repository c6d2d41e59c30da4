//! Compiles the allow-lists of [`filters`](super::filters) and closes them around a thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::filters::{Argument, NEVER, Role, Test};

/// Why a filter does not close.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The list cannot be expressed.
    #[error("the system call filter cannot be compiled")]
    Compile(#[from] BackendError),
    /// The kernel refused it.
    #[error("the kernel does not take the system call filter")]
    Install(#[source] seccompiler::Error),
}

/// A compiled filter, to be closed around any number of threads.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Arc<BpfProgram>,
}

impl Filter {
    /// Compiles a role's list. [`denied::report`](super::denied::report) must have been called before a thread closes
    /// it around itself, or a denied call is not named.
    pub fn of(role: Role) -> Result<Self, FilterError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for rule in role.rules() {
            let alternatives = rules.entry(rule.call).or_default();
            if !rule.when.is_empty() {
                let conditions = rule.when.iter().map(condition).collect::<Result<_, _>>()?;
                alternatives.push(SeccompRule::new(conditions)?);
            }
        }
        let filter =
            SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
        Ok(Self { program: Arc::new(filter.try_into()?) })
    }

    /// Compiles the list of what is denied to every thread.
    pub fn of_never() -> Result<Self, FilterError> {
        let rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
        let filter =
            SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trap, TargetArch::x86_64)?;
        Ok(Self { program: Arc::new(filter.try_into()?) })
    }

    /// Closes the filter around the calling thread, for good, and around those that it starts.
    pub fn close(&self) -> Result<(), FilterError> {
        seccompiler::apply_filter(&self.program).map_err(FilterError::Install)
    }
}

fn condition(argument: &Argument) -> Result<SeccompCondition, BackendError> {
    let (operator, value) = match argument.test {
        Test::Is(value) => (SeccompCmpOp::Eq, value),
        Test::Lacks(bits) => (SeccompCmpOp::MaskedEq(bits.into()), 0),
        Test::Has(bits) => (SeccompCmpOp::MaskedEq(bits.into()), bits),
        Test::IsThisProcess => (SeccompCmpOp::Eq, std::process::id()),
    };
    SeccompCondition::new(argument.index, SeccompCmpArgLen::Dword, operator, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_filter() {
        for role in Role::ALL {
            let filter = Filter::of(role).unwrap();
            // The kernel's limit is 4,096 instructions.
            assert!(filter.program.len() < 1024, "{role:?}: {}", filter.program.len());
        }
        Filter::of_never().unwrap();
    }
}
