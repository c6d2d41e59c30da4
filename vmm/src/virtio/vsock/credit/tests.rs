use proptest::prelude::*;

use super::*;

/// What both sides know and what really happened, in plain numbers.
#[derive(Default)]
struct Model {
    received: u64,
    forwarded: u64,
    /// The guest's view: the last announcement.
    announced: u64,
    sent: u64,
    taken: u64,
}

fn low(count: u64) -> u32 {
    u32::try_from(count & 0xffff_ffff).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    GuestSends(u32),
    HostReads(u32),
    Announce,
    WeSend(u32),
    GuestTakes(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..100_000_u32).prop_map(Step::GuestSends),
        (0..100_000_u32).prop_map(Step::HostReads),
        Just(Step::Announce),
        (0..100_000_u32).prop_map(Step::WeSend),
        (0..100_000_u32).prop_map(Step::GuestTakes),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Against a model with unbounded counters, from a start just before they wrap: what an honest guest sends is
    /// always accepted, the buffer is never exceeded, and a guest without room is always owed an update once some of
    /// its data has left.
    #[test]
    fn credit_is_kept_exactly(steps in steps(), buffer in 1_u32..300_000, guest_buffer in 0_u32..300_000) {
        let near = u32::MAX - 50_000;
        let mut credit = Credit::new(buffer);
        for counter in [&mut credit.received, &mut credit.forwarded, &mut credit.announced] {
            *counter = Wrapping(near);
        }
        credit.sent = Wrapping(near);
        let mut model = Model::default();
        let learn = |credit: &mut Credit, taken: u64| {
            let fwd_cnt = near.wrapping_add(low(taken));
            credit.learn(&Header { buf_alloc: guest_buffer, fwd_cnt, ..Header::default() });
        };
        learn(&mut credit, 0);
        for step in steps {
            match step {
                Step::GuestSends(count) => {
                    let held = model.received - model.forwarded;
                    let accepted = credit.on_received(count).is_ok();
                    prop_assert_eq!(accepted, held + u64::from(count) <= u64::from(buffer));
                    if accepted {
                        model.received += u64::from(count);
                    }
                }
                Step::HostReads(count) => {
                    let count = u64::from(count).min(model.received - model.forwarded);
                    model.forwarded += count;
                    credit.on_forwarded(low(count));
                }
                Step::Announce => {
                    let mut header = Header::default();
                    credit.announce(&mut header);
                    model.announced = model.forwarded;
                    prop_assert_eq!(header.buf_alloc, buffer);
                    prop_assert_eq!(header.fwd_cnt, near.wrapping_add(low(model.forwarded)));
                }
                Step::WeSend(count) => {
                    let count = count.min(credit.guest_room());
                    credit.on_sent(count);
                    model.sent += u64::from(count);
                }
                Step::GuestTakes(count) => {
                    model.taken += u64::from(count).min(model.sent - model.taken);
                    learn(&mut credit, model.taken);
                }
            }
            let room = u64::from(guest_buffer) - (model.sent - model.taken);
            prop_assert_eq!(u64::from(credit.guest_room()), room);
            // What the guest believes it may send always fits.
            let seen = u64::from(buffer).saturating_sub(model.received - model.announced);
            prop_assert!(model.received - model.forwarded + seen <= u64::from(buffer));
            if seen == 0 && model.forwarded != model.announced {
                prop_assert!(credit.update_is_due(), "the guest waits for ever");
            }
        }
    }

    /// Lies can stop us, and never make us send more than the guest says it has.
    #[test]
    fn lies_never_make_room(buf_alloc: u32, fwd_cnt: u32, sent: u32) {
        let mut credit = Credit::new(0);
        credit.on_sent(sent);
        credit.learn(&Header { buf_alloc, fwd_cnt, ..Header::default() });
        prop_assert!(credit.guest_room() <= buf_alloc);
    }
}
