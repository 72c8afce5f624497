//! Work that waits for the disk or takes long, and where it is done.

use flotilla_storage::Storage;
use tokio::task::JoinError;

/// Does `work` on a thread of its own, or here and now if the store is a simulated one: other threads
/// are outside of a simulation's time and order.
pub(crate) async fn blocking<T: Send + 'static>(
    storage: &Storage,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if storage.is_simulated() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
