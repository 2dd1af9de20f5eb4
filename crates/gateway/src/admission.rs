//! Who may come in: so many requests at once, a bounded queue before them, its turns shared among clients.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// How much the gateway takes on.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// Requests at once.
    pub in_flight: usize,
    /// Requests that wait beyond those.
    pub waiting: usize,
    /// How long they wait.
    pub patience: Duration,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self { in_flight: 10_000, waiting: 1000, patience: Duration::from_secs(10) }
    }
}

/// Who waits, by client; the clients take turns.
#[derive(Debug, Default)]
struct Queue {
    in_flight: usize,
    waiting: usize,
    /// Nobody's queue is empty.
    of_client: BTreeMap<u64, VecDeque<oneshot::Sender<Permit>>>,
    turns: VecDeque<u64>,
}

/// The door.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: AdmissionLimits,
    queue: Mutex<Queue>,
}

/// A place inside; the next in turn gets it when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Option<Arc<Admission>>);

impl Admission {
    pub(crate) fn new(limits: AdmissionLimits) -> Arc<Self> {
        Arc::new(Self { limits, queue: Mutex::default() })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock, and the counts would still be right.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a request of `client`; `None` if the queue is full or it has waited long enough.
    pub(crate) async fn enter(self: &Arc<Self>, client: u64) -> Option<Permit> {
        let turn = {
            let mut queue = self.queue();
            if queue.in_flight < self.limits.in_flight {
                queue.in_flight += 1;
                return Some(Permit(Some(Arc::clone(self))));
            }
            if queue.waiting >= self.limits.waiting {
                return None;
            }
            let (sender, turn) = oneshot::channel();
            queue.waiting += 1;
            let own = queue.of_client.entry(client).or_default();
            own.push_back(sender);
            if own.len() == 1 {
                queue.turns.push_back(client);
            }
            turn
        };
        let _waiting = Waiting(self);
        timeout(self.limits.patience, turn).await.ok()?.ok()
    }

    /// Requests inside, and waiting.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let queue = self.queue();
        (queue.in_flight, queue.waiting)
    }

    /// The client whose turn it is gives way to the next; those who no longer wait are passed over.
    fn next_in_turn(&self) -> Option<oneshot::Sender<Permit>> {
        let mut queue = self.queue();
        while let Some(client) = queue.turns.pop_front() {
            let Some(mut own) = queue.of_client.remove(&client) else { continue };
            let next = std::iter::from_fn(|| own.pop_front()).find(|sender| !sender.is_closed());
            if !own.is_empty() {
                queue.of_client.insert(client, own);
                queue.turns.push_back(client);
            }
            if next.is_some() {
                return next;
            }
        }
        queue.in_flight -= 1;
        None
    }
}

/// Counts a request as waiting.
struct Waiting<'a>(&'a Admission);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.queue().waiting -= 1;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(admission) = self.0.take() else { return };
        // Who has gone away meanwhile gives the place back unused.
        while let Some(sender) = admission.next_in_turn() {
            match sender.send(Self(Some(Arc::clone(&admission)))) {
                Ok(()) => return,
                Err(mut unused) => unused.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_take_turns_and_places_are_not_lost() {
        let limits = AdmissionLimits { in_flight: 1, waiting: 5, patience: Duration::from_secs(1) };
        let admission = Admission::new(limits);
        let first = admission.enter(0).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for client in [1, 1, 1, 2, 3] {
            let (admission, order) = (Arc::clone(&admission), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let permit = admission.enter(client).await;
                order.lock().unwrap().push(client);
                drop(permit);
            }));
            tokio::task::yield_now().await;
        }
        assert!(admission.enter(4).await.is_none(), "the queue is full");
        // One of those in the queue goes away.
        tasks.remove(2).abort();
        tokio::task::yield_now().await;
        assert_eq!(admission.counts(), (1, 4));
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [1, 2, 3, 1]);
        assert_eq!(admission.counts(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let limits = AdmissionLimits { in_flight: 1, waiting: 5, patience: Duration::from_secs(1) };
        let admission = Admission::new(limits);
        let held = admission.enter(0).await.unwrap();
        assert!(admission.enter(1).await.is_none());
        assert_eq!(admission.counts(), (1, 0));
        drop(held);
        assert_eq!(admission.counts(), (0, 0));
        assert!(admission.enter(1).await.is_some());
    }
}
