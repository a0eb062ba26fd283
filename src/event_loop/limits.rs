//! Limits of the loop itself: how long one connection may keep the others waiting.

use std::time::Duration;

use crate::model::limits::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET, TRANSFERS_MAX};

/// Most bytes read from one connection before the others get their turn.
pub(super) const READ_TURN_BYTES_MAX: usize = 1 << 20;

/// Most frames taken from a role for one connection in one turn.
pub(super) const FRAMES_TURN_MAX: usize = 4;

/// Bytes in an outbox at which its role is not asked for more. Together with one frame on top
/// this is all the memory that a peer who does not read can hold.
pub(super) const OUTBOX_BYTES_MAX: usize = 512 << 10;

/// Bytes in an outbox at which it is written without waiting for the turn to end, so that the
/// peer works while the role reads on; smaller frames leave together.
pub(super) const OUTBOX_BYTES_FLUSH: usize = 64 << 10;

/// Most frames handed to the kernel in one call.
pub(super) const SLICES_MAX: usize = 16;

/// Most connections accepted from one listener before the others get their turn.
pub(super) const ACCEPTS_TURN_MAX: usize = 64;

/// Least time between two words about progress.
pub(super) const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// Pause after the kernel had no descriptor or memory for a new connection.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Most connections of a process. They do no harm below, but their buffers are memory.
pub(super) const CONNECTIONS_MAX: u64 = 4096;

/// Most connections in one turn that give way to others, so that what came with them is read
/// before it is their turn to go.
pub(super) const GIVE_WAY_TURN_MAX: usize = 4;

/// Descriptors that one downstream may take: its connection, the journal's segment at its
/// cursor, the big files on their way to it, and one that is being read.
pub(super) const DOWNSTREAM_DESCRIPTORS: u64 = 3 + TRANSFERS_MAX as u64;

/// Descriptors kept for the tree, the journal and the loop, whoever connects.
pub(super) const DESCRIPTORS_RESERVED: u64 = 64;

/// Most keys of which the log says that they are not let in: whoever makes keys must not fill it.
pub(super) const TURNED_AWAY_MAX: usize = 64;

/// Returns how many connections may be open at a time with `descriptors` for the process.
pub(super) fn connections_max(descriptors: Option<u64>) -> u64 {
    let descriptors = descriptors.unwrap_or(u64::MAX);
    let shared = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / DOWNSTREAM_DESCRIPTORS;
    shared.clamp(1, CONNECTIONS_MAX)
}

/// Longest time in which a connection that is being closed may take its last frame.
pub(super) const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);

/// Most bytes of a closing connection that are read to be thrown away.
pub(super) const FAREWELL_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(FRAME_BYTES_TARGET <= OUTBOX_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX <= READ_TURN_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_a_reserve() {
        for (descriptors, connections) in
            [(Some(20), 1), (Some(256), 27), (Some(1024), 137), (Some(1 << 20), 4096), (None, 4096)]
        {
            assert_eq!(connections_max(descriptors), connections, "{descriptors:?}");
        }
    }
}
