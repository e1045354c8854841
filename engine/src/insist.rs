//! What cannot be taken back any more, and is refused: it is tried again for a while.
//!
//! Before a transaction is prepared a refusal of the disk is an answer to whoever asked. Behind that the log must go on with the
//! same bytes or the process must end, and what the system lacks (descriptors, memory, space) is often there a moment later.

use crate::disk::DiskError;
use crate::env::{Env, Level};
use std::time::Duration;

/// How long a refused operation is tried again.
pub const INSIST: Duration = Duration::from_secs(5);
/// The first pause; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Tries until it is not refused, for [`INSIST`] at most. Any other error is the answer at once.
pub(crate) async fn insist<E: Env, T>(
    env: &E,
    attempt: impl AsyncFn() -> Result<T, DiskError>,
) -> Result<T, DiskError> {
    let deadline = env.now() + INSIST;
    let mut pause = PAUSE;
    loop {
        match attempt().await {
            Err(error) if error.changed_nothing() && env.now() < deadline => {
                if pause == PAUSE {
                    let seconds = INSIST.as_secs();
                    env.log(Level::Warn, format!("{error}; it is tried again for {seconds} s, then the process ends"));
                }
                env.sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            other => return other,
        }
    }
}
