//! From a stream's task to its client: room for one message.
//!
//! A channel of tokio's would do, but makes room for 32 messages at once and keeps its ends on cache lines of their own:
//! one or two kilobytes for each stream, of which a control plane has two for each sidecar.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio_stream::Stream;

/// The task's end.
#[derive(Debug)]
pub struct Outbox<T>(Arc<Mutex<Slot<T>>>);

/// The client's end.
#[derive(Debug)]
pub struct Messages<T>(Arc<Mutex<Slot<T>>>);

/// The client's end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

#[derive(Debug)]
struct Slot<T> {
    /// Boxed: most of the time there is none.
    message: Option<Box<T>>,
    /// No further message will come.
    ended: bool,
    /// Nobody will take one.
    gone: bool,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

/// Both ends.
pub fn outbox<T>() -> (Outbox<T>, Messages<T>) {
    let slot = Slot { message: None, ended: false, gone: false, sender: None, receiver: None };
    let slot = Arc::new(Mutex::new(slot));
    (Outbox(slot.clone()), Messages(slot))
}

impl<T> Outbox<T> {
    /// Waits until there is room. It stays until [`Self::put`]: nobody else fills it.
    /// # Errors
    /// Nobody is there to take a message.
    pub async fn room(&self) -> Result<(), Gone> {
        std::future::poll_fn(|context| {
            let mut slot = self.0.lock();
            if slot.gone {
                return Poll::Ready(Err(Gone));
            }
            if slot.message.is_none() {
                return Poll::Ready(Ok(()));
            }
            slot.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Puts a message where there was room. What was not taken yet is replaced.
    pub fn put(&mut self, message: T) {
        let message = Box::new(message);
        let mut slot = self.0.lock();
        slot.message = Some(message);
        let receiver = slot.receiver.take();
        drop(slot);
        wake(receiver);
    }

    /// Waits for room and puts a message there.
    /// # Errors
    /// Nobody is there to take it.
    pub async fn send(&mut self, message: T) -> Result<(), Gone> {
        self.room().await?;
        self.put(message);
        Ok(())
    }
}

impl<T> Messages<T> {
    /// A future that ends when these messages are dropped. It wakes the same task as the outbox, which has to await both.
    pub fn dropped(&self) -> impl Future<Output = ()> + Send + use<T>
    where
        T: Send,
    {
        let slot = self.0.clone();
        std::future::poll_fn(move |context| {
            let mut slot = slot.lock();
            if slot.gone {
                return Poll::Ready(());
            }
            slot.sender = Some(context.waker().clone());
            Poll::Pending
        })
    }
}

impl<T> Stream for Messages<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = self.0.lock();
        if let Some(message) = slot.message.take() {
            let sender = slot.sender.take();
            drop(slot);
            wake(sender);
            return Poll::Ready(Some(*message));
        }
        if slot.ended {
            return Poll::Ready(None);
        }
        slot.receiver = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        let mut slot = self.0.lock();
        slot.ended = true;
        let receiver = slot.receiver.take();
        drop(slot);
        wake(receiver);
    }
}

impl<T> Drop for Messages<T> {
    fn drop(&mut self) {
        let mut slot = self.0.lock();
        slot.gone = true;
        let (message, sender) = (slot.message.take(), slot.sender.take());
        drop(slot);
        drop(message);
        wake(sender);
    }
}

/// Not with the slot locked: who is woken may look into it at once.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn messages_come_in_order_and_none_is_lost() {
        let (mut outbox, messages) = outbox();
        let sending = tokio::spawn(async move {
            for number in 0..1000 {
                outbox.send(number).await.unwrap();
            }
        });
        assert_eq!(messages.collect::<Vec<_>>().await, (0..1000).collect::<Vec<_>>());
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn there_is_room_for_one() {
        let (mut outbox, mut messages) = outbox();
        outbox.room().await.unwrap();
        outbox.put(1);
        let mut room = std::pin::pin!(async move {
            outbox.room().await.unwrap();
            outbox
        });
        let noop = &mut Context::from_waker(Waker::noop());
        assert!(room.as_mut().poll(noop).is_pending());
        assert_eq!(messages.next().await, Some(1));
        let outbox = room.await;
        drop(outbox);
        assert_eq!(messages.next().await, None);
    }

    #[tokio::test]
    async fn the_last_message_is_taken_though_the_sender_has_gone() {
        let (mut outbox, messages) = outbox();
        outbox.put(1);
        drop(outbox);
        assert_eq!(messages.collect::<Vec<_>>().await, [1]);
    }

    #[tokio::test]
    async fn who_waits_learns_that_the_client_went() {
        let (mut outbox, messages) = outbox();
        outbox.put(1);
        let dropped = messages.dropped();
        let waiting = tokio::spawn(async move {
            tokio::join!(async { assert_eq!(outbox.send(2).await, Err(Gone)) }, dropped);
        });
        tokio::task::yield_now().await;
        drop(messages);
        waiting.await.unwrap();
    }
}
