//! Questions of the API to the loop that owns everything.

use std::fmt;

use tokio::sync::{mpsc, oneshot};

use super::error::ApiError;

/// A question or command, carried out by the loop between two events.
pub(crate) type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// The API's end of a loop's queue of jobs.
pub(crate) struct Jobs<S> {
    sender: mpsc::Sender<Job<S>>,
    /// Whose loop it is, in the words of an answer.
    owner: &'static str,
}

impl<S> fmt::Debug for Jobs<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl<S: 'static> Jobs<S> {
    /// Of the loop that receives them.
    pub(crate) const fn new(sender: mpsc::Sender<Job<S>>, owner: &'static str) -> Self {
        Self { sender, owner }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] if the loop has ended or ends before it answers.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job<S> = Box::new(move |owner| {
            // The asker may have gone away.
            let _ = sender.send(question(owner));
        });
        let stopping = || ApiError::Unavailable { message: format!("the {} is stopping", self.owner) };
        self.sender.send(job).await.map_err(|_| stopping())?;
        receiver.await.map_err(|_| stopping())
    }
}
