//! When to repeat a request, how long to wait before, and when to give up.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::error::RegistryError;

/// How often and how patiently requests are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts without any progress before giving up, the first one included.
    pub attempts: u32,
    /// Wait before the second attempt; doubles each time.
    pub first_wait: Duration,
    /// Longest wait, also when the registry asks for more by Retry-After.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, first_wait: Duration::from_millis(300), longest_wait: Duration::from_secs(30) }
    }
}

/// Tells the caller that something is being repeated, and why.
pub(crate) type Notify<'a> = dyn Fn(&RegistryError) + Send + Sync + 'a;

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) error: RegistryError,
    pub(super) retry_after: Option<Duration>,
}

impl From<RegistryError> for Outcome {
    fn from(error: RegistryError) -> Self {
        Self { error, retry_after: None }
    }
}

/// Stops all transfers of one pull; waits for a retry end at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<(Mutex<bool>, Condvar)>);

impl Cancel {
    /// Stops everybody who waits or asks.
    pub(crate) fn cancel(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// True once cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, and says whether it was cancelled meanwhile.
    fn wait(&self, time: Duration) -> bool {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(guard, time, |cancelled| !*cancelled);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The budget of one operation.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    cancel: &'a Cancel,
    failed: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(policy: &'a RetryPolicy, cancel: &'a Cancel) -> Self {
        Self { policy, cancel, failed: 0 }
    }

    /// Something was achieved: later failures start counting anew.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// After a failure: waits and returns if another attempt makes sense, else gives the error back.
    pub(super) fn again(
        &mut self,
        error: RegistryError,
        retry_after: Option<Duration>,
        notify: &Notify<'_>,
    ) -> Result<(), RegistryError> {
        self.failed += 1;
        if !error.is_transient() || self.failed >= self.policy.attempts {
            return Err(error);
        }
        notify(&error);
        let backoff = self.policy.first_wait.saturating_mul(1 << (self.failed - 1).min(16));
        let wait = retry_after.unwrap_or(backoff).min(self.policy.longest_wait);
        if self.cancel.wait(wait) { Err(RegistryError::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> RegistryError {
        let (registry, path) = ("r".to_owned(), "/".to_owned());
        RegistryError::Status { registry, status: 503, path, message: String::new() }
    }

    #[test]
    fn gives_up_after_the_budget_and_starts_anew_after_progress() {
        let policy = RetryPolicy { attempts: 3, first_wait: Duration::ZERO, longest_wait: Duration::ZERO };
        let cancel = Cancel::default();
        let mut attempts = Attempts::new(&policy, &cancel);
        assert!(attempts.again(busy(), None, &|_| ()).is_ok());
        assert!(attempts.again(busy(), None, &|_| ()).is_ok());
        attempts.progressed();
        assert!(attempts.again(busy(), None, &|_| ()).is_ok());
        assert!(attempts.again(busy(), None, &|_| ()).is_ok());
        assert!(attempts.again(busy(), None, &|_| ()).is_err());
    }

    #[test]
    fn cancelling_ends_a_wait() {
        let policy = RetryPolicy { first_wait: Duration::from_secs(3600), ..RetryPolicy::default() };
        let policy = RetryPolicy { longest_wait: Duration::from_secs(3600), ..policy };
        let cancel = Cancel::default();
        let other = cancel.clone();
        let waiting = std::thread::spawn(move || Attempts::new(&policy, &other).again(busy(), None, &|_| ()));
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(RegistryError::Cancelled)));
    }
}
