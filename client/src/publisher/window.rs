//! Owns: how much one publisher may hold that is not settled yet, by messages and by bytes.
//! Never: outlives what it counts: a permit returns when its batch is settled.
//! Invariant: permits handed out never exceed the limits.

use crate::config::Limits;
use tokio::sync::Semaphore;

/// The window: both limits hold at once.
#[derive(Debug)]
pub(crate) struct Window {
    limits: Limits,
    messages: Semaphore,
    bytes: Semaphore,
}

impl Window {
    pub(crate) fn new(limits: Limits) -> Self {
        let limits = limits.clamped();
        Self {
            limits,
            messages: Semaphore::new(limits.messages),
            bytes: Semaphore::new(limits.bytes),
        }
    }

    /// What a message of `bytes` takes: one that is larger than the whole window takes all of it.
    fn share(&self, bytes: usize) -> u32 {
        bytes.min(self.limits.bytes) as u32
    }

    /// Takes room for one message without waiting; returns what [`Window::release`] must be given.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<usize> {
        let share = self.share(bytes);
        let message = self.messages.try_acquire().ok()?;
        let room = self.bytes.try_acquire_many(share).ok()?;
        message.forget();
        room.forget();
        Some(share as usize)
    }

    /// Waits for room for one message; first come, first served. Cancel safe.
    /// `None` = the publisher was closed.
    pub(crate) async fn take(&self, bytes: usize) -> Option<usize> {
        let share = self.share(bytes);
        let message = self.messages.acquire().await.ok()?;
        let room = self.bytes.acquire_many(share).await.ok()?;
        message.forget();
        room.forget();
        Some(share as usize)
    }

    /// Gives room back.
    pub(crate) fn release(&self, messages: usize, bytes: usize) {
        self.messages.add_permits(messages);
        self.bytes.add_permits(bytes);
    }

    /// Nobody gets room any more; who waits learns it.
    pub(crate) fn close(&self) {
        self.messages.close();
        self.bytes.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    /// Whether all room is back.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.messages.available_permits() == self.limits.messages
            && self.bytes.available_permits() == self.limits.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_a_failed_attempt_takes_nothing() {
        let window = Window::new(Limits { messages: 3, bytes: 100 });
        assert_eq!(window.try_take(60), Some(60));
        assert_eq!(window.try_take(60), None, "bytes");
        assert_eq!(window.try_take(20), Some(20));
        assert_eq!(window.try_take(20), Some(20));
        assert_eq!(window.try_take(0), None, "messages");
        window.release(3, 100);
        assert!(window.is_idle());
    }

    #[test]
    fn a_message_larger_than_the_window_takes_all_of_it() {
        let window = Window::new(Limits { messages: 9, bytes: 100 });
        let share = window.try_take(1_000).unwrap();
        assert_eq!(share, 100);
        assert_eq!(window.try_take(1), None);
        window.release(1, share);
        assert!(window.is_idle());
    }
}
