//! Limits of the loop itself: how long one connection may keep the others waiting.

use std::time::Duration;

use crate::model::limits::{FRAME_BYTES_MAX, FRAME_BYTES_TARGET};

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

/// Pause after the kernel had no descriptor or memory for a new connection.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Longest time in which a connection that is being closed may take its last frame.
pub(super) const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);

/// Most bytes of a closing connection that are read to be thrown away.
pub(super) const FAREWELL_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(FRAME_BYTES_TARGET <= OUTBOX_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX <= READ_TURN_BYTES_MAX);
