//! The seccomp profile: compiled here, once for a container and all its execs. The guest gets the program, not the rules.

use hull_seccomp::{Filter, Profile};
use oci_spec::runtime::Linux;

use super::SpecError;

/// Compiles the profile, if there is one, and leaves of it in the spec that there is one: the agent refuses a spec whose
/// filter was lost.
pub fn compile(linux: &mut Linux) -> Result<Option<Filter>, SpecError> {
    let Some(seccomp) = linux.seccomp() else { return Ok(None) };
    let malformed = |source| SpecError::Malformed { what: "linux.seccomp", source };
    let profile = Profile::from_json(&serde_json::to_vec(seccomp).map_err(malformed)?)?;
    let (filter, notes) = hull_seccomp::compile(&profile)?;
    for note in notes {
        log::info!("{note}");
    }
    let mut left = seccomp.clone();
    left.set_syscalls(None);
    linux.set_seccomp(Some(left));
    Ok(Some(filter))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_guest_gets_a_program_instead_of_rules() {
        let mut linux: Linux = serde_json::from_value(json!({"seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 2_114_060_288u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}}))
        .unwrap();
        let filter = compile(&mut linux).unwrap().unwrap();
        let verdict = |number, first| {
            let call = hull_seccomp::Call { arch: 0xc000_003e, number, args: [first, 0, 0, 0, 0, 0] };
            hull_seccomp::evaluate(&filter.instructions, &call).unwrap().0
        };
        const ALLOW: u32 = 0x7fff_0000;
        const ENOSYS: u32 = 0x0005_0026;
        assert_eq!((verdict(0, 0), verdict(2, 0)), (ALLOW, ENOSYS));
        assert_eq!((verdict(56, 17), verdict(56, 0x1000_0000)), (ALLOW, ENOSYS));
        let left = linux.seccomp().as_ref().unwrap();
        assert!(left.syscalls().is_none());
        assert!(compile(&mut Linux::default()).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_compiled_is_refused() {
        let mut linux: Linux =
            serde_json::from_value(json!({"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}})).unwrap();
        let error = compile(&mut linux).unwrap_err();
        assert_eq!(error.code(), ttrpc::proto::Code::UNIMPLEMENTED);
        assert!(error.to_string().contains("SCMP_ACT_NOTIFY"), "{error}");
    }
}
