//! Owns: how a batch's fate reaches the many receipts of its messages: one shared completion per
//! batch instead of one channel per message.
//! Never: resolves twice; dropping a receipt loses the notice, never the message.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

/// Where a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The partition.
    pub partition: u32,
    /// Its offset there; `u64::MAX` for a duplicate so old that its offset is not known any more.
    pub offset: u64,
    /// An earlier attempt had stored it already.
    pub duplicate: bool,
}

/// The fate of one batch, shared by the receipts of its messages.
#[derive(Debug, Default)]
pub(crate) struct Completion {
    outcome: OnceLock<Result<Stored>>,
    /// By number of the message within the batch.
    wakers: Mutex<BTreeMap<u32, Waker>>,
}

impl Completion {
    /// Resolves the batch: `Stored` names the offset of its first message. Later calls are
    /// ignored, because a message that was reported as unknown may still be answered.
    pub(crate) fn resolve(&self, outcome: Result<Stored>) {
        if self.outcome.set(outcome).is_err() {
            return;
        }
        let wakers =
            std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in wakers.into_values() {
            waker.wake();
        }
    }

    pub(crate) fn is_resolved(&self) -> bool {
        self.outcome.get().is_some()
    }

    fn result_of(&self, number: u32) -> Option<Result<Stored>> {
        self.outcome.get().map(|outcome| match outcome {
            Ok(first) if first.offset == u64::MAX => Ok(*first),
            Ok(first) => Ok(Stored { offset: first.offset + u64::from(number), ..*first }),
            Err(error) => Err(error.clone()),
        })
    }
}

/// The promise that a message was queued; resolves when the broker has stored it, or not.
///
/// Cancel safe: it may be polled, dropped and polled by reference at will.
#[derive(Debug)]
#[must_use = "a receipt resolves when the message is stored; drop it only if you need no answer"]
pub struct Receipt {
    completion: Arc<Completion>,
    number: u32,
}

impl Receipt {
    pub(crate) fn new(completion: Arc<Completion>, number: u32) -> Self {
        Self { completion, number }
    }

    /// A receipt that failed before the message was queued.
    pub(crate) fn failed(error: Error) -> Self {
        let completion = Completion::default();
        completion.resolve(Err(error));
        Self::new(Arc::new(completion), 0)
    }

    /// Whether the outcome is known.
    pub fn is_done(&self) -> bool {
        self.completion.is_resolved()
    }

    /// Whether the message is known to be stored.
    pub fn is_stored(&self) -> bool {
        matches!(self.completion.outcome.get(), Some(Ok(_)))
    }

    /// The outcome, if it is known.
    pub fn outcome(&self) -> Option<Result<Stored>> {
        self.completion.result_of(self.number)
    }
}

impl Future for Receipt {
    type Output = Result<Stored>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.completion.result_of(self.number) {
            return Poll::Ready(result);
        }
        let mut wakers = self.completion.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        // Resolved between the look and the lock: its wakers were taken already.
        if let Some(result) = self.completion.result_of(self.number) {
            return Poll::Ready(result);
        }
        match wakers.get_mut(&self.number) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                wakers.insert(self.number, cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

/// The receipts of [`send_batch`](crate::Publisher::send_batch): resolves to one result per
/// message, in their order. Cancel safe when polled by reference.
#[derive(Debug)]
#[must_use = "a receipt resolves when the messages are stored; drop it only if you need no answer"]
pub struct BatchReceipt {
    receipts: Vec<Receipt>,
    done: Vec<Result<Stored>>,
}

impl BatchReceipt {
    pub(crate) fn new(receipts: Vec<Receipt>) -> Self {
        Self { done: Vec::with_capacity(receipts.len()), receipts }
    }

    /// The receipts one by one.
    pub fn into_receipts(self) -> Vec<Receipt> {
        self.receipts
    }
}

impl Future for BatchReceipt {
    type Output = Vec<Result<Stored>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Some(receipt) = this.receipts.get_mut(this.done.len()) {
            match Pin::new(receipt).poll(cx) {
                Poll::Ready(result) => this.done.push(result),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(std::mem::take(&mut this.done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn all_receipts_of_a_batch_resolve_at_once_each_with_its_offset() {
        let completion = Arc::new(Completion::default());
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        let mut receipts: Vec<_> =
            (0..100).map(|number| Receipt::new(completion.clone(), number)).collect();
        for receipt in &mut receipts {
            assert!(Pin::new(&mut *receipt).poll(&mut cx).is_pending());
            assert!(Pin::new(receipt).poll(&mut cx).is_pending(), "a second poll replaces");
        }
        completion.resolve(Ok(Stored { partition: 3, offset: 40, duplicate: false }));
        completion.resolve(Err(Error::invalid("too late")));
        assert_eq!(count.0.load(Ordering::Relaxed), 100);
        for (number, receipt) in receipts.iter_mut().enumerate() {
            let Poll::Ready(Ok(stored)) = Pin::new(receipt).poll(&mut cx) else {
                panic!("resolved with the first outcome");
            };
            assert_eq!((stored.partition, stored.offset), (3, 40 + number as u64));
        }
    }

    #[test]
    fn a_duplicate_without_an_offset_keeps_saying_so() {
        let completion = Arc::new(Completion::default());
        completion.resolve(Ok(Stored { partition: 0, offset: u64::MAX, duplicate: true }));
        let receipt = Receipt::new(completion, 9);
        assert!(receipt.is_stored());
        assert_eq!(receipt.outcome().unwrap().unwrap().offset, u64::MAX);
    }
}
