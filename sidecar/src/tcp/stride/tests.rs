//! Strides over streams in memory that are as mean as a network.

use std::{cell::RefCell, rc::Rc};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::lend;

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

type Moved = Rc<RefCell<Vec<(Way, usize)>>>;

/// A relay between two pipes of `room` bytes each: the far ends, and what it counted.
fn relayed(room: usize) -> (DuplexStream, DuplexStream, impl Future<Output = io::Result<()>>, Moved) {
    let (caller, downstream) = duplex(room);
    let (upstream, server) = duplex(room);
    let moved = Moved::default();
    let noted = Rc::clone(&moved);
    let relay = carry(downstream, upstream, move |way, bytes| noted.borrow_mut().push((way, bytes)));
    (caller, server, relay, moved)
}

fn sum(moved: &Moved, way: Way) -> usize {
    moved.borrow().iter().filter(|(of, _)| *of == way).map(|(_, bytes)| bytes).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_byte_arrives_in_order(
        up in proptest::collection::vec(any::<u8>(), 0..200_000),
        down in proptest::collection::vec(any::<u8>(), 0..200_000),
        room in 1_usize..150_000,
    ) {
        let (caller, server, relay, moved) = relayed(room.max(up.len().max(down.len()) / 400));
        let exchange = |stream: DuplexStream, send: Vec<u8>| async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut received = Vec::new();
            let sending = async { write.write_all(&send).await.unwrap(); write.shutdown().await.unwrap(); };
            let (_, read) = tokio::join!(sending, read.read_to_end(&mut received));
            read.unwrap();
            received
        };
        let (at_server, at_caller, ended) = run(async {
            let (ended, at_caller, at_server) =
                tokio::join!(relay, exchange(caller, up.clone()), exchange(server, down.clone()));
            (at_server, at_caller, ended)
        });
        prop_assert!(ended.is_ok());
        prop_assert_eq!(sum(&moved, Way::Up), up.len());
        prop_assert_eq!(sum(&moved, Way::Down), down.len());
        prop_assert!(at_server == up && at_caller == down);
    }
}

#[test]
fn one_end_leaves_the_other_open() {
    run(async {
        let (mut caller, mut server, relay, _) = relayed(1024);
        let talk = async {
            caller.write_all(b"question").await.unwrap();
            caller.shutdown().await.unwrap();
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.unwrap();
            assert_eq!(asked, b"question");
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            let mut answered = Vec::new();
            caller.read_to_end(&mut answered).await.unwrap();
            assert_eq!(answered, b"answer");
        };
        let (ended, ()) = tokio::join!(relay, talk);
        ended.unwrap();
    });
}

#[test]
fn a_waiting_flow_holds_nothing_and_a_blocked_one_what_it_needs() {
    run(async {
        let (mut source, mut from) = duplex(lend::LENGTH);
        let (mut to, mut sink) = duplex(100);
        let mut flow = Flow::default();
        let mut step = async |flow: &mut Flow| {
            poll_fn(|cx| Poll::Ready(flow.poll(cx, &mut from, &mut to, |_, _| {}).is_pending())).await
        };
        assert!(step(&mut flow).await);
        assert!(matches!(flow.rest, Rest::Nothing), "nothing came, nothing is held");

        source.write_all(&[1; 5000]).await.unwrap();
        assert!(step(&mut flow).await);
        assert!(matches!(&flow.rest, Rest::Own(bytes, 0) if bytes.len() == 4900), "{:?}", flow.rest);

        sink.read_exact(&mut [0; 100]).await.unwrap();
        let mut left = vec![0; 4900];
        let (_, ()) = tokio::join!(sink.read_exact(&mut left), async {
            while !matches!(flow.rest, Rest::Nothing) {
                assert!(step(&mut flow).await);
                tokio::task::yield_now().await;
            }
        });
    });
}

#[test]
fn a_flow_that_never_pauses_lets_others_have_their_turn() {
    /// Always has bytes, always takes them.
    struct Endless;
    impl AsyncRead for Endless {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            buf.put_slice(&vec![0; buf.remaining()]);
            Poll::Ready(Ok(()))
        }
    }
    impl AsyncWrite for Endless {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let mut flow = Flow::default();
    let read = std::cell::Cell::new(0);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(flow.poll(&mut cx, &mut Endless, &mut Endless, |bytes, _| read.set(read.get() + bytes)).is_pending());
    assert_eq!(read.get(), IN_ONE_TURN * lend::LENGTH);
}
