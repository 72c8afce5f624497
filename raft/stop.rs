//! The signal that ends a group's tasks.

use tokio::sync::watch;

/// Resolves when the group stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to stop the group: it is gone.
    let _ = stop.wait_for(|stopped| *stopped).await;
}
