//! What a subscriber's queue promises.

use super::*;

/// Bytes that are not a frame.
pub fn frame(text: &str) -> Frame {
    Frame::raw(text.to_string())
}

/// Nobody is woken.
pub fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[test]
fn a_frame_beyond_the_limit_ends_the_stream_and_frees_the_queue() {
    let subscriber = Subscriber::new(10);
    assert_eq!(subscriber.push(frame("a frame larger than the limit")), Pushed::Waiting(29));
    assert_eq!(subscriber.push(frame("x")), Pushed::Overflow);
    assert_eq!(subscriber.push(frame("x")), Pushed::Ended);
    assert_eq!(subscriber.ended(), Some(End::Overflow));
    assert_eq!(subscriber.poll_frames(&noop(), 0), Poll::Ready(None));
}

#[test]
fn written_bytes_make_room_again() {
    let subscriber = Subscriber::new(10);
    assert_eq!(subscriber.push(frame("12345678")), Pushed::Waiting(8));
    assert!(subscriber.poll_frames(&noop(), 0).is_ready());
    assert!(subscriber.poll_frames(&noop(), 8).is_pending());
    assert_eq!(subscriber.push(frame("12345678")), Pushed::Waiting(8));
}

#[test]
fn a_heartbeat_that_is_not_sent_for_an_interval_ends_the_stream() {
    let (plain, at) = (frame("plain"), frame("at"));
    let subscriber = Subscriber::new(10);
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Alive);
    assert_eq!(subscriber.poll_frames(&noop(), 0), Poll::Ready(Some([plain.clone()].into())));
    assert!(subscriber.poll_frames(&noop(), plain.len()).is_pending());
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Alive);
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Stalled);
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Ended);
    assert_eq!(subscriber.ended(), Some(End::Stalled));
}

#[test]
fn a_stream_that_has_just_begun_is_not_stalled() {
    let (plain, at) = (frame("plain"), frame("at"));
    let subscriber = Subscriber::new(100);
    subscriber.push(frame("hello"));
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Alive);
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Stalled);
}

#[test]
fn a_dismissed_stream_keeps_its_head_and_drops_what_waits() {
    let subscriber = Subscriber::new(100);
    subscriber.push(Frame::message(None, "a secret"));
    subscriber.prepend(frame("HTTP/1.1 200 OK"));
    let last = Frame::message(None, "last");
    assert!(subscriber.dismiss(last.clone()) && !subscriber.dismiss(last.clone()));
    let Poll::Ready(Some(frames)) = subscriber.poll_frames(&noop(), 0) else { panic!("nothing waits") };
    assert_eq!(frames, [frame("HTTP/1.1 200 OK"), last, Frame::end()]);
    let size = frames.iter().map(Frame::len).sum();
    assert_eq!((subscriber.waiting(), subscriber.poll_frames(&noop(), size)), (size, Poll::Ready(None)));
    assert_eq!(subscriber.waiting(), 0);
}

#[test]
fn a_finished_stream_has_an_interval_for_its_last_bytes() {
    let (plain, at) = (frame("plain"), frame("at"));
    let subscriber = Subscriber::new(100);
    subscriber.push(frame("goodbye"));
    subscriber.close(End::Finished);
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Alive);
    assert!(subscriber.poll_blocked(&noop(), 1).is_pending());
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Alive);
    assert_eq!(subscriber.beat(&plain, &at), Pulse::Stalled);
    assert!(subscriber.poll_blocked(&noop(), 0).is_ready());
}

#[test]
fn a_slow_client_that_still_reads_is_kept() {
    let (plain, at) = (frame("plain"), frame("at"));
    let subscriber = Subscriber::new(100);
    subscriber.push(frame("0123456789"));
    for _ in 0..5 {
        assert!(subscriber.poll_blocked(&noop(), 1).is_pending());
        assert_eq!(subscriber.beat(&plain, &at), Pulse::Alive);
    }
}

/// Checks nothing.
#[derive(Debug)]
pub struct Anyone;

impl Guardian for Anyone {
    fn ask_again(&self, _: usize) {}
}

fn held(limit: usize) -> Arc<Subscriber> {
    let subscriber = Subscriber::new(limit);
    subscriber.guard(Arc::new(Anyone), 0, 1);
    subscriber.push(frame("before"));
    assert_eq!(subscriber.push(Frame::recheck(2, false)), Pushed::Noted);
    assert_eq!(subscriber.push(frame("behind")), Pushed::Waiting(12));
    subscriber
}

#[test]
fn what_is_held_back_counts_and_is_sent_after_the_release() {
    let subscriber = held(15);
    assert_eq!(subscriber.take(), ["before"]);
    assert_eq!(subscriber.waiting(), 6);
    subscriber.release(2);
    assert_eq!((subscriber.take(), subscriber.waiting()), (vec!["behind".to_string()], 0));
    let subscriber = held(15);
    assert_eq!(subscriber.push(frame("too much")), Pushed::Overflow);
}

#[test]
fn a_stream_that_ends_sends_nothing_of_what_it_holds_back() {
    let ends: [fn(&Subscriber); 3] = [
        |subscriber| subscriber.finish(Duration::from_secs(2)),
        |subscriber| _ = subscriber.dismiss(Frame::retry(Duration::from_secs(2))),
        |subscriber| _ = subscriber.close(End::Finished),
    ];
    for end in ends {
        let subscriber = held(100);
        end(&subscriber);
        subscriber.release(2);
        let sent = subscriber.take().concat();
        assert!(!sent.contains("behind"), "{sent}");
        assert_eq!(subscriber.waiting(), 0);
    }
}

#[test]
fn a_client_that_waits_for_an_answer_gets_heartbeats_and_is_not_stalled() {
    let (plain, at) = (frame("plain"), frame("at"));
    let subscriber = held(100);
    assert!(subscriber.sit(Box::default(), true).is_ok());
    assert_eq!(subscriber.take(), ["before"]);
    for _ in 0..3 {
        assert_eq!((subscriber.beat(&plain, &at), subscriber.take()), (Pulse::Alive, vec!["plain".to_string()]));
    }
}

#[test]
fn a_subscriber_is_small() {
    // With its two counts, this is what malloc gives for 168 bytes without waste.
    assert!(size_of::<Subscriber>() <= 152, "{}", size_of::<Subscriber>());
}
