//! Sentence embeddings for routers that read them, made beside the tasks that move bytes. Who waits too long gets none, and the
//! safe model.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use boute_router::encoder::Encode;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::metrics::Counter;

/// Longest wait for its turn. Those who get one soon are served in time even where more come than can be.
const WAIT: Duration = Duration::from_millis(100);
/// Longest that an embedding takes.
const LIMIT: Duration = Duration::from_millis(200);

/// Makes a few embeddings at a time.
#[derive(Debug)]
pub(crate) struct Embedding {
    turns: Arc<Semaphore>,
    /// Texts without one.
    pub(crate) late: Counter,
}

impl Default for Embedding {
    /// Half of the cores embed; the others move bytes.
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self { turns: Arc::new(Semaphore::new((cores / 2).max(1))), late: Counter::default() }
    }
}

impl Embedding {
    /// The embedding of a text; `None` if it is late or the text cannot be encoded.
    pub(crate) async fn of(&self, text: &str, encoder: &Arc<dyn Encode>) -> Option<Vec<f32>> {
        let made = self.make(text, encoder).await;
        if made.is_none() {
            self.late.add(1);
        }
        made
    }

    async fn make(&self, text: &str, encoder: &Arc<dyn Encode>) -> Option<Vec<f32>> {
        let turn = timeout(WAIT, Arc::clone(&self.turns).acquire_owned()).await.ok()?.ok()?;
        let (text, encoder) = (text.to_owned(), Arc::clone(encoder));
        let work = spawn_blocking(move || {
            // Whoever is not waited for any longer still works: the turn ends with the work.
            let _turn = turn;
            encoder.encode(&text)
        });
        timeout(LIMIT, work).await.ok()?.ok()?
    }
}
