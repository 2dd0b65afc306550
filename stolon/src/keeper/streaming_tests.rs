use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn look(stream: &mut Stream, seen: Option<Option<i32>>, now: Instant) -> Next {
    stream.update(seen, 0, now)
}

#[test]
fn a_standby_that_replays_what_it_has_is_not_broken() {
    let (start, mut stream) = (Instant::now(), Stream::default());
    for second in 0..60 {
        assert!(matches!(stream.update(Some(None), u64::from(second) + 7, start + second * SECOND), Next::Look(_)));
    }
    let end = start + 59 * SECOND;
    assert_eq!(stream.update(Some(None), 66, end + PATIENCE), Next::Broken(end));
}

#[test]
fn a_short_break_is_no_problem() {
    let (start, mut stream) = (Instant::now(), Stream::default());
    assert_eq!(look(&mut stream, Some(Some(7)), start), Next::Fine);
    assert_eq!(look(&mut stream, Some(None), start + SECOND), Next::Look(start + SECOND + PATIENCE));
    assert_eq!(look(&mut stream, Some(Some(8)), start + 6 * SECOND), Next::Look(start + 6 * SECOND + STEADY));
    assert_eq!(look(&mut stream, Some(Some(8)), start + 9 * SECOND), Next::Fine);
    // The next break counts from its own beginning.
    assert_eq!(look(&mut stream, Some(None), start + 60 * SECOND), Next::Look(start + 60 * SECOND + PATIENCE));
}

#[test]
fn a_break_that_lasts_is_one_until_a_receiver_lasts() {
    let (start, mut stream) = (Instant::now(), Stream::default());
    assert_eq!(look(&mut stream, Some(None), start), Next::Look(start + PATIENCE));
    assert_eq!(look(&mut stream, Some(None), start + PATIENCE), Next::Broken(start));
    // Receivers that come and go don't end it.
    let again = start + PATIENCE + SECOND;
    assert_eq!(look(&mut stream, Some(Some(7)), again), Next::Look(again + STEADY));
    assert_eq!(look(&mut stream, Some(None), again + SECOND), Next::Broken(start));
    assert_eq!(look(&mut stream, Some(Some(8)), again + 2 * SECOND), Next::Look(again + 2 * SECOND + STEADY));
    assert_eq!(look(&mut stream, Some(Some(9)), again + 4 * SECOND), Next::Look(again + 4 * SECOND + STEADY));
    assert_eq!(look(&mut stream, Some(Some(9)), again + 4 * SECOND + STEADY), Next::Fine);
}

#[test]
fn receivers_that_change_with_each_look_do_not_work() {
    let (start, mut stream) = (Instant::now(), Stream::default());
    for second in 0..30_u32 {
        let next = look(&mut stream, Some(Some(second.cast_signed() + 2)), start + second * SECOND);
        assert_eq!(next == Next::Fine, second == 0, "{second}");
    }
    assert_eq!(look(&mut stream, Some(None), start + 30 * SECOND), Next::Broken(start + SECOND));
}

#[test]
fn who_need_not_receive_has_no_problem() {
    let (start, mut stream) = (Instant::now(), Stream::default());
    look(&mut stream, Some(None), start);
    assert_eq!(look(&mut stream, None, start + PATIENCE), Next::Fine);
    assert_eq!(look(&mut stream, Some(None), start + PATIENCE), Next::Look(start + PATIENCE + PATIENCE));
}

#[test]
fn slots_are_judged() {
    let judge = |answer: &str| judge_slot("s", answer, 0x300_0000);
    assert!(judge("||\n").contains("is not there"));
    assert!(judge("").contains("is not there"));
    assert!(judge("physical||\n").contains("keeps no WAL"));
    assert!(judge("physical|0/3000001|1\n").contains("later position"));
    assert!(judge("physical|0/3000000|1\n").contains("works"));
}

#[test]
fn settings_and_messages_lose_their_wrapping() {
    let text = "primary_conninfo = 'host=h options=''-c a=b'' user=r'\nprimary_slot_name = ''\n";
    assert_eq!(setting(text, "primary_conninfo").as_deref(), Some("host=h options='-c a=b' user=r"));
    assert_eq!(setting(text, "primary_slot_name"), None);
    assert_eq!(refusal("psql: error: connection failed: FATAL:  x"), "connection failed: FATAL:  x");
    assert_eq!(begin("since 2026-11-21T18:00:00Z no WAL"), Some("2026-11-21T18:00:00Z"));
}

proptest! {
    #[test]
    fn any_answer_is_borne(answer: String) {
        let _ = (judge_slot("s", &answer, 7), refusal(&answer).len(), begin(&answer), setting(&answer, "a"));
    }
}
