//! Who writes what was queued, and in which order.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet, yield_now};

use super::*;
use crate::stream::subscriber::tests::{Anyone, frame, noop};
use crate::stream::writer::{CountBytes, Writer};

/// A client, and the socket to it.
pub async fn connect() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let socket = Socket::new(stream, Duration::from_secs(20));
    // tokio writes at once only after it has seen the socket's first event.
    socket.writable().await;
    (client, socket)
}

/// Counts how often a client's task is woken.
#[derive(Default)]
pub struct Wakes(AtomicUsize);

impl Wakes {
    /// How often.
    pub fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A subscriber whose task waits for frames and has left the socket.
pub async fn idle(wakes: &Arc<Wakes>) -> (TcpStream, Arc<Subscriber>) {
    let (client, socket) = connect().await;
    let subscriber = Subscriber::new(100_000_000);
    wait(&subscriber, wakes);
    subscriber.leave_socket(socket);
    (client, subscriber)
}

/// Lets the subscriber's task wait for frames.
pub fn wait(subscriber: &Subscriber, wakes: &Arc<Wakes>) {
    let waker = Waker::from(wakes.clone());
    assert!(subscriber.poll_frames(&Context::from_waker(&waker), 0).is_pending());
}

/// Reads so many bytes.
pub async fn read(client: &mut TcpStream, size: usize) -> String {
    let mut bytes = vec![0; size];
    client.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

fn chunk(text: &str) -> String {
    String::from_utf8(Frame::message(None, text).bytes(true).to_vec()).unwrap()
}

/// Nobody counts what is written.
pub struct Uncounted;

impl CountBytes for Uncounted {
    fn wrote(&self, _: usize) {}
}

/// Starts a client's task, and waits until it has left the socket.
async fn start(socket: Socket, subscriber: &Arc<Subscriber>) -> JoinHandle<()> {
    let task = tokio::spawn(Writer::new(socket, subscriber.clone(), Uncounted, true));
    while subscriber.state.lock().socket.is_none() {
        yield_now().await;
    }
    task
}

#[tokio::test]
async fn a_frame_is_written_by_whoever_queued_it_and_the_task_sleeps() {
    let wakes = Arc::<Wakes>::default();
    let (mut client, subscriber) = idle(&wakes).await;
    let size = chunk("one").len();
    assert_eq!(subscriber.offer(Frame::message(None, "one")), (Pushed::Waiting(size), true));
    assert_eq!(subscriber.offer(Frame::message(None, "two")), (Pushed::Waiting(2 * size), false), "due already");
    assert_eq!((subscriber.flush(), subscriber.waiting(), wakes.count()), (2 * size, 0, 0));
    assert_eq!(read(&mut client, 2 * size).await, chunk("one") + &chunk("two"));
    // Whoever can't write wakes the task, and so does whoever changes its mind.
    subscriber.push(Frame::message(None, "three"));
    assert_eq!(wakes.count(), 1);
    assert!(!subscriber.offer(Frame::message(None, "four")).1, "after what the task writes");
    subscriber.take();
    wait(&subscriber, &wakes);
    assert!(subscriber.offer(Frame::message(None, "five")).1);
    subscriber.leave_to_task();
    assert_eq!(wakes.count(), 2);
}

#[tokio::test]
async fn what_comes_while_another_writes_is_left_to_the_task_and_keeps_its_order() {
    let wakes = Arc::<Wakes>::default();
    let (_client, subscriber) = idle(&wakes).await;
    assert!(subscriber.offer(Frame::message(None, "one")).1);
    let (socket, mut batch) = subscriber.take_due().unwrap();
    assert!(!subscriber.offer(Frame::message(None, "two")).1, "the socket is taken");
    assert_eq!((subscriber.flush(), wakes.count()), (0, 1));
    // The task is woken again when it has found no socket.
    let waker = Waker::from(wakes.clone());
    assert!(subscriber.poll_socket(&Context::from_waker(&waker)).is_pending());
    // The socket takes three bytes.
    let counted = batch.advance(3, true);
    subscriber.return_due(socket, batch, counted);
    assert_eq!(wakes.count(), 2);
    assert!(subscriber.poll_socket(&noop()).is_ready());
    let all = chunk("one") + &chunk("two");
    assert_eq!((subscriber.waiting(), subscriber.take().concat().len()), (all.len() - 3, "data: two\n\n".len() + 13));
}

#[tokio::test]
async fn a_task_that_wants_the_socket_is_woken_when_it_is_back() {
    let wakes = Arc::<Wakes>::default();
    let (_client, subscriber) = idle(&wakes).await;
    assert!(subscriber.offer(frame("x")).1);
    let (socket, mut batch) = subscriber.take_due().unwrap();
    let waker = Waker::from(wakes.clone());
    assert!(subscriber.poll_socket(&Context::from_waker(&waker)).is_pending(), "the client has disconnected, say");
    let counted = batch.advance(1, true);
    subscriber.return_due(socket, batch, counted);
    assert_eq!(wakes.count(), 1, "although everything is written");
}

#[tokio::test]
async fn a_stream_that_ends_while_it_is_written_keeps_what_was_taken_and_no_frame_is_torn() {
    let ends: [fn(&Subscriber); 4] = [
        |subscriber| subscriber.finish(Duration::from_secs(2)),
        |subscriber| _ = subscriber.dismiss(Frame::retry(Duration::from_secs(2))),
        |subscriber| _ = subscriber.close(End::Finished),
        |subscriber| _ = subscriber.close(End::Gone),
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let wakes = Arc::<Wakes>::default();
        let (mut client, subscriber) = idle(&wakes).await;
        assert!(subscriber.offer(Frame::message(None, "one")).1);
        let (mut socket, mut batch) = subscriber.take_due().unwrap();
        end(&subscriber);
        assert!(wakes.count() > 0);
        let first = Batch::from(VecDeque::from([Frame::raw(chunk("one")[..5].to_string())]));
        assert_eq!(socket.try_write(&first).unwrap(), 5);
        let counted = batch.advance(5, true);
        subscriber.return_due(socket, batch, counted);
        // The task takes the socket back, writes the rest, and closes it.
        let Poll::Ready(socket) = subscriber.poll_socket(&noop()) else { panic!("no socket") };
        Writer::new(socket, subscriber.clone(), Uncounted, true).await;
        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        if n < 3 {
            assert!(all.starts_with(&chunk("one")) && all.ends_with("\r\n0\r\n\r\n"), "{all}");
            assert_eq!(subscriber.waiting(), 0);
        } else {
            assert_eq!(all, chunk("one")[..5]);
        }
    }
}

#[tokio::test]
async fn the_task_writes_what_a_full_socket_did_not_take() {
    let (mut client, socket) = connect().await;
    let subscriber = Subscriber::new(100_000_000);
    let task = start(socket, &subscriber).await;
    let text = |n: usize| format!("{n}{}", ".".repeat(100_000));
    let mut expected = String::new();
    // Some are written here, one in part, the others by the task.
    for n in 0..100 {
        expected += &chunk(&text(n));
        if subscriber.offer(Frame::message(None, &text(n))).1 {
            subscriber.flush();
        }
    }
    assert!(subscriber.waiting() > 0, "the socket is full");
    assert!(read(&mut client, expected.len()).await == expected);
    while subscriber.state.lock().socket.is_none() {
        yield_now().await;
    }
    assert_eq!(subscriber.waiting(), 0);
    drop(client);
    task.await.unwrap();
}

const EVENTS: usize = 5000;

/// Queues the next of the frames, and says whether it is due; `None` if there is none left.
fn offer_next(queued: &Mutex<usize>, subscriber: &Subscriber) -> Option<bool> {
    let mut n = queued.lock();
    if *n == EVENTS {
        return None;
    }
    *n += 1;
    Some(subscriber.offer(Frame::message(None, &n.to_string())).1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_tasks_that_queue_and_write_keep_the_order() {
    let (mut client, socket) = connect().await;
    let subscriber = Subscriber::new(100_000_000);
    let task = start(socket, &subscriber).await;
    // As in the hub: frames are queued in order under a lock, and written without it.
    let (queued, mut tasks) = (Arc::new(Mutex::new(0)), JoinSet::new());
    for _ in 0..4 {
        let (queued, subscriber) = (queued.clone(), subscriber.clone());
        tasks.spawn(async move {
            loop {
                match offer_next(&queued, &subscriber) {
                    None => return,
                    Some(true) => _ = subscriber.flush(),
                    Some(false) => {}
                }
                yield_now().await;
            }
        });
    }
    let expected: String = (1..=EVENTS).map(|n| chunk(&n.to_string())).collect();
    assert!(read(&mut client, expected.len()).await == expected);
    tasks.join_all().await;
    subscriber.finish(Duration::from_secs(2));
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("retry: 2000\n\n\r\n0\r\n\r\n"), "{rest}");
    task.await.unwrap();
    assert!(subscriber.state.lock().socket.is_none(), "the connection is closed");
}

#[tokio::test]
async fn what_is_held_back_is_not_due() {
    let wakes = Arc::<Wakes>::default();
    let (mut client, subscriber) = idle(&wakes).await;
    subscriber.guard(Arc::new(Anyone), 0, 1);
    assert!(subscriber.offer(frame("before")).1);
    subscriber.push(Frame::recheck(2, false));
    assert_eq!(subscriber.offer(frame("behind")), (Pushed::Waiting(12), false));
    assert_eq!((subscriber.flush(), subscriber.waiting()), (6, 6));
    assert_eq!((read(&mut client, 6).await, wakes.count()), ("before".to_string(), 0));
    subscriber.release(2);
    assert_eq!((wakes.count(), subscriber.take()), (1, vec!["behind".to_string()]));
}

#[tokio::test]
async fn a_heartbeat_is_written_by_whoever_queued_it() {
    let (plain, at) = (frame("plain"), frame("at"));
    let wakes = Arc::<Wakes>::default();
    let (_client, subscriber) = idle(&wakes).await;
    for _ in 0..3 {
        assert_eq!((subscriber.beat(&plain, &at), subscriber.flush()), (Pulse::Due, plain.len()));
    }
    assert_eq!((wakes.count(), subscriber.waiting()), (0, 0));
    // A client that reads nothing is given up as before.
    assert_eq!((subscriber.beat(&plain, &at), subscriber.beat(&plain, &at)), (Pulse::Due, Pulse::Stalled));
}

#[tokio::test]
async fn a_client_that_disconnects_is_noticed_while_its_socket_is_left() {
    let (client, socket) = connect().await;
    let subscriber = Subscriber::new(1000);
    let task = start(socket, &subscriber).await;
    drop(client);
    task.await.unwrap();
    assert!(subscriber.state.lock().socket.is_none());
}
